"""Why an image cannot be pulled: the registry's answer, as containerd reports it, and the remedy."""

import re
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container
from .pod_diagnosis import PodDiagnosis
from .sentences import one_line

__all__ = ["PULL_REASONS", "image_pull_cause"]

PULL_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)

_PREFIX: Final = re.compile(
    r"^(Back-off pulling image \S+: \w+|rpc error: code = \w+ desc =|failed to pull and unpack image \S+|"
    r"failed to resolve image|failed to resolve reference \S+|failed to do request):? "
)
_REMEDIES: Final = (
    (re.compile(r"no match for platform"), "The image is not built for this node's platform."),
    (
        re.compile(r"authorization failed|no basic auth|pull access denied|\b401\b|unauthorized"),
        "The registry requires credentials: store them in a Secret and add it to worker.imagePullSecrets.",
    ),
    (
        re.compile(r"\b403\b|denied"),
        "The registry denies access: the credentials in worker.imagePullSecrets may not read the image.",
    ),
    (
        re.compile(r"not found|manifest unknown|\b404\b"),
        "The registry does not have this image: check its name and tag in {image}.",
    ),
    (
        re.compile(r"\b429\b|toomanyrequests"),
        "The registry limits pulls: use credentials or a mirror. The kubelet retries.",
    ),
    (re.compile(r"status from \S+ request to \S+: 5\d\d"), "The registry has an error. The kubelet retries."),
    (re.compile(r"no space left"), "The node's disk is full: free space on it."),
    (
        re.compile(r"no such host|dial tcp|timeout|connection re|certificate|x509|tls:|eof"),
        "The node cannot reach the registry: check its name, the network, the proxy and the certificate.",
    ),
)


def image_pull_cause(pod: Pod, container: Container, reason: str, message: str) -> PodDiagnosis:
    """``reason`` and ``message``: of the waiting container."""
    answer = one_line(message)
    while (shorter := _PREFIX.sub("", answer)) != answer:
        answer = shorter
    if answer.startswith("Back-off pulling image"):  # kubelets before 1.32 do not report the answer
        answer = f"{reason} (see `kubectl describe pod {pod.name}` for the registry's answer)"
    remedy = next(
        (text for pattern, text in _REMEDIES if pattern.search(answer.lower())),
        "Check {image} and worker.imagePullSecrets.",
    )
    image = str(container.status.get("image") or f"of container {container.name}")
    what = f"the image {image}" + ("" if container.is_main else f" of {container.title}")
    return PodDiagnosis(
        Reason.IMAGE_PULL_FAILED,
        f"Pod {pod.name} cannot pull {what}: {answer or reason}. {remedy.format(image=container.field(pod))}",
    )

"""Which health check the workers are given: the spec's, or the last good one while the spec's is refused.

The settings are hot: every replica reads one ConfigMap, and each asks its own engine before it adopts a
changed payload. Where one refuses it, the others must not go on with it, and a replica that starts later
must not be kept out of service by it. So the operator publishes the last good health check again. It keeps
both in annotations of that ConfigMap, until the spec asks for another health check or for other pods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from vllmendpoint_api import (
    ConfigurationState,
    HealthCheckSettings,
    PayloadSource,
    Problem,
    Reason,
    WorkerSettings,
    names,
)
from vllmendpoint_operator.desired_state import WithheldHealthCheck
from vllmendpoint_operator.kube.differences import differs
from vllmendpoint_operator.observe.snapshot import REVISION_ANNOTATION, Object, Observed, Pod

__all__ = ["PublishedHealthCheck", "publish_health_check"]

_GOOD: Final = f"{names.GROUP}/last-good-health-check"
_WITHHELD: Final = f"{names.GROUP}/withheld-health-check"


@dataclass(frozen=True, slots=True)
class PublishedHealthCheck:
    check: HealthCheckSettings
    withheld: WithheldHealthCheck | None
    annotations: Mapping[str, str]
    """Of the ConfigMap."""


def publish_health_check(
    wanted: HealthCheckSettings, request: str, live: Object | None, deployment: Object, observed: Observed
) -> PublishedHealthCheck:
    """``wanted``: as the spec has it; ``live``: the ConfigMap as it is; ``deployment``: as it should be."""
    before = _settings(live)
    if live is None or before is None:
        return PublishedHealthCheck(wanted, None, {})
    good, withheld = _good(live), _withheld(live)
    if withheld is not None and withheld.request == request and good is not None:
        return _published(good, good, withheld)
    if before.health_check != wanted:
        return _published(wanted, before.health_check if _accepted(before, observed) else good, None)
    if good is None or good == wanted:
        return _published(wanted, good, None)
    for pod in _newest(deployment, observed):
        if (problem := _refusal(pod, before.hash)) is not None:
            sentence = f"{problem.source}: {problem.message}"
            return _published(good, good, WithheldHealthCheck(request, pod.name, sentence))
    return _published(wanted, good, None)


def _published(
    check: HealthCheckSettings, good: HealthCheckSettings | None, withheld: WithheldHealthCheck | None
) -> PublishedHealthCheck:
    annotations = {}
    if good is not None:
        annotations[_GOOD] = msgspec.json.encode(good.wire(), order="sorted").decode()
    if withheld is not None:
        annotations[_WITHHELD] = msgspec.json.encode(withheld).decode()
    return PublishedHealthCheck(check, withheld, annotations)


def _accepted(settings: WorkerSettings, observed: Observed) -> bool:
    """A worker runs these settings, and none refuses their payload."""
    reports = [pod.stream.report.configuration for pod in observed.workers if pod.stream.report is not None]
    runs = any(
        said.state == ConfigurationState.RESOLVED and said.settings_hash == settings.hash for said in reports
    )
    return runs and not any(_refusal(pod, settings.hash) for pod in observed.workers)


def _refusal(pod: Pod, settings_hash: str) -> Problem | None:
    """Why the worker refuses the spec's payload in these settings; None where it does not."""
    said = pod.stream.report.configuration if pod.stream.report is not None else None
    if said is None or said.state != ConfigurationState.REJECTED or said.settings_hash != settings_hash:
        return None
    return next(
        (
            problem
            for problem in said.problems
            if problem.reason == Reason.INVALID_PAYLOAD and problem.source == PayloadSource.SPEC
        ),
        None,
    )


def _newest(deployment: Object, observed: Observed) -> list[Pod]:
    """Pods of the template that the spec asks for. What older ones refuse, these may answer."""
    live = observed.child("Deployment", deployment["metadata"]["name"])
    if live is None or differs(deployment["spec"]["template"], live["spec"]["template"]):
        return []
    revision = str((live["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))
    newest = observed.template_hashes.get((deployment["metadata"]["name"], revision))
    return [
        pod
        for pod in observed.workers
        if pod.template_hash == newest and pod.running and not pod.terminating and not pod.stream.disconnected
    ]


def _annotation(live: Object, name: str) -> str:
    return str((live["metadata"].get("annotations") or {}).get(name, ""))


def _settings(live: Object | None) -> WorkerSettings | None:
    try:
        return WorkerSettings.model_validate_json((live or {})["data"][names.SETTINGS_FILE])
    except (KeyError, ValueError):
        return None


def _good(live: Object) -> HealthCheckSettings | None:
    try:
        return HealthCheckSettings.model_validate_json(_annotation(live, _GOOD))
    except ValueError:  # none, or changed by somebody
        return None


def _withheld(live: Object) -> WithheldHealthCheck | None:
    try:
        return msgspec.json.decode(_annotation(live, _WITHHELD), type=WithheldHealthCheck)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None

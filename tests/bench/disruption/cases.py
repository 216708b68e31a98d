"""The disruptions, each one applied alone while callers send requests.

``disrupt`` is a function of the subject. It returns when the disruption is over.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.e2e.conftest import SYSTEM, Cluster, eventually, worker_image
from tests.e2e.node_processes import signal_python
from tests.project_cache import CACHE

from .subjects import Subject

__all__ = ["CASES", "Case", "remove_second_node", "wait_healthy"]

STALL_SECONDS: Final = 45
"""Longer than a caller waits: a request that hangs fails."""
Step = Callable[[Subject], Any]


@dataclass(frozen=True)
class Case:
    """``prepare`` and ``undo`` run outside of the measured time.

    ``quick``: part of ``make test``; ``operator``: needs an operator, so it has no reference.
    """

    name: str
    disrupt: Step
    prepare: Step = field(default=lambda subject: None)
    undo: Step = field(default=lambda subject: None)
    quick: bool = False
    operator: bool = False


def pod_name(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def wait_healthy(subject: Subject, workers: int = 2, frontends: int = 2, seconds: float = 300) -> None:
    """Wait until exactly these numbers of pods exist, and all are ready."""
    for list_pods, count in ((subject.workers, workers), (subject.frontends, frontends)):
        eventually(
            lambda find=list_pods: [is_ready(pod) for pod in find()],  # type: ignore[misc]
            lambda ready, count=count: ready == [True] * count,  # type: ignore[misc]
            seconds,
            1.0,
        )


def wait_rolled_out(subject: Subject, deployment: str, seconds: float = 300) -> None:
    subject.cluster.kubectl(
        "rollout", "status", f"deployment/{deployment}", f"--timeout={seconds}s", timeout=seconds + 30
    )
    wait_healthy(subject)


def stop_engine(subject: Subject) -> None:
    pod = pod_name(subject.workers()[0])
    subject.cluster.signal_engine(pod, "SIGSTOP")
    try:
        time.sleep(STALL_SECONDS)
    finally:
        subject.cluster.signal_engine(pod, "SIGCONT")


def kill_engine(subject: Subject) -> None:
    subject.cluster.signal_engine(pod_name(subject.workers()[0]), "SIGKILL")
    settle(subject)


def kill_worker(subject: Subject) -> None:
    """Kill the worker's main process from this machine, because it is PID 1 of plain Dynamo's container."""
    pod = pod_name(subject.workers()[0])
    signal_python(signal.SIGKILL, subject.cluster.namespace, pod, "vllmendpoint_worker", "dynamo.vllm")
    settle(subject)


def settle(subject: Subject) -> None:
    """Wait until a failure is noticed and its pod is ready again."""
    eventually(
        lambda: [is_ready(pod) for pod in subject.workers()], lambda ready: ready != [True, True], 30, 0.2
    )
    wait_healthy(subject)


def delete_worker(subject: Subject) -> None:
    subject.cluster.kubectl("delete", "pod", pod_name(subject.workers()[0]), timeout=150)
    wait_healthy(subject)


def delete_frontend(subject: Subject) -> None:
    subject.cluster.kubectl("delete", "pod", pod_name(subject.frontends()[0]), timeout=180)
    wait_healthy(subject)


def restart_frontends(subject: Subject) -> None:
    subject.restart_frontends(f"{time.time():.0f}")
    time.sleep(2)
    wait_rolled_out(subject, subject.frontends_deployment)


def change_model_card(subject: Subject) -> None:
    subject.change_model_card(384)
    time.sleep(2)
    wait_rolled_out(subject, subject.workers_deployment, 600)


def change_model_card_back(subject: Subject) -> None:
    subject.change_model_card(512)
    time.sleep(2)
    wait_rolled_out(subject, subject.workers_deployment, 600)


def load_other_image(subject: Subject) -> None:
    """The same image by another tag, so that the pods are replaced and the texts stay the same."""
    del subject
    image = worker_image()
    for command in (["buildah", "tag", image, _other_image()], ["cluster", "load", _other_image()]):
        subprocess.run(command, check=True, capture_output=True, timeout=180)


def _other_image() -> str:
    return f"{worker_image().rpartition(':')[0]}:disruption"


def change_image(subject: Subject) -> None:
    subject.change_image(_other_image())
    time.sleep(2)
    wait_rolled_out(subject, subject.workers_deployment, 600)


def scale_down(subject: Subject) -> None:
    subject.scale(1)
    wait_healthy(subject, workers=1)


def scale_up(subject: Subject) -> None:
    subject.scale(2)
    wait_healthy(subject)


SECOND_NODE: Final = "second"


def _cluster_command(*arguments: str) -> None:
    command = [str(CACHE / "bin/cluster"), "node", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def use_second_node(subject: Subject) -> None:
    """Add a node, and move one worker and one frontend to it."""
    cluster = subject.cluster
    (first,) = (str(node["metadata"]["name"]) for node in cluster.get("nodes")["items"])
    _cluster_command("add", SECOND_NODE)
    cluster.kubectl("cordon", first)
    try:
        for pods in (subject.workers(), subject.frontends()):
            cluster.kubectl("delete", "pod", pod_name(pods[0]), timeout=180)
        wait_healthy(subject)
    finally:
        cluster.kubectl("uncordon", first)


def drain_node(subject: Subject) -> None:
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s")
    nodes = subject.cluster.get("nodes")["items"]
    second = next(n for n in map(pod_name, nodes) if SECOND_NODE in n)
    subject.cluster.kubectl("drain", second, *options, timeout=330)
    wait_healthy(subject)


def remove_second_node(subject: Subject | None = None) -> None:
    del subject
    _cluster_command("remove", SECOND_NODE)


def _operator_pods(cluster: Cluster) -> list[dict[str, Any]]:
    system = Cluster(cluster.kubeconfig, SYSTEM)
    return list(system.get("pods", "-l", "app.kubernetes.io/name=vllmendpoint-operator")["items"])


def restart_operator(subject: Subject) -> None:
    system = Cluster(subject.cluster.kubeconfig, SYSTEM)
    for pod in _operator_pods(subject.cluster):
        system.kubectl("delete", "pod", pod_name(pod), timeout=120)
    eventually(
        lambda: [is_ready(pod) for pod in _operator_pods(subject.cluster)],
        lambda ready: bool(ready) and all(ready),
        120,
    )


def kill_operator_during_rollout(subject: Subject) -> None:
    system = Cluster(subject.cluster.kubeconfig, SYSTEM)
    subject.change_model_card(448)
    time.sleep(1)
    for pod in _operator_pods(subject.cluster):
        system.kubectl("delete", "pod", pod_name(pod), "--grace-period=0", "--force", timeout=120)
    time.sleep(2)
    wait_rolled_out(subject, subject.workers_deployment, 600)


CASES: Final = (
    Case("engine stopped (SIGSTOP)", stop_engine, undo=wait_healthy, quick=True),
    Case("engine killed (SIGKILL)", kill_engine, quick=True),
    Case("worker process killed", kill_worker),
    Case("worker pod deleted", delete_worker, quick=True),
    Case("frontend pod deleted", delete_frontend, quick=True),
    Case("frontend rollout", restart_frontends),
    Case("rollout of another model card", change_model_card, undo=change_model_card_back),
    Case("rollout of another image", change_image, load_other_image),
    Case("node drained", drain_node, use_second_node, remove_second_node),
    Case("scaled from 2 to 1", scale_down, undo=scale_up, quick=True),
    Case("operator restarted", restart_operator, operator=True),
    Case(
        "operator killed in a rollout",
        kill_operator_during_rollout,
        undo=change_model_card_back,
        operator=True,
    ),
)

"""The measured operators: ours, and a minimal one that uses creates, or server-side applies as ours does."""

import json
import re
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.project_cache import BIN
from vllmendpoint_api import VLLMEndpointSpec
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.planner import plan

from .control_plane import ControlPlane
from .machine import Process, until

__all__ = ["SUBJECTS", "SYSTEM", "Subject", "body", "settings_hash"]

SYSTEM: Final = "vllmendpoint-system"
_IMAGE: Final = "registry.example/worker:1"
_METRICS_PORT: Final = 8080


def body(namespace: str, name: str, *, frontend: bool = True) -> dict[str, Any]:
    """The manifest of an endpoint."""
    spec: dict[str, Any] = {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}}
    if not frontend:
        spec["frontend"] = {"mode": "None"}
    return {
        "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
        "kind": "VLLMEndpoint",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def _plan(*, frontend: bool) -> Plan:
    manifest = body("namespace-placeholder", "name-placeholder", frontend=frontend)
    spec = VLLMEndpointSpec.model_validate(manifest["spec"])
    endpoint = Endpoint("namespace-placeholder", "name-placeholder", "", 1, spec, None)
    labels = {"app.kubernetes.io/name": "vllmendpoint-operator"}
    options = Options(
        worker_image=_IMAGE, frontend_image=_IMAGE, operator_namespace=SYSTEM, operator_labels=labels
    )
    return plan(endpoint, Observed(now=datetime.now(UTC)), options)


def settings_hash() -> str:
    """The settings hash that a worker of the endpoint reports."""
    return _plan(frontend=True).settings.hash


def children(*, frontend: bool) -> list[dict[str, Any]]:
    """The children that the operator creates for the endpoint, without owner references."""
    found = []
    for child in _plan(frontend=frontend).children:
        metadata = {key: value for key, value in child["metadata"].items() if key != "ownerReferences"}
        found.append({**child, "metadata": metadata})
    return found


class Subject:
    """An operator. ``agents``: prefixes of its user agents in the audit log."""

    def __init__(self, name: str, agents: tuple[str, ...], command: Callable[..., list[str | Path]]) -> None:
        self.name, self.agents, self._command = name, agents, command

    def start(self, plane: ControlPlane, *, frontend: bool = True, number: int = 0) -> Process:
        """``number`` distinguishes processes that run at the same time."""
        return plane.start(self.name, *self._command(plane, frontend, number))

    @staticmethod
    def reconciles(number: int = 0) -> float:
        """Number of reconciles so far, from its metrics. A scrape uses CPU of the process."""
        with urllib.request.urlopen(f"http://127.0.0.1:{_METRICS_PORT + 2 * number}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(r"^\w+_reconcile_total{.*} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def until_working(self, process: Process, number: int = 0) -> None:
        """Wait until the operator leads, and has listed all watched objects."""
        message = "every watched kind is listed" if self.name == "ours" else "Starting workers"
        until(lambda: process.has_logged(message), f"{self.name} works")


def _ours(plane: ControlPlane, frontend: bool, number: int) -> list[str | Path]:
    flags = {
        "worker-image": _IMAGE,
        "frontend-image": _IMAGE,
        "namespace": SYSTEM,
        "kubeconfig": plane.kubeconfig,
        "identity": f"bench-{number}",
        "bind-address": "127.0.0.1",
        "metrics-port": _METRICS_PORT + 2 * number,
        "health-port": _METRICS_PORT + 2 * number + 1,
    }
    return [
        BIN.parent / "operator/bin/python",
        "-m",
        "vllmendpoint_operator",
        *(f"--{key}={value}" for key, value in flags.items()),
    ]


def _ideal_apply(plane: ControlPlane, frontend: bool, number: int) -> list[str | Path]:
    return [*_ideal(plane, frontend, number), "--apply"]


def _ideal(plane: ControlPlane, frontend: bool, number: int) -> list[str | Path]:
    described = plane.folder / "children.json"
    described.write_text(json.dumps(children(frontend=frontend)))
    return [
        BIN / "bench-ideal",
        f"--kubeconfig={plane.kubeconfig}",
        f"--children={described}",
        f"--metrics=127.0.0.1:{_METRICS_PORT + 2 * number}",
    ]


SUBJECTS: Final = {
    "ours": Subject("ours", ("Python/", "kopf/"), _ours),
    "ideal": Subject("ideal", ("ideal",), _ideal),
    "ideal-apply": Subject("ideal-apply", ("ideal",), _ideal_apply),
}

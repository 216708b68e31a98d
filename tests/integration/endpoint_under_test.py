"""One endpoint of a test with its simulated kubelet and workers."""

import itertools
import json
import os
from typing import Any

from tests.integration.api_server import MANAGED, Api, Object
from tests.integration.fake_worker import Frontend, ReportServer, Worker
from tests.integration.polling import until

_numbers = itertools.count(1)


class EndpointUnderTest:
    """One endpoint of a test, its simulated kubelet and its workers."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self.api, self.namespace, self.name = api, namespace, name
        self.started: list[ReportServer] = []

    @property
    def workers(self) -> list[Worker]:
        """Those that were started."""
        return [server for server in self.started if isinstance(server, Worker)]

    @property
    def frontends(self) -> list[Frontend]:
        """Those that were started."""
        return [server for server in self.started if isinstance(server, Frontend)]

    def create(self, **spec: Any) -> "EndpointUnderTest":
        body = {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}, **spec}
        self.api.create("VLLMEndpoint", self.namespace, self.name, spec=body)
        return self

    def patch(self, **body: Any) -> Object:
        return self.api.patch("VLLMEndpoint", self.namespace, self.name, body)

    def get(self) -> Object:
        return self.api.call("GET", self.api.path("VLLMEndpoint", self.namespace, self.name))

    def child(self, kind: str, suffix: str = "") -> Object | None:
        return self.api.get(kind, self.namespace, self.name + suffix)

    def condition(self, kind: str) -> Object:
        conditions = self.get().get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def worker_image(self) -> str:
        """The image in the workers' Deployment, or an empty string without a Deployment."""
        deployment = self.child("Deployment", "-workers")
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"]) if deployment else ""

    def until(self, kind: str, *expected: str, seconds: float = 20) -> Object:
        """Wait until the condition has this status and, if given, this reason."""

        def holds() -> Object | None:
            found = self.condition(kind)
            return found if (found.get("status"), found.get("reason"))[: len(expected)] == expected else None

        found: Object = until(holds, lambda: f"{kind} {expected}: {self.get().get('status')}", seconds)
        return found

    def events(self, reason: str) -> list[Object]:
        return [
            event
            for event in self.api.all("Event", self.namespace)
            if event["involvedObject"]["name"] == self.name and event["reason"] == reason
        ]

    def until_event(self, reason: str, times: int = 1) -> None:
        """Wait for that many Events. An Event follows the status write that it reports."""
        until(lambda: len(self.events(reason)) >= times, lambda: f"{times} Events {reason}: {self.get()}")
        assert len(self.events(reason)) == times

    def owned(self) -> list[Object]:
        uid = self.get()["metadata"]["uid"]
        return [
            {**obj, "kind": kind}
            for kind in MANAGED
            for obj in self.api.all(kind, self.namespace)
            if any(owner["uid"] == uid for owner in obj["metadata"].get("ownerReferences", []))
        ]

    def pods(self, component: str = "worker") -> list[Object]:
        labels = {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/component": component}
        return [
            pod
            for pod in self.api.all("Pod", self.namespace)
            if labels.items() <= pod["metadata"].get("labels", {}).items()
        ]

    def set_pod_status(
        self, pod: Object, *, ready: bool = True, address: str = "127.0.0.1", **main: Any
    ) -> None:
        container = {
            "name": "main",
            "image": "i",
            "imageID": "i",
            "ready": ready,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            **main,
        }
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            # Long enough ago for the Deployment's minReadySeconds.
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ],
            "containerStatuses": [container],
        }
        path = self.api.path("Pod", self.namespace, pod["metadata"]["name"])
        self.api.call("PATCH", f"{path}/status", {"status": status}, as_="merge")

    def start_all(self, count: int = 1) -> list[Worker]:
        """Make the frontend and that many workers ready; return the workers, which serve reports."""
        for pod in until(lambda: self.pods("frontend"), "frontend pods"):
            self.start_frontend(pod)
        pods = until(lambda: (found := self.pods()) and len(found) == count and found, f"{count} workers")
        return [self.start_worker(pod) for pod in pods]

    def start_worker(self, pod: Object, *, uid: str = "", ready: bool = True) -> Worker:
        settings = self.child("ConfigMap", "-settings")
        assert settings is not None
        hash_ = json.loads(settings["data"]["settings.json"])["hash"]
        address = _next_address()
        worker = Worker(address, uid or pod["metadata"]["uid"], hash_)
        self.started.append(worker)
        self.set_pod_status(pod, ready=ready, address=address)
        return worker

    def start_frontend(self, pod: Object, *, ready: bool = True) -> Frontend:
        """Start the frontend, which serves reports. One that is not ready lacks only a route."""
        address = _next_address()
        frontend = Frontend(address, pod["metadata"]["uid"])
        self.started.append(frontend)
        if not ready:
            frontend.send_report(ready=False, accepted=[], message="No worker is discovered")
        self.set_pod_status(pod, ready=ready, address=address)
        return frontend


def _next_address() -> str:
    """Each test process uses its own range of addresses."""
    number = next(_numbers)
    return f"127.{os.getpid() % 250 + 2}.{number // 200}.{number % 200 + 1}"

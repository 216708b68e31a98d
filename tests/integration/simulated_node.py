"""Simulates the kubelet and the workers of one endpoint: pods run, serve and apply new settings."""

import contextlib
import json
from collections.abc import Callable

from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.fake_worker import Worker
from tests.integration.polling import until


class SimulatedNode:
    def __init__(self, endpoint: EndpointUnderTest) -> None:
        self.endpoint = endpoint
        self.workers: dict[str, Worker] = {}
        """Workers by pod UID."""

    def run(self, done: Callable[[], bool] | None = None, seconds: float = 30) -> None:
        """Run until ``done``, or by default until the endpoint is Ready at its newest generation."""
        check = done or self.is_ready

        def step() -> bool:
            self._step()
            return check()

        until(step, lambda: self.endpoint.get().get("status"), seconds)

    def is_ready(self) -> bool:
        found = self.endpoint.get()
        status = found.get("status", {})
        ready = [c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"]
        return ready == ["True"] and status["observedGeneration"] == found["metadata"]["generation"]

    def _step(self) -> None:
        settings = self.endpoint.child("ConfigMap", "-settings")
        if settings is None:
            return
        # A pod may be deleted between the list and the patch.
        with contextlib.suppress(LookupError):
            for pod in self.endpoint.pods("frontend"):
                if "podIP" not in pod.get("status", {}):
                    self.endpoint.start_frontend(pod)
            for pod in (*self.endpoint.pods(), *self.endpoint.pods("prefill")):
                if pod["metadata"]["uid"] not in self.workers:
                    self.workers[pod["metadata"]["uid"]] = self.endpoint.start_worker(pod)
        newest = json.loads(settings["data"]["settings.json"])["hash"]
        for worker in self.workers.values():
            if worker.report["configuration"]["settingsHash"] != newest:
                worker.send_report(configuration__settingsHash=newest)

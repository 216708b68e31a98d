"""Kubelet and workers of one endpoint: its pods run, serve, and take in the newest settings."""

import contextlib
import json
from collections.abc import Callable

from tests.integration.conftest import Space
from tests.integration.fake_worker import Worker
from tests.integration.waiting import until


class SimulatedNode:
    def __init__(self, endpoint: Space) -> None:
        self.endpoint = endpoint
        self.workers: dict[str, Worker] = {}
        """By the pod's UID."""

    def run(self, done: Callable[[], bool] | None = None, seconds: float = 30) -> None:
        """Until ``done``; without it, until the endpoint is Ready at its newest generation."""
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
        # A pod may go, and its workers' settings with it, between the look and the word.
        with contextlib.suppress(LookupError):
            for pod in self.endpoint.pods("frontend"):
                if "podIP" not in pod.get("status", {}):
                    self.endpoint.play(pod)
            for pod in self.endpoint.pods():
                if pod["metadata"]["uid"] not in self.workers:
                    self.workers[pod["metadata"]["uid"]] = self.endpoint.work(pod)
        newest = json.loads(settings["data"]["settings.json"])["hash"]
        for worker in self.workers.values():
            if worker.report["configuration"]["settingsHash"] != newest:
                worker.say(configuration__settingsHash=newest)

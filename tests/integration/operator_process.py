"""The operator as a process."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integration.fake_worker import REPORT_PORT
from tests.integration.polling import until


class Operator:
    """``python -m vllmendpoint_operator``, or another ``program``, for one namespace."""

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        log: Path,
        program: Sequence[str | Path] = ("-m", "vllmendpoint_operator"),
        **flags: Any,
    ) -> None:
        self.log = log
        flags = {
            "worker-image": "registry.example/worker:1",
            "frontend-image": "registry.example/frontend:1",
            "worker-role-name": "vllmendpoint-operator-worker",  # the only one that the chart allows
            "namespaces": namespace,
            "namespace": namespace,
            "kubeconfig": kubeconfig,
            "lease-seconds": 15,
            "metrics-port": 0,
            "health-port": 0,
            "bind-address": "127.0.0.1",
            "report-port": REPORT_PORT,
            **{name.replace("_", "-"): value for name, value in flags.items()},
        }
        command = [sys.executable, *program]
        command += [f"--{name}={value}" for name, value in flags.items()]
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def text(self) -> str:
        return self.log.read_text()

    def logged(self, message: str, **fields: Any) -> list[dict[str, Any]]:
        """The log lines that begin with ``message`` and have these fields."""
        lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [
            line for line in lines if line["message"].startswith(message) and fields.items() <= line.items()
        ]

    def until_leading(self, seconds: float = 30) -> "Operator":
        until(
            lambda: "every watched kind is listed" in self.text() or self.process.poll() is not None,
            self.text,
            seconds,
        )
        assert self.process.poll() is None, self.text()
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

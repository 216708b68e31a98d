"""Real processes of our frontend and of Dynamo workers without an engine, on loopback, ended by PID."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.free_port import free_port
from vllmendpoint_api import FrontendReport, RouteReport

from .conftest import LOOPBACK, ROOT

__all__ = ["FrontendProcess", "Mocker", "PlainWorker"]

PREFIX = "team_"
"""Prefix of the Dynamo namespaces that the frontend serves."""


class _Process:
    def __init__(
        self, folder: Path, name: str, module: str, arguments: Sequence[str], **environ: str
    ) -> None:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DYN_", "VLLM", "SAGEMAKER"))
        }
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        self.folder = folder
        self.log_file = folder / f"{name}.log"
        self.environ = kept | LOOPBACK | {"DYN_FILE_KV": str(folder / "discovery")} | environ
        self.inside: Sequence[str] = ()
        """Prefix of the command, which runs it in a network namespace."""
        self._command = [sys.executable, "-m", module, *arguments]
        self.started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            command = [*self.inside, *self._command]
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, cwd=ROOT)
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # also ends a frozen process
            self.process.wait(20)


class PlainWorker(_Process):
    """``python -m tests.worker.plain_worker``."""

    def __init__(
        self, folder: Path, name: str, model: Path, namespace: str, block_size: int = 16, **environ: str
    ) -> None:
        arguments = [str(model), namespace, str(block_size)]
        super().__init__(folder, name, "tests.worker.plain_worker", arguments, **environ)

    @property
    def instance_id(self) -> str:
        match = re.search(r"^instance (\d+)$", self.log(), re.MULTILINE)
        return match[1] if match else ""


class Mocker(_Process):
    """Dynamo's simulated engine, which publishes KV events. ``revision``: end of its Dynamo namespace.

    ``role``: ``agg``, ``prefill`` or ``decode``.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        ranks: int = 1,
        *,
        name: str = "mocker",
        role: str = "agg",
        revision: str = "r1",
    ) -> None:
        component = "prefill" if role == "prefill" else "backend"
        arguments = ["--model-path", str(model), "--model-name", "plain", "--block-size", "16"]
        arguments += ["--endpoint", f"dyn://{PREFIX}{revision}.{component}.generate"]
        arguments += ["--data-parallel-size", str(ranks), "--disaggregation-mode", role]
        if role == "prefill":
            arguments += ["--bootstrap-ports", str(free_port())]
        super().__init__(folder, name, "dynamo.mocker", arguments, DYN_SYSTEM_PORT="0")


class FrontendProcess(_Process):
    """``python -m vllmendpoint_worker.frontend``. ``health_check``: that of its ``settings.json``."""

    def __init__(
        self,
        folder: Path,
        health_check: dict[str, Any],
        arguments: Sequence[str] = (),
        *,
        name: str = "frontend",
        **environ: str,
    ) -> None:
        self.port, self.report_port = free_port(), free_port()
        settings = folder / f"{name}-settings"
        settings.mkdir()
        (settings / "settings.json").write_text(json.dumps({"healthCheck": health_check}))
        given = {
            "DYN_HTTP_HOST": "127.0.0.1",
            "DYN_NAMESPACE_PREFIX": PREFIX,
            "DYN_TCP_RPC_PORT": str(free_port()),
            "VLLMENDPOINT_REPORT_PORT": str(self.report_port),
            "VLLMENDPOINT_SETTINGS_DIR": str(settings),
        }
        command = ["--http-port", str(self.port), *arguments]
        super().__init__(folder, name, "vllmendpoint_worker.frontend", command, **(given | environ))

    def get(self, path: str, *, method: str = "GET") -> tuple[int, bytes]:
        """A response of the report port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.report_port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def request(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """A response of the HTTP server to a client."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            given = {"content-type": "application/json", **(headers or {})}
            connection.request("POST", path, json.dumps(body), given)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def worker_of(self, prompt: str, max_tokens: int = 1, **headers: str) -> str:
        """Instance ID of the worker that answers a client's request, which must succeed."""
        body = {"model": "plain", "prompt": prompt, "max_tokens": max_tokens}
        extra = {"nvext": {"extra_fields": ["worker_id"]}}
        status, answer = self.request("/v1/completions", body | extra, headers)
        assert status == 200, answer
        return str(json.loads(answer)["nvext"]["worker_id"]["decode_worker_id"])

    def complete(self, **body: Any) -> tuple[int, str]:
        return self.request("/v1/completions", {"prompt": "hi", **body})

    def report(self) -> FrontendReport:
        return FrontendReport.model_validate_json(self.get("/status")[1])

    def route(self, instance_id: str) -> RouteReport:
        (route,) = [route for route in self.report().routes if route.instance_id == instance_id]
        return route

    def until(self, condition: Callable[[FrontendReport], Any], seconds: float) -> float:
        """Seconds until the report fulfils ``condition``."""
        began = time.monotonic()
        last: FrontendReport | str = "no answer"
        while time.monotonic() - began < seconds:
            assert self.process is not None
            assert self.process.poll() is None, f"the frontend ended: {self.log()[-2000:]}"
            with contextlib.suppress(OSError):
                last = self.report()
                if condition(last):
                    return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"not fulfilled within {seconds} s: {last!r} {self.log()[-2000:]}")

    def memory_mib(self) -> int:
        """Proportional set size."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        match = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
        assert match is not None
        return int(match[1]) // 1024

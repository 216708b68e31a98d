"""Starts Dynamo's frontend in front of a worker."""

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.free_port import free_port

from .conftest import WorkerProcess, wait

__all__ = ["request_through_frontend"]


def request_through_frontend(
    worker: WorkerProcess, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Any:
    """The first answer of Dynamo's frontend with status 200, within 60 s of its start."""
    sent = {"content-type": "application/json", **(headers or {})}
    port = free_port()
    environ = worker.environ | {"DYN_SYSTEM_PORT": "-1", "DYN_TCP_RPC_PORT": str(free_port())}
    with (worker.folder / "frontend.log").open("wb") as log:
        frontend = subprocess.Popen(
            [sys.executable, "-m", "dynamo.frontend", "--http-port", str(port), "--http-host", "127.0.0.1"],
            env=environ, stdout=log, stderr=log,
        )  # fmt: skip
    answers: list[Any] = []

    def is_answered() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("POST", path, json.dumps(body), sent)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                answers.append(json.loads(text))
        return bool(answers)

    try:
        wait(is_answered, 60.0)
    finally:
        frontend.kill()
        frontend.wait(20)
    return answers[0]

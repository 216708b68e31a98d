"""Continuous load from users, and continuous probes and health checks."""

import contextlib
import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.worker.conftest import WorkerProcess

CLIENT_TIMEOUT = "client timeout"


def verdicts(worker: WorkerProcess, since: int = 0) -> list[str]:
    """All verdicts in the log after character ``since``. The watch stream may skip short ones."""
    return re.findall(r"Verdict changed: from=\S+ to=(\S+)", worker.log()[since:])


class Users:
    """Users who send one request after the other for the duration of the ``with``; then open requests are
    closed.

    ``crowd`` has number of users, request body and client timeout in seconds. A number as the prompt means
    that many tokens, random in each request, because vLLM caches the results of a prompt."""

    def __init__(
        self,
        worker: WorkerProcess,
        crowd: Sequence[tuple[int, dict[str, Any], float]],
        path: str = "/v1/completions",
    ) -> None:
        self.statuses: Counter[int | str] = Counter()
        self._port = worker.ports["http"]
        self._path = path
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._threads = [
            threading.Thread(target=self._send_all, args=(body, timeout), daemon=True)
            for many, body, timeout in crowd
            for _ in range(many)
        ]

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    if connection.sock is not None:
                        connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)

    @property
    def waiting(self) -> int:
        """Number of users that wait for a response now."""
        with self._lock:
            return len(self._open)

    def _send_all(self, body: dict[str, Any], timeout: float) -> None:
        while not self._stop.is_set():
            request = {"model": "toy"} | body
            if isinstance(length := body["prompt"], int):
                request["prompt"] = random.choices(range(10, 1000), k=length)
            status = self._send(json.dumps(request), timeout)
            if self._stop.is_set():
                return
            with self._lock:
                self.statuses[status] += 1
            if status not in (200, CLIENT_TIMEOUT):
                time.sleep(0.1)

    def _send(self, body: str, timeout: float) -> int | str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        with self._lock:
            self._open.add(connection)
        try:
            connection.request("POST", self._path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except TimeoutError:
            return CLIENT_TIMEOUT
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        return answer.status


class HealthPoller:
    """Requests probes, and routes that must return 200, in threads for the duration of the ``with``.

    ``every``: seconds between two probes. ``slowest``: maximum seconds of a response.
    """

    ROUTES = (("report", "/ready"), ("http", "/ping"), ("system", "/health"))

    def __init__(self, worker: WorkerProcess, every: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        self._worker = worker
        self._every = every
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._probe, self._poll)]

    def __enter__(self) -> "HealthPoller":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _probe(self) -> None:
        while not self._stop.wait(self._every):
            status, body = self._worker.request("report", "/probe", {}, method="POST", seconds=60.0)
            self.outcomes[json.loads(body)["outcome"] if status == 200 else str(status)] += 1

    def _poll(self) -> None:
        while not self._stop.wait(1.0):
            for port, path in self.ROUTES:
                began = time.monotonic()
                try:
                    status = self._worker.request(port, path, seconds=60.0)[0]
                except OSError as error:
                    self.failures.append(f"{path}: {type(error).__name__}")
                    continue
                self.slowest = max(self.slowest, time.monotonic() - began)
                if status != 200:
                    self.failures.append(f"{path}: {status}")

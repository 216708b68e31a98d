"""What a worker said over a while, and users who never stop asking."""

import contextlib
import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.worker.conftest import WorkerProcess
from vllmendpoint_api import WorkerReport

HUNG_UP = "hung up"


class Watch:
    """The watch stream, read by a thread, with when each line came (monotonic seconds). ``each`` is called
    there.
    """

    def __init__(self, worker: WorkerProcess, each: Callable[[WorkerReport], object] = lambda report: None):
        self.lines: list[tuple[float, WorkerReport]] = []
        self._each = each
        self._socket = socket.create_connection(("127.0.0.1", worker.ports["report"]), timeout=60)
        self._socket.sendall(b"GET /status?watch=true HTTP/1.1\r\nHost: worker\r\n\r\n")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as stream:
            while stream.readline().strip():
                pass
            for line in stream:
                report = WorkerReport.model_validate(json.loads(line))
                self.lines.append((time.monotonic(), report))
                self._each(report)

    @property
    def unready(self) -> list[str]:
        """Why it was not ready, each time it said so."""
        return [f"{line.verdict.state}: {line.verdict.message}" for _, line in self.lines if not line.ready]


def verdicts(worker: WorkerProcess, since: int = 0) -> list[str]:
    """Every verdict that was come to, from that character of the log on; the stream may join two of them."""
    return re.findall(r"Verdict changed: from=\S+ to=(\S+)", worker.log()[since:])


class Users:
    """Users with different questions, each asking again when answered; ends with the ``with``, when those who
    wait hang up. ``crowd``: how many ask what, and after how many seconds they hang up. A prompt that is a
    number is so many tokens, each time others: vLLM keeps what it has computed of a prompt.
    """

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
            threading.Thread(target=self._keep_asking, args=(body, patience), daemon=True)
            for many, body, patience in crowd
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
    def asking(self) -> int:
        """How many wait for an answer now."""
        with self._lock:
            return len(self._open)

    def _keep_asking(self, body: dict[str, Any], patience: float) -> None:
        while not self._stop.is_set():
            asked = {"model": "toy"} | body
            if isinstance(length := body["prompt"], int):
                asked["prompt"] = random.choices(range(10, 1000), k=length)
            status = self._ask(json.dumps(asked), patience)
            if self._stop.is_set():
                return
            with self._lock:
                self.statuses[status] += 1
            if status not in (200, HUNG_UP):
                time.sleep(0.1)

    def _ask(self, body: str, patience: float) -> int | str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=patience)
        with self._lock:
            self._open.add(connection)
        try:
            connection.request("POST", self._path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except TimeoutError:
            return HUNG_UP
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        return answer.status


class Asking:
    """Asks for probes, and the routes that must say 200, again and again on threads; keeps what came.

    ``every``: seconds between two probes. ``slowest``: seconds that a route took at most.
    """

    ROUTES = (("report", "/ready"), ("http", "/ping"), ("system", "/health"))

    def __init__(self, worker: WorkerProcess, every: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.refusals: list[str] = []
        self.slowest = 0.0
        self._worker = worker
        self._every = every
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._probe, self._look)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _probe(self) -> None:
        while not self._stop.wait(self._every):
            status, body = self._worker.ask("report", "/probe", {}, method="POST", seconds=60.0)
            self.outcomes[json.loads(body)["outcome"] if status == 200 else str(status)] += 1

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            for port, path in self.ROUTES:
                began = time.monotonic()
                try:
                    status = self._worker.ask(port, path, seconds=60.0)[0]
                except OSError as error:
                    self.refusals.append(f"{path}: {type(error).__name__}")
                    continue
                self.slowest = max(self.slowest, time.monotonic() - began)
                if status != 200:
                    self.refusals.append(f"{path}: {status}")

"""A client of the worker's watch stream."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable

from vllmendpoint_api import WorkerReport

from .conftest import WorkerProcess


class ReportWatch:
    """Reads the watch stream in a thread for the duration of the ``with``."""

    def __init__(
        self, worker: WorkerProcess, on_report: Callable[[WorkerReport], object] = lambda report: None
    ) -> None:
        """``on_report`` is called in the thread."""
        self.lines: list[tuple[float, WorkerReport]] = []
        """Reports with their times of arrival in monotonic seconds."""
        self._on_report = on_report
        self._socket = socket.create_connection(("127.0.0.1", worker.ports["report"]), timeout=60)
        self._socket.sendall(b"GET /status?watch=true HTTP/1.1\r\nHost: worker\r\n\r\n")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "ReportWatch":
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
                self._on_report(report)

    @property
    def unready(self) -> list[str]:
        """Verdict and message of each report that is not ready."""
        return [f"{line.verdict.state}: {line.verdict.message}" for _, line in self.lines if not line.ready]

"""Workers and frontends as the operator sees them: report servers on loopback addresses."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPORT_PORT = 19091
"""All pods use this port, each on its own address; the operator has a flag for it."""


class ReportServer(ThreadingHTTPServer):
    """A report server on a loopback address that streams ``report`` and sends it again at every change."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, pod_uid: str, report: str) -> None:
        self.report = json.loads((Path(__file__).parent / report).read_text()) | {"podUid": pod_uid}
        self.raw: bytes | None = None
        self.connections = 0
        self.updated = threading.Condition()
        self.ended = False
        super().__init__((address, REPORT_PORT), _Stream)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def send_report(self, verdict: str = "", **changed: Any) -> None:
        with self.updated:
            if verdict:
                self.report["verdict"] |= {"state": verdict, "message": f"{verdict} (set by the test)"}
            for path, value in changed.items():
                outer, _, inner = path.partition("__")
                if inner:
                    self.report[outer][inner] = value
                else:
                    self.report[outer] = value
            self.updated.notify_all()

    def close_streams(self) -> None:
        """End every stream and stop listening."""
        self.ended = True
        with self.updated:
            self.updated.notify_all()
        self.shutdown()
        self.server_close()


class Worker(ReportServer):
    """A worker that generates."""

    def __init__(self, address: str, pod_uid: str, settings_hash: str) -> None:
        super().__init__(address, pod_uid, "report.json")
        self.send_report(configuration__settingsHash=settings_hash)


class Frontend(ReportServer):
    """A frontend that accepts every worker. The workers of the tests have no instance IDs."""

    def __init__(self, address: str, pod_uid: str) -> None:
        super().__init__(address, pod_uid, "frontend_report.json")


class _Stream(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        worker = self.server
        self.send_response(200)
        self.end_headers()
        worker.connections += 1
        with contextlib.suppress(OSError):
            while not worker.ended:
                with worker.updated:
                    self.wfile.write(worker.raw or json.dumps(worker.report).encode() + b"\n")
                    worker.updated.wait(2)

    def log_message(self, *_: Any) -> None:
        pass

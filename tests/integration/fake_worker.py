"""A worker as the operator sees it: a report server on a loopback address."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPORT_PORT = 19091
"""All workers use this port, each on its own address; the operator has a flag for it."""


class Worker(ThreadingHTTPServer):
    """A report server on a loopback address that streams ``report`` and sends it again at every change."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, pod_uid: str, settings_hash: str) -> None:
        self.report = json.loads((Path(__file__).parent / "report.json").read_text())
        self.report |= {"podUid": pod_uid}
        self.report["configuration"]["settingsHash"] = settings_hash
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


class _Stream(BaseHTTPRequestHandler):
    server: Worker

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

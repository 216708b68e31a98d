"""A worker as the operator sees it: a report port on a loopback address."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPORT_PORT = 19091
"""One for all: the operator has a flag for it, and each worker an address of its own."""


class Worker(ThreadingHTTPServer):
    """A worker's report port on a loopback address: streams ``report``, again at every change."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, pod_uid: str, settings_hash: str) -> None:
        self.report = json.loads((Path(__file__).parent / "report.json").read_text())
        self.report |= {"podUid": pod_uid}
        self.report["configuration"]["settingsHash"] = settings_hash
        self.raw: bytes | None = None
        self.connections = 0
        self.news = threading.Condition()
        self.ended = False
        super().__init__((address, REPORT_PORT), _Stream)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def say(self, verdict: str = "", **changed: Any) -> None:
        with self.news:
            if verdict:
                self.report["verdict"] |= {"state": verdict, "message": f"{verdict} says the test"}
            for path, value in changed.items():
                outer, _, inner = path.partition("__")
                if inner:
                    self.report[outer][inner] = value
                else:
                    self.report[outer] = value
            self.news.notify_all()

    def cut(self) -> None:
        """End every stream and listen no more."""
        self.ended = True
        with self.news:
            self.news.notify_all()
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
                with worker.news:
                    self.wfile.write(worker.raw or json.dumps(worker.report).encode() + b"\n")
                    worker.news.wait(2)

    def log_message(self, *_: Any) -> None:
        pass

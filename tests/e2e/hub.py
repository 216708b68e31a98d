"""A model hub with the API that Dynamo's downloader and vLLM use, for a model in a folder of this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["REVISION", "Hub", "serve_hub"]

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``team/toy`` to clients with the token; requests for ``team/<status>`` receive that status."""

    def __init__(self, address: str, folder: Path, token: str) -> None:
        super().__init__((address, 0), _Handler)
        self.url = f"http://{address}:{self.server_address[1]}"
        self.folder = folder
        self.token = token
        self.weights = threading.Event()
        """The weights are sent after it is set."""


@contextmanager
def serve_hub(address: str, folder: Path, token: str) -> Iterator[Hub]:
    """A running hub; ``folder`` has the model's files."""
    with Hub(address, folder, token) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.1,))
        thread.start()
        try:
            yield hub
        finally:
            hub.weights.set()
            hub.shutdown()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        model, _, route = self.path.removeprefix("/api/models").removeprefix("/team/").partition("/")
        if model.isdecimal():
            self._answer(int(model), b"{}")
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._answer(401, b"{}")
        elif route.startswith("resolve/"):
            self._file(self.server.folder / route.rpartition("/")[2])
        else:
            files = sorted(path for path in self.server.folder.iterdir() if path.is_file())
            about: Any = {
                "id": "team/toy",
                "sha": REVISION,
                "siblings": [{"rfilename": f.name} for f in files],
            }
            if route.startswith("tree/"):
                about = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": REVISION} for f in files
                ]
            self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _file(self, path: Path) -> None:
        """The whole file or a range: the downloader first requests one byte to get the size."""
        if not path.is_file():
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}
        if not (requested := self.headers.get("Range", "").removeprefix("bytes=")):
            return self._answer(200, content, headers)
        first, _, last = requested.partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        if path.suffix == ".safetensors" and len(part) > 1:
            self.server.weights.wait(120)
        return self._answer(206, part, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

"""A model hub on loopback with the API that huggingface_hub uses: ``team/toy`` at several revisions."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Files", "model_hub"]

Files = Mapping[str, bytes]


class _Server(ThreadingHTTPServer):
    def __init__(self, revisions: Mapping[str, Files]) -> None:
        super().__init__(("127.0.0.1", 0), _Hub)
        self.revisions = revisions
        self.commits = {name: f"{number:040}" for number, name in enumerate(revisions)}


@contextmanager
def model_hub(revisions: Mapping[str, Files]) -> Iterator[str]:
    """URL of the hub. ``revisions``: branch or tag -> path -> content. ``team/gated`` returns 403."""
    with _Server(revisions) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(5)


class _Hub(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        commits = self.server.commits
        if path.startswith(("/team/gated", "/api/models/team/gated")):
            return self._answer(403, b"{}")
        about, tree, file = (
            re.fullmatch(pattern, path)
            for pattern in (
                r"/api/models/team/toy/revision/(\w+)",
                r"/api/models/team/toy/tree/(\w+)",
                r"/team/toy/resolve/(\w+)/(.+)",
            )
        )
        revision = next((found[1] for found in (about, tree, file) if found), "")
        name = next((name for name, commit in commits.items() if revision in (name, commit)), None)
        if name is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.server.revisions[name]
        if about:
            siblings = [{"rfilename": each} for each in files]
            found = {"id": "team/toy", "sha": commits[name], "siblings": siblings, "private": False}
            return self._answer(200, json.dumps(found).encode())
        if tree:
            entries = [
                {"type": "file", "path": each, "size": len(content), "oid": f"{commits[name]}{each}"}
                for each, content in files.items()
            ]
            return self._answer(200, json.dumps(entries).encode())
        assert file
        headers = {"ETag": f'"{commits[name]}{file[2].replace("/", "-")}"', "X-Repo-Commit": commits[name]}
        return self._answer(200, files[file[2]], headers)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

"""Runs the operator and kills it at one of its requests.

``python killable_operator.py KILL_POINT <flags>``, where KILL_POINT is a file that the test writes while the
operator runs: ``{"at": 3, "when": "answered"}``. The operator then counts its requests to the API server,
except those of the lease and of watches, and exits at the third:

- ``answered``: after the response was read, before it is processed;
- ``sent``: two milliseconds after a write was sent. Only writes are counted.

The file is then replaced by one with the suffix ``.killed`` that contains the request.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import LEASE, Kind
from vllmendpoint_operator.main import main

WRITES: Final = ("apply", "create", "delete", "update")


class KillPoint:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._written_at = 0
        self._count = 0

    def is_due(self, verb: str) -> str:
        """When to exit during this request, or an empty string."""
        try:
            written_at, text = self._path.stat().st_mtime_ns, self._path.read_text()
        except FileNotFoundError:
            return ""
        if written_at != self._written_at:
            self._written_at, self._count = written_at, 0
        settings = json.loads(text)
        if settings["when"] == "sent" and verb not in WRITES:
            return ""
        self._count += 1
        return str(settings["when"]) if self._count == settings["at"] else ""

    def kill(self, what: str) -> None:
        self._path.unlink()
        self._path.with_suffix(".killed").write_text(what)
        os._exit(137)


def install(kill_point: KillPoint) -> None:
    """Let the client of the API server check the kill point at each request.

    It replaces a private method: no public method covers all requests, and a kill must hit between a response
    and its processing.
    """
    request = Kube._request

    @contextlib.asynccontextmanager
    async def killable(
        self: Kube, verb: str, kind: Kind, method: str, path: str, **more: Any
    ) -> AsyncIterator[Any]:
        what = f"{verb} {path}"
        due = "" if kind is LEASE or verb == "watch" else kill_point.is_due(verb)
        if due == "sent":
            asyncio.get_running_loop().call_later(0.002, kill_point.kill, what)
        try:
            async with request(self, verb, kind, method, path, **more) as response:
                yield response
        finally:
            if due:
                kill_point.kill(what)

    Kube._request = killable  # type: ignore[method-assign]


if __name__ == "__main__":
    install(KillPoint(Path(sys.argv.pop(1))))
    sys.exit(main())

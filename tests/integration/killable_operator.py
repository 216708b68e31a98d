"""Runs the operator and kills it at one of its requests.

``python killable_operator.py KILL_POINT <flags>``, where KILL_POINT is a file that the test writes while the
operator runs: ``{"at": 3, "when": "answered"}``. The operator then counts its requests to the API server,
except those of the lease and of watches, and exits at the third:

- ``answered``: after the response was read, before it is processed;
- ``sent``: two milliseconds after a write was sent. Only writes are counted.

The file is then replaced by one with the suffix ``.sprung`` that holds the request.
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
        self._laid = 0
        self._count = 0

    def is_due(self, verb: str) -> str:
        """When to exit during this request, or an empty string."""
        try:
            laid, text = self._path.stat().st_mtime_ns, self._path.read_text()
        except FileNotFoundError:
            return ""
        if laid != self._laid:
            self._laid, self._count = laid, 0
        set_for = json.loads(text)
        if set_for["when"] == "sent" and verb not in WRITES:
            return ""
        self._count += 1
        return str(set_for["when"]) if self._count == set_for["at"] else ""

    def spring(self, what: str) -> None:
        self._path.unlink()
        self._path.with_suffix(".sprung").write_text(what)
        os._exit(137)


def lay(trap: KillPoint) -> None:
    request = Kube._request

    @contextlib.asynccontextmanager
    async def killable(
        self: Kube, verb: str, kind: Kind, method: str, path: str, **more: Any
    ) -> AsyncIterator[Any]:
        what = f"{verb} {path}"
        due = "" if kind is LEASE or verb == "watch" else trap.is_due(verb)
        if due == "sent":
            asyncio.get_running_loop().call_later(0.002, trap.spring, what)
        try:
            async with request(self, verb, kind, method, path, **more) as response:
                yield response
        finally:
            if due:
                trap.spring(what)

    Kube._request = killable  # type: ignore[method-assign]


if __name__ == "__main__":
    lay(KillPoint(Path(sys.argv.pop(1))))
    sys.exit(main())

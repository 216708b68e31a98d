"""The load: locust in an environment of its own, and the records that its callers write."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .analysis import Record

__all__ = ["KINDS", "Kind", "Load", "running_load"]

LOCUST: Final = ("uvx", "--from", "locust==2.47.0", "locust")
"""Installed by uv outside of the project's environment: it replaces Python's sockets by gevent's."""
START_SECONDS: Final = 240
"""Until each caller has two answers, on a busy machine."""
STOP_SECONDS: Final = 50
"""For the requests in flight, whose callers wait for 40 s."""


@dataclass(frozen=True)
class Kind:
    """One kind of request and the number of callers that send it, each one request at a time."""

    name: str
    callers: int
    body: dict[str, Any]
    path: str = "/v1/completions"


def _kind(name: str, callers: int, tokens: int, *, stream: bool) -> Kind:
    body = {
        "model": "toy",
        "prompt": f"one two three {name}",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
        "ignore_eos": True,
    }
    return Kind(name, callers, body)


KINDS: Final = (
    _kind("short", 1, 16, stream=False),
    _kind("short-stream", 1, 16, stream=True),
    _kind("long", 1, 200, stream=False),
    _kind("long-stream", 2, 200, stream=True),
)


@dataclass
class Load:
    """A running load. ``records`` reads what has been recorded so far."""

    path: Path

    def records(self) -> list[Record]:
        return [Record(**json.loads(line)) for line in self.path.read_text().splitlines()]

    def wait_for(self, count: int, seconds: float) -> None:
        """Wait until each kind has ``count`` more answers. Raises AssertionError with the last record."""
        before = self._counts()
        end = time.monotonic() + seconds
        while any(now - was < count for now, was in zip(self._counts(), before, strict=True)):
            assert time.monotonic() < end, f"no answers: {self.records()[-1:]}"
            time.sleep(0.2)

    def _counts(self) -> list[int]:
        answered = [record.kind for record in self.records() if record.answered]
        return [answered.count(kind.name) for kind in KINDS]


@contextmanager
def running_load(base: str, folder: Path, kinds: Sequence[Kind] = KINDS) -> Iterator[Load]:
    """Callers send requests to ``base`` for the duration of the ``with``, and then finish those in flight."""
    folder.mkdir(parents=True, exist_ok=True)
    load = Load(folder / "records.jsonl")
    load.path.write_text("")
    callers = sum(kind.callers for kind in kinds)
    command = [*LOCUST, "--headless", "--host", base, "-u", str(callers), "-r", str(callers)]
    command += ["-f", str(Path(__file__).with_name("callers.py")), "--stop-timeout", str(STOP_SECONDS)]
    environment = os.environ | {
        "DISRUPTION_KINDS": json.dumps([asdict(kind) for kind in kinds]),
        "DISRUPTION_RECORDS": str(load.path),
    }
    with (
        (folder / "locust.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            load.wait_for(2, START_SECONDS)
            yield load
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS + 10)
            except subprocess.TimeoutExpired:
                process.kill()

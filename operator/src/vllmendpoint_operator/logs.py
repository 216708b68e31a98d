"""Structured logs: one JSON object a line, or plain text.

Every line of a reconcile carries ``endpoint`` (namespace/name) and ``reconcile`` (an id of that run), whoever
writes it.
"""

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

__all__ = ["configure", "reconciling"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(slots=True)
class _Run:
    endpoint: str
    reconcile: str
    """Empty once it is over: a stream that a reconcile opened lives on, and is its endpoint's."""


_RUN: ContextVar[_Run | None] = ContextVar("reconcile", default=None)


@contextmanager
def reconciling(key: tuple[str, str]) -> Iterator[None]:
    """What is logged within is of the endpoint ``key`` (namespace, name), and of one reconcile."""
    run = _Run("/".join(key), secrets.token_hex(4))
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)
        run.reconcile = ""


class _Context(logging.Filter):
    """On the handler, so that it sees the records of every logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (run := _RUN.get()) is not None:
            record.endpoint = run.endpoint
            if run.reconcile:
                record.reconcile = run.reconcile
        return True


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = [f"{name}={value}" for name in ("endpoint", "reconcile") if (value := vars(record).get(name))]
        return " ".join([super().format(record), *told])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{
                key: value
                for key, value in vars(record).items()
                if key not in _STANDARD and isinstance(value, str | int | float | bool)
            },
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str, style: str) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(_Context())
    handler.setFormatter(
        _Json() if style == "json" else _Text("%(asctime)s %(levelname)-7s %(name)s %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf warns at every start that it leaves the signals to us; its other warnings matter.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)

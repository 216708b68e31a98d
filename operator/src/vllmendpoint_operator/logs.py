"""Configures logging: one JSON object per line, or plain text.

Every line of a reconcile carries ``endpoint`` (namespace/name) and ``reconcile`` (the ID of the run), also
lines that libraries log.
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
"""Attributes of every log record. All others were passed in ``extra`` or added by :class:`_ContextFilter`."""


@dataclass(slots=True)
class _Run:
    endpoint: str
    """namespace/name"""
    reconcile_id: str
    """Empty after the reconcile. Tasks that it started keep this object in their context, so their later
    lines carry the endpoint only.
    """


_RUN: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def reconciling(key: tuple[str, str]) -> Iterator[None]:
    """Add the endpoint ``key`` (namespace, name) and a new run ID to all lines logged in this context."""
    run = _Run("/".join(key), secrets.token_hex(4))
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)
        run.reconcile_id = ""


class _ContextFilter(logging.Filter):
    """Adds the fields of the current reconcile to a record, and rejects none.

    It is attached to the handler, because a filter of a logger does not receive the records of its children.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if (run := _RUN.get()) is not None:
            record.endpoint = run.endpoint
            if run.reconcile_id:
                record.reconcile = run.reconcile_id
        return True


def _fields(record: logging.LogRecord) -> dict[str, str | int | float | bool]:
    """The fields passed in ``extra``, and those of the context. Values that are not scalars are omitted."""
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and isinstance(value, str | int | float | bool)
    }


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (named by the base class)
        fields = (f"{key}={value}" for key, value in _fields(record).items())
        return " ".join([super().formatMessage(record), *fields])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str, style: str) -> None:
    """Configure the root logger. ``level``: a name such as ``INFO``. ``style``: ``json`` or ``text``."""
    handler = logging.StreamHandler()
    handler.addFilter(_ContextFilter())
    handler.setFormatter(
        _JsonFormatter()
        if style == "json"
        else _TextFormatter("%(asctime)s %(levelname)-7s %(name)s %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf logs every object at lower levels, and warns at every start that it installs no signal handlers.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)

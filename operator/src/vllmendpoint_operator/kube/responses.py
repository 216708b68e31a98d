"""Decodes responses of the API server: errors, warnings and watch events."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
from msgspec import Struct, json

from vllmendpoint_operator.errors import (
    Conflict,
    Gone,
    KubeError,
    NamespaceTerminating,
    NotFound,
    Rejected,
    Throttled,
    UntrustedCertificate,
)

from .lists import RawObject

__all__ = ["error_of", "transport_errors", "warning_text", "watch_events"]

_MAX_ERROR_BYTES: Final = 65_536
_UNKNOWN_FIELD: Final = "failed to create typed patch object"
"""The API server answers 500 with this message to a server-side apply with an unknown field or a duplicate
list key, although the object is at fault."""
_ERRORS: Final[dict[int, type[KubeError]]] = {
    400: Rejected,
    403: Rejected,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Rejected,
    429: Throttled,
}


@contextlib.contextmanager
def transport_errors(method: str, path: str) -> Iterator[None]:
    """Convert the exceptions of aiohttp, timeouts and invalid JSON to KubeError with status 0.

    Raises UntrustedCertificate for a certificate of an unknown authority. Use it only around code that sends
    or reads: a ValueError of a caller is a defect and must not become a KubeError.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        # Authorities are read at the start only, by kopf too.
        raise UntrustedCertificate(
            f"{error}. The certificate authorities are those of the start of this process. If a restart does "
            "not help, correct certificate-authority in the kubeconfig."
        ) from error
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # ValueError: the response is no JSON, so something else than the API server sent it.
        raise KubeError(0, f"{method} {path}: {type(error).__name__}: {error}") from error


async def error_of(response: aiohttp.ClientResponse) -> KubeError:
    """Return the error that a response with a status of 400 or more describes."""
    text = (await response.content.read(_MAX_ERROR_BYTES)).decode(errors="replace")
    try:
        status = json.decode(text)
        message = str(status.get("message", text))
        causes = {cause.get("reason") for cause in (status.get("details") or {}).get("causes") or []}
    except (ValueError, AttributeError):
        message, causes = text[:500], set()
    if "NamespaceTerminating" in causes:
        return NamespaceTerminating(response.status, message)
    retry_after = response.headers.get("Retry-After", "")
    return _error(response.status, message, float(retry_after) if retry_after.isdigit() else None)


def warning_text(header: str) -> str:
    """Return the text of a Warning header: ``299 - "text"``."""
    _, _, quoted = header.partition('"')
    return re.sub(r"\\(.)", r"\1", quoted.removesuffix('"'))


class _Event(Struct):
    type: str
    object: RawObject


_EVENT: Final = json.Decoder(_Event)


async def watch_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, RawObject]]:
    """Iterate over (type, object). An event of the type ERROR raises the KubeError that it describes."""
    text = b""
    async for chunk in response.content.iter_any():
        text += chunk
        begin = 0
        while (end := text.find(b"\n", begin)) >= 0:
            line, begin = memoryview(text)[begin:end], end + 1
            if not line:
                continue
            event = _EVENT.decode(line)
            if event.type == "ERROR":
                status = json.decode(json.encode(event.object))
                raise _error(int(status.get("code", 0)), str(status.get("message", "")))
            yield event.type, event.object
        text = text[begin:]


def _error(status: int, message: str, retry_after: float | None = None) -> KubeError:
    if status == 500 and message.startswith(_UNKNOWN_FIELD):
        return Rejected(status, message)
    return _ERRORS.get(status, KubeError)(status, message, retry_after=retry_after)

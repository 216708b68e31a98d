"""Splits the response to a list request into objects while the response arrives.

A list can have hundreds of megabytes. The client library ``kubernetes`` needs the whole response in memory,
and then all of its decoded objects.
"""

from collections.abc import AsyncIterator
from typing import Final

from msgspec import DecodeError, Raw, Struct, json

__all__ = ["RawObject", "split_list"]

RawObject = dict[str, Raw]
"""An object whose field values are undecoded JSON: most fields in lists and watches are never read."""


class _ListMetadata(Struct, rename="camel"):
    resource_version: str = ""


class _List(Struct):
    metadata: _ListMetadata
    items: list[RawObject] | None = None


_LIST: Final = json.Decoder(_List)
_RAW_OBJECT: Final = json.Decoder(RawObject)
_ITEMS: Final = b'"items":['
_METADATA: Final = b'"metadata":{'


async def split_list(chunks: AsyncIterator[bytes]) -> tuple[str, AsyncIterator[RawObject]]:
    """Return the list's resourceVersion and an iterator over its objects.

    In lists of built-in kinds, all other fields come before the first object. A list in which they come later
    is read completely first.

    Raises ValueError if ``chunks`` is not a list. The iterator raises ValueError if the list is truncated.
    """
    text = b""
    async for chunk in chunks:
        text += chunk
        head, found, rest = text.partition(_ITEMS)
        if found and _METADATA not in head:
            break
        if found and _METADATA in rest:
            empty = _LIST.decode(head + _ITEMS + b"]}")
            return empty.metadata.resource_version, _split(rest, chunks)
    whole = _LIST.decode(b"".join([text, *[chunk async for chunk in chunks]]))
    return whole.metadata.resource_version, _iterate(whole.items or [])


async def _iterate(objects: list[RawObject]) -> AsyncIterator[RawObject]:
    for obj in objects:
        yield obj


async def _split(text: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[RawObject]:
    """Yield each object of the list whose first object begins at the start of ``text``.

    All objects of a list begin with the same bytes. An object may end where these bytes follow ``},``. If the
    text before that place is not valid JSON, the bytes belong to a string within the object.
    """
    separator = b"}," + text[: text.index(_METADATA)] + _METADATA
    begin = search_from = 0
    while True:
        while (end := text.find(separator, search_from)) >= 0:
            search_from = end + len(separator)
            try:
                found = _RAW_OBJECT.decode(memoryview(text)[begin : end + 1])
            except DecodeError:
                continue
            begin = end + 2
            yield found
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        search_from = max(search_from - begin, len(text) - begin - len(separator), 0)
        text, begin = text[begin:] + chunk, 0
    last = text[begin:].rstrip()
    if not last.endswith(b"]}"):
        raise ValueError("the list is truncated")
    yield _RAW_OBJECT.decode(last[:-2])

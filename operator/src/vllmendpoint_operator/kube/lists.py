"""A list of the API server's, taken apart while it arrives: it may be hundreds of megabytes."""

from collections.abc import AsyncIterator
from typing import Final

from msgspec import DecodeError, Raw, Struct, json

__all__ = ["Parts", "listed"]

Parts = dict[str, Raw]
"""An object whose fields are JSON still: of what lists and watches bring, little is ever read."""


class _Metadata(Struct, rename="camel"):
    resource_version: str = ""


class _List(Struct):
    metadata: _Metadata
    items: list[Parts] | None = None


_LIST: Final = json.Decoder(_List)
_PARTS: Final = json.Decoder(Parts)
_ITEMS: Final = b'"items":['
_METADATA: Final = b'"metadata":{'


async def listed(chunks: AsyncIterator[bytes]) -> tuple[str, AsyncIterator[Parts]]:
    """The list's resourceVersion, and its objects. Raises ValueError where it is no such list, the objects'
    iterator also where it ends early.

    Lists of the built-in kinds say all else before the first object; one that does not is read whole first.
    """
    text = b""
    async for chunk in chunks:
        text += chunk
        head, found, rest = text.partition(_ITEMS)
        if found and _METADATA not in head:
            break
        if found and _METADATA in rest:
            begun = _LIST.decode(head + _ITEMS + b"]}")
            return begun.metadata.resource_version, _objects(rest, chunks)
    whole = _LIST.decode(b"".join([text, *[chunk async for chunk in chunks]]))
    return whole.metadata.resource_version, _all(whole.items or [])


async def _all(objects: list[Parts]) -> AsyncIterator[Parts]:
    for one in objects:
        yield one


async def _objects(text: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[Parts]:
    """All objects of a list begin alike: one may end where that is found. Where what is before it is no JSON,
    it was found within an object.
    """
    mark = b"}," + text[: text.index(_METADATA)] + _METADATA
    begin = look = 0
    while True:
        while (end := text.find(mark, look)) >= 0:
            look = end + len(mark)
            try:
                found = _PARTS.decode(memoryview(text)[begin : end + 1])
            except DecodeError:
                continue
            begin = end + 2
            yield found
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        look = max(look - begin, len(text) - begin - len(mark), 0)
        text, begin = text[begin:] + chunk, 0
    last = text[begin:].rstrip()
    if not last.endswith(b"]}"):
        raise ValueError("the list ended early")
    yield _PARTS.decode(last[:-2])

"""Objects as few bytes: JSON, compressed against an earlier one of the same sort.

The children of two endpoints differ by little more than names and ids. Those of one endpoint and its pods,
measured: 195 KB as Python objects, 13 KB compressed, 2 KB compressed against another endpoint's.
"""

import zlib
from typing import Any, Final

from pydantic_core import from_json, to_json

__all__ = ["Packer"]

_MOST_SORTS: Final = 64
_RAW: Final = -15
"""Deflate without a header."""
_FASTEST: Final = 1


class Packer:
    """Unpacks what it packed itself. Later objects of a sort are compressed against the first."""

    def __init__(self) -> None:
        self._sorts: dict[str, int] = {}
        self._dictionaries: list[bytes] = [b""]

    def pack(self, obj: dict[str, Any], sort: str) -> bytes:
        """``sort``: objects of one sort look alike."""
        text = to_json(obj)
        number = self._sorts.get(sort, 0)
        if number == 0 and len(self._sorts) < _MOST_SORTS:
            number = self._sorts[sort] = len(self._dictionaries)
            self._dictionaries.append(text)
        compressor = zlib.compressobj(_FASTEST, zlib.DEFLATED, _RAW, zdict=self._dictionaries[number])
        return bytes((number,)) + compressor.compress(text) + compressor.flush()

    def unpack(self, packed: bytes) -> dict[str, Any]:
        """A new object each time."""
        decompressor = zlib.decompressobj(_RAW, zdict=self._dictionaries[packed[0]])
        found: dict[str, Any] = from_json(decompressor.decompress(packed[1:]))
        return found

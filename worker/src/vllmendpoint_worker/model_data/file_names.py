"""Checks the file names of objects in S3 and of members of an archive. Pure."""

import unicodedata
from typing import Final

__all__ = ["describe_invalid_name"]

_MAX_NAME_BYTES: Final = 255
"""Limit of every file system of Linux."""


def describe_invalid_name(path: str) -> str | None:
    """The fault of a name in ``path``, for example "a name with a control character"; None if it is valid.

    All other characters of Unicode are valid: macOS writes U+202F into the names of screenshots.
    """
    categories = {unicodedata.category(character) for character in path}
    if "Cs" in categories:  # bytes of an archive that are not UTF-8 become surrogates
        return "a name that is not UTF-8"
    if "Cc" in categories:
        return "a name with a control character"
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in path.split("/")):
        return f"a name longer than {_MAX_NAME_BYTES} bytes"
    return None

"""What a file may not be called that comes from S3 or from an archive. Pure."""

import unicodedata

__all__ = ["describe_invalid_name"]

_LONGEST = 255
"""Bytes of a name, on every file system of Linux."""


def describe_invalid_name(path: str) -> str | None:
    """What is wrong with a name of ``path``, as in "a name with a control character"; None for nothing.

    Whatever else Unicode has is allowed: macOS writes U+202F into the names of screenshots.
    """
    categories = {unicodedata.category(character) for character in path}
    if "Cs" in categories:  # what the bytes of an archive become that are not UTF-8
        return "a name that is not UTF-8"
    if "Cc" in categories:
        return "a name with a control character"
    if any(len(part.encode()) > _LONGEST for part in path.split("/")):
        return f"a name longer than {_LONGEST} bytes"
    return None

"""A fingerprint of a file that changes when the file does."""

from pathlib import Path

__all__ = ["file_fingerprint"]


def file_fingerprint(path: Path) -> object:
    """Changes when the file does: identity, time and size of what the name now leads to."""
    try:
        stat = path.stat()
    except OSError as error:
        return error.errno
    except ValueError:  # no name that a file can have
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size

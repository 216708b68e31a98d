"""Detects changes of a file."""

from pathlib import Path

__all__ = ["file_fingerprint"]


def file_fingerprint(path: Path) -> object:
    """Identity, modification time and size of the file at ``path``. A changed file has another."""
    try:
        stat = path.stat()
    except OSError as error:
        return error.errno
    except ValueError:  # no file can have this name
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size

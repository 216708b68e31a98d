"""Unpacks an untrusted ``model.tar.gz`` in SageMaker's format. It may contain only files and folders.

``tarfile`` has a filter ``data``, but it allows links within the folder, and Debian 12's Python has no
filters.
"""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

from vllmendpoint_worker.errors import ArtifactsError

from .file_names import describe_invalid_name

__all__ = ["unpack"]

_CHUNK_BYTES: Final = 1 << 20
_MAX_NAME: Final = 128
_CREATE_AGAIN: Final = "Create the archive again."


def unpack(archive: Path, folder: Path, *, reserved: str) -> dict[str, int]:
    """Unpack into a new ``folder``; returns path -> size in bytes of every file.

    ``reserved``: a top-level name that no member may have. Raises ArtifactsError, and OSError for errors of
    the disk.
    """
    files: dict[str, int] = {}
    folder.mkdir(parents=True)
    try:
        # A stream can be read to its end, which contains the checksum.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                path = _member_path(member, reserved)
                if path is None:
                    continue
                target = _target_path(folder, path, member, files)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content is None:
                    raise tarfile.ReadError("a member without content")
                with content, target.open("wb") as written:
                    shutil.copyfileobj(content, written, _CHUNK_BYTES)
                files[str(path)] = target.stat().st_size
            while stream.read(_CHUNK_BYTES):
                pass
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged() from error
    except OSError as error:
        if error.errno is None:  # gzip.BadGzipFile
            raise _damaged() from error
        raise
    if not files:
        raise ArtifactsError("contains an archive without files", _CREATE_AGAIN)
    return files


def _target_path(folder: Path, path: PurePosixPath, member: tarfile.TarInfo, files: dict[str, int]) -> Path:
    """Raises ArtifactsError if a file and a folder have the same path."""
    target = folder / path
    if target.is_file() if member.isdir() else target.is_dir():
        raise _file_and_folder(str(path))
    if (file := next((str(parent) for parent in path.parents if str(parent) in files), None)) is not None:
        raise _file_and_folder(file)
    return target


def _file_and_folder(path: str) -> ArtifactsError:
    return ArtifactsError(
        f"contains an archive with {ascii(path)[:_MAX_NAME]} both as a file and as a folder",
        "Rename one of them and create the archive again.",
    )


def _damaged() -> ArtifactsError:
    return ArtifactsError("contains a damaged archive", "Create and upload the archive again.")


def _member_path(member: tarfile.TarInfo, reserved: str) -> PurePosixPath | None:
    """The path of the member in the folder; None for the folder itself. Raises ArtifactsError."""
    path = PurePosixPath(member.name)
    name = ascii(member.name)[:_MAX_NAME]
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactsError(f"contains an archive with a path outside the folder ({name})", _CREATE_AGAIN)
    if (fault := describe_invalid_name(member.name)) is not None:
        fix = "Rename the file and create the archive again."
        raise ArtifactsError(f"contains an archive with {fault} ({name})", fix)
    if path.parts[:1] == (reserved,):
        fault = f"contains an archive with a name that is reserved for the worker ({name})"
        raise ArtifactsError(fault, "Rename the file and create the archive again.")
    if not (member.isreg() or member.isdir()):
        raise ArtifactsError(
            f"contains an archive with a link or a device ({name})",
            "Replace links by files, with tar --dereference --hard-dereference.",
        )
    return path if path.parts else None

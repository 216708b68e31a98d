"""A ``model.tar.gz`` as SageMaker has it, unpacked without trust.

Files and folders only. The standard library's ``data`` filter would let links within the folder pass, and
Debian 12's Python has none.
"""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from vllmendpoint_worker.errors import ArtifactsError

from .file_names import describe_invalid_name

__all__ = ["unpack"]


def unpack(archive: Path, folder: Path, *, reserved: str) -> dict[str, int]:
    """Unpack into ``folder``, which is made; path -> size in bytes of every file.

    ``reserved``: a name at the top that no member may have. Raises ArtifactsError, and OSError where the disk
    refuses.
    """
    files: dict[str, int] = {}
    folder.mkdir(parents=True)
    try:
        # As a stream, so that it can be read to its end, where the checksum is.
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
                    shutil.copyfileobj(content, written, 1 << 20)
                files[str(path)] = target.stat().st_size
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged() from error
    except OSError as error:
        if error.errno is None:  # gzip.BadGzipFile
            raise _damaged() from error
        raise
    if not files:
        raise ArtifactsError("holds an archive without a file in it", "pack it anew")
    return files


def _target_path(folder: Path, path: PurePosixPath, member: tarfile.TarInfo, files: dict[str, int]) -> Path:
    """Where the member goes. Raises ArtifactsError where another member is in the way."""
    target = folder / path
    if target.is_file() if member.isdir() else target.is_dir():
        raise _file_and_folder(str(path))
    if (file := next((str(parent) for parent in path.parents if str(parent) in files), None)) is not None:
        raise _file_and_folder(file)
    return target


def _file_and_folder(path: str) -> ArtifactsError:
    return ArtifactsError(
        f"holds an archive with {ascii(path)[:128]} both as a file and as a folder",
        "rename one of them and pack it again",
    )


def _damaged() -> ArtifactsError:
    return ArtifactsError("holds an archive that is damaged", "pack and upload it anew")


def _member_path(member: tarfile.TarInfo, reserved: str) -> PurePosixPath | None:
    """The member's path within the folder; None for the folder itself. Raises ArtifactsError."""
    path = PurePosixPath(member.name)
    name = ascii(member.name)[:128]
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactsError(f"holds an archive with a path that leaves the folder ({name})", "pack it anew")
    if (wrong := describe_invalid_name(member.name)) is not None:
        raise ArtifactsError(f"holds an archive with {wrong} ({name})", "rename the file and pack it again")
    if path.parts[:1] == (reserved,):
        raise ArtifactsError(f"holds an archive with a name that is the worker's own ({name})", "rename it")
    if not (member.isreg() or member.isdir()):
        raise ArtifactsError(
            f"holds an archive with a link or a device ({name})",
            "pack the files themselves, with tar --dereference --hard-dereference",
        )
    return path if path.parts else None

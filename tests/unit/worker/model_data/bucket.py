"""A bucket in memory, and what a download leaves in a folder."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vllmendpoint_worker.model_data.artifacts import Artifacts
from vllmendpoint_worker.model_data.s3 import Location, StoredObject

URI = "s3://bucket/my-model/"


class Bucket:
    """Objects by key. A download of a key in ``broken`` raises that exception."""

    def __init__(self, **contents: bytes) -> None:
        self.contents: dict[str, bytes] = {key.replace("__", "/"): value for key, value in contents.items()}
        self.broken: dict[str, Exception] = {}
        self.fetched: list[str] = []

    def objects(self, location: Location) -> Iterator[StoredObject]:
        for key, content in sorted(self.contents.items()):
            if key.startswith(location.key):
                yield StoredObject(key, f"etag-{hash(content)}", len(content))

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        if stored.key in self.broken:
            raise self.broken[stored.key]
        self.fetched.append(stored.key)
        path.write_bytes(self.contents[stored.key])
        progress(stored.size)


def ignore(_: str) -> None:
    """Ignores the progress."""


def fetch(bucket: Bucket, folder: Path, uri: str = URI) -> None:
    Artifacts(uri, str(folder), open_store=lambda: bucket).fetch(ignore)


def content(folder: Path) -> dict[str, str]:
    """The files of the folder, without the worker's own."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".vllmendpoint" not in path.parts
    }


def packed(*members: tuple[str, bytes | None, str]) -> bytes:
    """A .tar.gz. Members: name, content, type (``f``, ``d``, or a link's target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if kind == "d":
                info.type = tarfile.DIRTYPE
            elif kind != "f":
                info.type, info.linkname = tarfile.SYMTYPE, kind
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()

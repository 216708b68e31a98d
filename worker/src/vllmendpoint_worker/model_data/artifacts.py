"""The model's data, from S3 to the folder of ``SAGEMAKER_MODEL_PATH``, or the model itself to a folder of the
cache, before anything reads that folder.

SageMaker does this for its containers (the guide's ``ModelDataSource``); in a pod the worker does it, since
the operator fetches no URI of a user. The data is taken whole or not at all: everything is fetched into
``.vllmendpoint`` within the folder (a mount point cannot be renamed) and moved into place once all of it is
there. A manifest remembers what came from where, so that a restart fetches only what changed. A cache may be
shared by workers: one at a time fetches, and the others find it done.
"""

import asyncio
import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Final

from pydantic import BaseModel, ValidationError

from vllmendpoint_api import PayloadSource, Problem, Reason
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.process.backoff import pause
from vllmendpoint_worker.setting_origin import SettingOrigin

from .archive import unpack
from .file_names import describe_invalid_name
from .s3 import Location, S3Store, Store, StoredObject, explain_failure

__all__ = ["Artifacts", "select_objects", "target_paths"]

logger = logging.getLogger(__name__)

ARCHIVE: Final = ".tar.gz"
"""A single object of this name is unpacked, as for SageMaker's ``CompressionType: Gzip``."""

MAX_OBJECTS: Final = 100_000
"""More is taken for a wrong prefix."""

PROGRESS_SECONDS: Final = 1.0
LOCK_SECONDS: Final = 600.0
"""For another worker's fetch; then the attempt fails, and the next one waits again."""
LOCK_POLL_SECONDS: Final = 0.5

_OWN: Final = ".vllmendpoint"


def select_objects(objects: Iterable[StoredObject], key: str) -> list[StoredObject]:
    """Of the objects that begin with ``key``, sorted as S3 lists them: the one that is called so, or those in
    the folder so called.

    Raises ArtifactsError where there is none, where there are too many, or where both are meant.
    """
    folder = _as_prefix(key)
    named: StoredObject | None = None
    found: list[StoredObject] = []
    for each in objects:
        if each.key == key and not key.endswith("/"):
            named = each
        elif each.key.startswith(folder):
            found.append(each)
        elif each.key > folder:
            break
        if len(found) > MAX_OBJECTS:
            raise ArtifactsError(f"holds more than {MAX_OBJECTS} objects", "name the model's own prefix")
    found = _without_markers(found)
    if named is not None and named.size:
        if found:
            raise ArtifactsError(
                "names both an object and a folder of objects",
                "end it with a slash to name the folder, or rename one of the two",
            )
        return [named]
    if named is not None and not found:
        raise ArtifactsError("names an object of zero bytes", "upload the model's data, or correct it")
    if not found:
        raise ArtifactsError("names a prefix that holds no object", "upload the model's data, or correct it")
    return found


def _without_markers(objects: list[StoredObject]) -> list[StoredObject]:
    """Without the objects that stand for a folder: ``a/``, and an ``a`` of zero bytes beside ``a/b``."""
    folders = {str(parent) for each in objects for parent in PurePosixPath(each.key).parents}
    return [each for each in objects if not each.key.endswith("/") and (each.size or each.key not in folders)]


def target_paths(objects: Iterable[StoredObject], key: str) -> dict[str, StoredObject]:
    """Path within the folder -> object. Raises ArtifactsError for a key that no such path is made of."""
    paths: dict[str, StoredObject] = {}
    for each in objects:
        path = PurePosixPath(key).name if each.key == key else each.key.removeprefix(_as_prefix(key))
        parts = path.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or parts[0] == _OWN:
            raise ArtifactsError(
                f"holds an object whose key is no path within the folder ({ascii(path)[:128]})", "rename it"
            )
        if (wrong := describe_invalid_name(path)) is not None:
            raise ArtifactsError(f"holds an object with {wrong} ({ascii(path)[:128]})", "rename it")
        paths[path] = each
    for path in paths:
        for parent in PurePosixPath(path).parents:
            if str(parent) in paths:
                raise ArtifactsError(
                    f"holds {ascii(str(parent))[:128]} both as a file and as a folder", "rename one of them"
                )
    return paths


def _as_prefix(key: str) -> str:
    return key if not key or key.endswith("/") else f"{key}/"


class _Manifest(BaseModel):
    """What the folder holds. Kept beside the files; what cannot be read counts as nothing."""

    objects: dict[str, tuple[str, int]] = {}
    """Path -> ETag and size of the object it was made of."""
    files: dict[str, int] = {}
    """Path -> size of the file."""

    @classmethod
    def read(cls, path: Path) -> "_Manifest":
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def write(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(self.model_dump_json())
        temporary.replace(path)

    def in_place(self, folder: Path, path: str) -> bool:
        """Whether the file is there as it was put there, by its size."""
        try:
            return (folder / path).lstat().st_size == self.files.get(path)
        except OSError:
            return False


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(slots=True)
class _Progress:
    """Bytes that came, told once a second. Called from boto3's threads."""

    tell: Callable[[str], None]
    size: int
    files: int
    done: int = 0
    told: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, more: int) -> None:
        with self.lock:
            self.done += more
            now = time.monotonic()
            if now - self.told < PROGRESS_SECONDS and self.done < self.size:
                return
            self.told = now
            text = f"model data: {self.done} of {self.size} bytes, {self.files} objects"
        self.tell(text)


class Artifacts:
    """``uri`` (``s3://bucket/prefix/``), to be in ``folder``.

    ``field`` of the spec is where the URI came from, ``reason`` what a failure is called; ``open_store``
    makes a client, which looks for credentials anew.
    """

    def __init__(
        self,
        uri: str,
        folder: str,
        *,
        field: str = "model.artifactsUri",
        reason: Reason = Reason.ARTIFACTS_NOT_FETCHED,
        open_store: Callable[[], Store] = S3Store,
    ) -> None:
        self._uri = uri
        self._origin = SettingOrigin(PayloadSource.SPEC, field)
        self._reason = reason
        self._folder = Path(folder)
        self._own = self._folder / _OWN
        self._new = self._own / "new"
        self._unpacked = self._own / "unpacked"
        self._manifest = self._own / "manifest.json"
        self._open_store = open_store
        self._staged: dict[str, StoredObject] = {}
        """In ``_new``, fetched by this process: a second attempt does not fetch it again."""

    async def wait_until_fetched(
        self, refuse: Callable[[Problem], None], tell: Callable[[str], None]
    ) -> None:
        """Return when the data is there. Until then say why it is not, and try again, for ever.

        Both functions are called from other threads or this one; ``tell`` gets one line of progress.
        """
        tell("model data: listing")
        failures = 0
        while True:
            try:
                await asyncio.to_thread(self.fetch, tell)
            except ArtifactsError as error:
                failures += 1
                refuse(self._origin.violation(error.what, error.fix, reason=self._reason))
                await asyncio.sleep(pause(failures))
            else:
                return

    def fetch(self, tell: Callable[[str], None]) -> None:
        """One attempt, which blocks. Raises ArtifactsError."""
        try:
            with self._exclusive(tell):
                self._fetch(tell)
        except Exception as error:
            raise explain_failure(error) from error

    @contextmanager
    def _exclusive(self, tell: Callable[[str], None]) -> Iterator[None]:
        """While no other process fetches to that folder, on whatever node. The kernel frees the lock of one
        that was killed.
        """
        self._own.mkdir(parents=True, exist_ok=True)
        with (self._own / "lock").open("w") as lock:
            began = time.monotonic()
            while not _try_lock(lock):
                tell("model data: another worker fetches it")
                if time.monotonic() - began >= LOCK_SECONDS:
                    raise ArtifactsError(
                        f"is being fetched by another worker, for {LOCK_SECONDS:.0f} s now",
                        f"see that worker's log, or remove {self._own / 'lock'} if there is none",
                    )
                time.sleep(LOCK_POLL_SECONDS)
            yield

    def _fetch(self, tell: Callable[[str], None]) -> None:
        began = time.monotonic()
        location = Location.parse(self._uri)
        store = self._open_store()
        objects = target_paths(select_objects(store.objects(location), location.key), location.key)
        there = _Manifest.read(self._manifest)
        wanted = {path: (each.etag, each.size) for path, each in objects.items()}
        if wanted == there.objects and all(there.in_place(self._folder, path) for path in there.files):
            logger.info("Model data: %d objects, unchanged", len(objects))
            return
        archive = next(iter(objects)) if len(objects) == 1 and next(iter(objects)).endswith(ARCHIVE) else ""
        missing = {
            path: each
            for path, each in objects.items()
            if archive or there.objects.get(path) != wanted[path] or not there.in_place(self._folder, path)
        }
        self._download(store, location, missing, tell)
        if target_paths(select_objects(store.objects(location), location.key), location.key) != objects:
            raise ArtifactsError(
                "changed while it was being fetched",
                "it is fetched again; let an upload end before a worker starts",
            )
        source, moved = self._new, {path: each.size for path, each in missing.items()}
        if archive:
            tell("model data: unpacking")
            shutil.rmtree(self._unpacked, ignore_errors=True)
            source, moved = self._unpacked, unpack(self._new / archive, self._unpacked, reserved=_OWN)
        kept = {} if archive else {path: objects[path].size for path in objects.keys() - missing.keys()}
        self._move_into_place(source, moved, there, _Manifest(objects=wanted, files=kept | moved))
        logger.info(
            "Model data: %d objects, %d of them fetched, in %.1f s",
            len(objects),
            len(missing),
            time.monotonic() - began,
        )

    def _download(
        self,
        store: Store,
        location: Location,
        missing: Mapping[str, StoredObject],
        tell: Callable[[str], None],
    ) -> None:
        if not self._staged:
            shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True, exist_ok=True)
        left = {path: each for path, each in missing.items() if self._staged.get(path) != each}
        size = sum(each.size for each in left.values())
        if size > (free := shutil.disk_usage(self._own).free):
            raise ArtifactsError(
                f"takes {size} bytes, and the disk has {free}",
                f"give the volume of {self._folder} more room",
            )
        progress = _Progress(tell, size, len(left))
        for path, each in left.items():
            target = self._new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            store.download(location, each, target, progress)
            if target.stat().st_size != each.size:
                raise ArtifactsError("changed while it was being fetched", "leave it as it is for a moment")
            self._staged[path] = each

    def _move_into_place(
        self, source: Path, moved: Mapping[str, int], there: _Manifest, final: _Manifest
    ) -> None:
        """Put what was fetched in place and take away what is no longer wanted.

        The manifest comes first and last: a process that ends in between leaves one that says of no changed
        file that it is in place, and of every file that it is ours.
        """
        unchanged = {
            path: each
            for path, each in there.objects.items()
            if path not in moved and final.objects.get(path) == each
        }
        _Manifest(objects=unchanged, files=there.files | final.files).write(self._manifest)
        for path in there.files.keys() - final.files.keys():
            self._remove(path)
        for path in moved:
            target = self._folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (source / path).replace(target)
        final.write(self._manifest)
        self._staged = {}
        shutil.rmtree(self._new, ignore_errors=True)
        shutil.rmtree(self._unpacked, ignore_errors=True)

    def _remove(self, path: str) -> None:
        target = self._folder / path
        target.unlink(missing_ok=True)
        for parent in target.parents:
            if parent == self._folder or any(parent.iterdir()):
                return
            parent.rmdir()

"""Downloads the model data from S3 into the folder of ``SAGEMAKER_MODEL_PATH``, or the model into the cache.

SageMaker does this for its containers (``ModelDataSource``, ``docs/guide/custom-handlers.md``, "Deploy to
SageMaker"). In a pod the worker does it. A download is complete or has no effect: all files go to the
subfolder ``.vllmendpoint`` (a mount point cannot be renamed) and then move into place. A manifest records the
source of each file, so a restart downloads only what changed. Workers can share a folder: one downloads, the
others wait. See ``docs/decisions/0030-model-data.md``.

vLLM's ``runai_streamer`` reads weights directly from S3 into the engine and cannot replace this. The model
data also contains handler scripts, requirements and archives, Dynamo needs the tokenizer and the
configuration as local files, and the streamer reads all weights again at every restart, without a cache that
replicas share.
"""

import asyncio
import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from vllmendpoint_api import PayloadSource, Problem, Reason
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.process.backoff import pause
from vllmendpoint_worker.setting_origin import SettingOrigin

from .archive import unpack
from .manifest import Manifest
from .object_paths import WORKER_FOLDER, select_objects, target_paths
from .s3 import CHANGED, Location, ObjectStore, S3Store, StoredObject, explain_failure

__all__ = ["Artifacts"]

logger = logging.getLogger(__name__)

ARCHIVE: Final = ".tar.gz"
"""A single object with this extension is unpacked, as for SageMaker's ``CompressionType: Gzip``."""

PROGRESS_SECONDS: Final = 1.0
LOCK_SECONDS: Final = 600.0
"""Time to wait for another worker's download. Then the attempt fails, and the next one waits again."""
LOCK_POLL_SECONDS: Final = 0.5

_WAITING: Final = "model data: waiting for the download of another worker"


@dataclass(slots=True)
class _Progress:
    """Counts downloaded bytes and reports them once a second. boto3's threads call it."""

    report: Callable[[str], None]
    size: int
    files: int
    done: int = 0
    reported_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, more: int) -> None:
        with self.lock:
            self.done += more
            now = time.monotonic()
            if now - self.reported_at < PROGRESS_SECONDS and self.done < self.size:
                return
            self.reported_at = now
            text = f"model data: {self.done} of {self.size} bytes, {self.files} objects"
        self.report(text)


class Artifacts:
    """Downloads ``uri`` (``s3://bucket/prefix/``) into ``folder``.

    ``field`` is the field of the spec that contains the URI, ``reason`` the reason of a failure.
    ``open_store`` creates a client with fresh credentials.
    """

    def __init__(
        self,
        uri: str,
        folder: str,
        *,
        field: str = "model.artifactsUri",
        reason: Reason = Reason.ARTIFACTS_NOT_FETCHED,
        open_store: Callable[[], ObjectStore] = S3Store,
    ) -> None:
        self._uri = uri
        self._origin = SettingOrigin(PayloadSource.SPEC, field)
        self._reason = reason
        self._folder = Path(folder)
        self._temporary = self._folder / WORKER_FOLDER
        self._new = self._temporary / "new"
        self._unpacked = self._temporary / "unpacked"
        self._manifest = self._temporary / "manifest.json"
        self._lock = self._temporary / "lock"
        self._open_store = open_store
        self._staged: dict[str, StoredObject] = {}
        """Objects in ``_new`` that this process downloaded. The next attempt uses them."""

    async def wait_until_fetched(
        self, reject: Callable[[Problem], None], report_progress: Callable[[str], None]
    ) -> None:
        """Return when the data is in the folder. Until then, report the problem and retry without limit.

        Other threads may call both functions. ``report_progress`` receives one line of text.
        """
        report_progress("model data: listing")
        failures = 0
        while True:
            try:
                await asyncio.to_thread(self.fetch, report_progress)
            except ArtifactsError as error:
                failures += 1
                reject(self._origin.violation(error.fault, error.fix, reason=self._reason))
                await asyncio.sleep(pause(failures))
            else:
                return

    def fetch(self, report_progress: Callable[[str], None]) -> None:
        """One attempt, which blocks. Raises ArtifactsError."""
        try:
            with self._exclusive(report_progress):
                self._fetch(report_progress)
        except Exception as error:
            raise explain_failure(error) from error

    @contextmanager
    def _exclusive(self, report_progress: Callable[[str], None]) -> Iterator[None]:
        """Only one process downloads to a folder, on all nodes. The kernel releases the lock of a killed
        process.

        Raises ArtifactsError after ``LOCK_SECONDS``.
        """
        self._temporary.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            started = time.monotonic()
            while not _try_lock(lock):
                report_progress(_WAITING)
                if time.monotonic() - started >= LOCK_SECONDS:
                    raise ArtifactsError(
                        f"is still being downloaded by another worker after {LOCK_SECONDS:.0f} s",
                        f"Check that worker's log, or remove {self._lock} if no other worker exists.",
                    )
                time.sleep(LOCK_POLL_SECONDS)
            yield

    def _fetch(self, report_progress: Callable[[str], None]) -> None:
        started = time.monotonic()
        location = Location.parse(self._uri)
        store = self._open_store()
        objects = _list_objects(store, location)
        previous = Manifest.read(self._manifest)
        identities = {path: (each.etag, each.size) for path, each in objects.items()}
        in_place = {path for path in previous.files if previous.is_in_place(self._folder, path)}
        if identities == previous.objects and len(in_place) == len(previous.files):
            logger.info("Model data: %d objects, unchanged", len(objects))
            return
        archive = next(iter(objects)) if len(objects) == 1 and next(iter(objects)).endswith(ARCHIVE) else ""
        missing = {
            path: each
            for path, each in objects.items()
            if archive or previous.objects.get(path) != identities[path] or path not in in_place
        }
        self._download(store, location, missing, report_progress)
        if _list_objects(store, location) != objects:
            raise ArtifactsError(
                "changed during the download",
                "The worker downloads it again. Finish an upload before you start workers.",
            )
        source, moved = self._new, {path: each.size for path, each in missing.items()}
        if archive:
            report_progress("model data: unpacking")
            shutil.rmtree(self._unpacked, ignore_errors=True)
            source, moved = (
                self._unpacked,
                unpack(self._new / archive, self._unpacked, reserved=WORKER_FOLDER),
            )
        kept = {} if archive else {path: objects[path].size for path in objects.keys() - missing.keys()}
        self._move_into_place(source, moved, previous, Manifest(objects=identities, files=kept | moved))
        logger.info(
            "Model data: %d objects, %d of them downloaded, in %.1f s",
            len(objects),
            len(missing),
            time.monotonic() - started,
        )

    def _download(
        self,
        store: ObjectStore,
        location: Location,
        missing: Mapping[str, StoredObject],
        report_progress: Callable[[str], None],
    ) -> None:
        if not self._staged:
            shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True, exist_ok=True)
        remaining = {path: each for path, each in missing.items() if self._staged.get(path) != each}
        size = sum(each.size for each in remaining.values())
        if size > (free := shutil.disk_usage(self._temporary).free):
            raise ArtifactsError(
                f"has {size} bytes, but the disk has only {free} bytes free",
                f"Increase the size of the volume of {self._folder}.",
            )
        progress = _Progress(report_progress, size, len(remaining))
        for path, each in remaining.items():
            target = self._new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            store.download(location, each, target, progress)
            if target.stat().st_size != each.size:
                raise ArtifactsError(*CHANGED)
            self._staged[path] = each

    def _move_into_place(
        self, source: Path, moved: Mapping[str, int], previous: Manifest, final: Manifest
    ) -> None:
        """Move the downloaded files and remove those that are no longer part of the data.

        The manifest is written before and after. If the process ends in between, the first one lists no
        changed file as in place, and every file as the worker's.
        """
        unchanged = {
            path: each
            for path, each in previous.objects.items()
            if path not in moved and final.objects.get(path) == each
        }
        Manifest(objects=unchanged, files=previous.files | final.files).write(self._manifest)
        for path in previous.files.keys() - final.files.keys():
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
        """Remove a file and the folders that it leaves empty."""
        target = self._folder / path
        target.unlink(missing_ok=True)
        for parent in target.parents:
            if parent == self._folder or any(parent.iterdir()):
                return
            parent.rmdir()


def _list_objects(store: ObjectStore, location: Location) -> dict[str, StoredObject]:
    return target_paths(select_objects(store.objects(location), location.key), location.key)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

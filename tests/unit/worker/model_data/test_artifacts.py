"""Downloads of model data: complete or without effect, only what changed, and one worker at a time."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as aws

from tests.unit.worker.model_data.bucket import URI, Bucket, content, fetch, ignore
from vllmendpoint_api import CONDITION_REASONS, Condition, Problem, Reason
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.model_data import artifacts
from vllmendpoint_worker.model_data.artifacts import Artifacts
from vllmendpoint_worker.model_data.s3 import Location, StoredObject
from vllmendpoint_worker.process.backoff import pause

WAITING = "model data: waiting for the download of another worker"


def test_all_objects_of_the_prefix_are_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    lines: list[str] = []
    bucket = Bucket(**{"my-model__model.py": b"code", "my-model__sub__w": b"weights", "other": b"no"})
    Artifacts(URI, str(folder), open_store=lambda: bucket).fetch(lines.append)
    assert content(folder) == {"model.py": "code", "sub/w": "weights"}
    assert lines[-1] == "model data: 11 of 11 bytes, 2 objects"
    assert sorted(path.name for path in (folder / ".vllmendpoint").iterdir()) == [
        "lock",
        "manifest.json",
    ]


def test_a_restart_downloads_changed_objects_and_removes_deleted_ones(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file of the user")
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2", "my-model__c__d": b"3", "my-model__e": b"4"})
    fetch(bucket, tmp_path)
    bucket.fetched.clear()
    fetch(bucket, tmp_path)
    assert bucket.fetched == []
    del bucket.contents["my-model/c/d"], bucket.contents["my-model/b"]
    bucket.contents |= {"my-model/a": b"new", "my-model/b/f": b"5", "my-model/c": b"6"}
    (tmp_path / "e").unlink()
    fetch(bucket, tmp_path)
    assert bucket.fetched == ["my-model/a", "my-model/b/f", "my-model/c", "my-model/e"]
    assert content(tmp_path) == {"a": "new", "b/f": "5", "c": "6", "e": "4", "mine": "a file of the user"}


def test_a_failed_download_changes_no_file_and_is_resumed(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2"})
    fetch(bucket, tmp_path)
    bucket.contents |= {"my-model/a": b"new", "my-model/b": b"new"}
    bucket.broken["my-model/b"] = aws.EndpointConnectionError(endpoint_url="http://hunter2")
    worker = Artifacts(URI, str(tmp_path), open_store=lambda: bucket)
    with pytest.raises(ArtifactsError, match="cannot be reached"):
        worker.fetch(ignore)
    assert content(tmp_path) == {"a": "1", "b": "2"}
    bucket.broken.clear()
    bucket.fetched.clear()
    worker.fetch(ignore)
    assert bucket.fetched == ["my-model/b"]  # the first attempt downloaded a
    assert content(tmp_path) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("reverted", [False, True])
def test_the_next_start_completes_an_interrupted_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reverted: bool
) -> None:
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2", "my-model__old": b"3"})
    fetch(bucket, tmp_path)
    before = dict(bucket.contents)
    del bucket.contents["my-model/old"]
    bucket.contents |= {"my-model/a": b"A", "my-model/b": b"B", "my-model/c": b"C"}
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == "b" and "new" in self.parts:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(bucket, tmp_path)
    if reverted:  # the sizes are equal, so only the manifest shows that a was replaced
        bucket.contents = before
    fetch(bucket, tmp_path)
    assert content(tmp_path) == (
        {"a": "1", "b": "2", "old": "3"} if reverted else {"a": "A", "b": "B", "c": "C"}
    )


def test_an_object_that_changes_during_the_download_is_an_error(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1"})
    download = bucket.download

    def changed(
        location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        download(location, stored, path, progress)
        path.write_bytes(b"longer")

    bucket.download = changed  # type: ignore[method-assign]
    with pytest.raises(ArtifactsError, match="changed during the download"):
        fetch(bucket, tmp_path)
    assert content(tmp_path) == {}


def test_an_unreadable_manifest_counts_as_empty(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1"})
    fetch(bucket, tmp_path)
    for wrong in ("{", "[]", '{"files": 1}'):
        (tmp_path / ".vllmendpoint" / "manifest.json").write_text(wrong)
        bucket.fetched.clear()
        fetch(bucket, tmp_path)
        assert bucket.fetched == ["my-model/a"]


def test_data_larger_than_the_free_space_is_an_error(tmp_path: Path) -> None:
    class Huge(Bucket):
        def objects(self, location: Location) -> Iterator[StoredObject]:
            yield StoredObject("my-model/a", "e", 1 << 60)

    with pytest.raises(ArtifactsError, match=r"has \d+ bytes, but the disk has only \d+ bytes free"):
        fetch(Huge(), tmp_path)


def test_a_path_that_is_not_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactsError, match="NotADirectoryError"):
        fetch(Bucket(**{"my-model__a": b"1"}), tmp_path / "file")


def test_one_of_the_workers_that_share_a_folder_downloads(tmp_path: Path) -> None:
    """A file lock excludes another thread in the same way as another process."""
    started, proceed = threading.Event(), threading.Event()

    class Slow(Bucket):
        def download(self, *of: Any) -> None:
            started.set()
            assert proceed.wait(10)
            super().download(*of)

    first, second = Slow(**{"my-model__a": b"1"}), Bucket(**{"my-model__a": b"1"})
    lines: list[str] = []

    def report_progress(line: str) -> None:
        lines.append(line)
        proceed.set()

    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(fetch, first, tmp_path)
        assert started.wait(10)
        waiting = pool.submit(Artifacts(URI, str(tmp_path), open_store=lambda: second).fetch, report_progress)
        fetching.result(10)
        waiting.result(10)
    assert lines[0] == WAITING
    assert (first.fetched, second.fetched) == (["my-model/a"], [])
    assert content(tmp_path) == {"a": "1"}


def test_the_wait_for_another_worker_has_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(artifacts, "LOCK_POLL_SECONDS", 0.01)
    started, proceed = threading.Event(), threading.Event()

    class Hanging(Bucket):
        def download(self, *of: Any) -> None:
            started.set()
            assert proceed.wait(10)
            super().download(*of)

    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetch, Hanging(**{"my-model__a": b"1"}), tmp_path)
        assert started.wait(10)
        try:
            with pytest.raises(ArtifactsError, match="is still being downloaded by another worker after 0 s"):
                Artifacts(URI, str(tmp_path), open_store=Bucket).fetch(lines.append)
        finally:
            proceed.set()
        fetching.result(10)
    assert set(lines) == {WAITING}


async def test_a_problem_of_a_model_has_the_field_and_reason_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[Problem] = []
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: asyncio.Event().wait())
    model = Artifacts(
        URI, str(tmp_path), field="model.uri", reason=Reason.MODEL_DOWNLOAD_FAILED, open_store=Bucket
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.wait_until_fetched(problems.append, ignore), 2.0)
    assert [(each.reason, each.field) for each in problems] == [("ModelDownloadFailed", "model.uri")]
    assert problems[0].reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]


def test_the_pause_between_attempts_doubles_up_to_a_minute() -> None:
    assert all(0.8 <= pause(1) <= 1.2 for _ in range(50))
    assert 3.2 <= pause(3) <= 4.8
    assert 48 <= pause(10_000) <= 72


async def test_a_download_is_retried_until_the_data_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    problems: list[Problem] = []
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            bucket.contents["my-model/a"] = b"1"

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await Artifacts(URI, str(tmp_path), open_store=lambda: bucket).wait_until_fetched(problems.append, ignore)
    assert content(tmp_path) == {"a": "1"}
    assert len(problems) == len(waited) == 3
    assert (problems[0].reason, problems[0].source, problems[0].field, problems[0].message) == (
        "ArtifactsNotFetched", "Spec", "model.artifactsUri",
        "model.artifactsUri names a prefix without objects. Upload the model's data, or correct the URI.",
    )  # fmt: skip


def test_old_and_new_objects_are_not_mixed(tmp_path: Path) -> None:
    bucket = Bucket(model__1=b"old1", model__2=b"old2")
    download = bucket.download

    def changing(*arguments: Any) -> None:
        download(*arguments)
        bucket.contents.update({"model/1": b"new1", "model/2": b"new2"})

    bucket.download = changing  # type: ignore[method-assign]
    with pytest.raises(ArtifactsError, match="changed during the download"):
        fetch(bucket, tmp_path, "s3://bucket/model/")
    assert content(tmp_path) == {}
    bucket.download = download  # type: ignore[method-assign]
    fetch(bucket, tmp_path, "s3://bucket/model/")
    assert content(tmp_path) == {"1": "new1", "2": "new2"}

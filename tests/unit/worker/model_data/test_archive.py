"""A single ``model.tar.gz`` is unpacked, and a bad archive changes nothing."""

import gzip
from pathlib import Path

import pytest

from tests.unit.worker.model_data.bucket import URI, Bucket, content, fetch, packed
from vllmendpoint_worker.errors import ArtifactsError


@pytest.mark.parametrize("uri", [URI, "s3://bucket/my-model/model.tar.gz"])
def test_a_single_archive_is_unpacked(tmp_path: Path, uri: str) -> None:
    bucket = Bucket()
    key = "my-model/model.tar.gz"
    bucket.contents[key] = packed((".", None, "d"), ("./model.py", b"code", "f"), ("sub/w", b"1", "f"))
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"model.py": "code", "sub/w": "1"}
    fetch(bucket, tmp_path, uri)
    assert bucket.fetched == [key]
    bucket.contents[key] = packed(("other.py", b"new", "f"))
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"other.py": "new"}
    (tmp_path / "other.py").unlink()
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"other.py": "new"}


def test_a_corrected_archive_is_unpacked(tmp_path: Path) -> None:
    bucket = Bucket()
    key = "my-model/model.tar.gz"
    bucket.contents[key] = packed(("half", b"1", "f"), ("../a", b"1", "f"))
    with pytest.raises(ArtifactsError, match="a path outside the folder"):
        fetch(bucket, tmp_path)
    bucket.contents[key] = packed(("whole", b"1", "f"))
    fetch(bucket, tmp_path)
    assert content(tmp_path) == {"whole": "1"}


def test_an_archive_next_to_other_objects_is_not_unpacked(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__model.tar.gz": b"x", "my-model__model.py": b"y"})
    fetch(bucket, tmp_path)
    assert content(tmp_path) == {"model.tar.gz": "x", "model.py": "y"}


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (packed(("../a", b"1", "f")), "a path outside the folder"),
        (packed(("/etc/a", b"1", "f")), "a path outside the folder"),
        (packed(("a\nb", b"1", "f")), r"a name with a control character \('a.nb'\). Rename the file"),
        (packed(("a\udcff", b"1", "f")), r"a name that is not UTF-8 \('a.udcff'\). Rename the file"),
        (packed(("x" * 256, b"1", "f")), "a name longer than 255 bytes"),
        (packed(("a", b"1", "f"), ("a/b", b"1", "f")), "'a' both as a file and as a folder"),
        (packed(("a/b", b"1", "f"), ("a", b"1", "f")), "'a' both as a file and as a folder"),
        (packed(("a", b"1", "f"), ("a", None, "d")), "'a' both as a file and as a folder"),
        (packed(("a", None, "/etc"), ("a/b", b"1", "f")), "a link or a device"),
        (packed((".vllmendpoint/manifest.json", b"1", "f")), "a name that is reserved for the worker"),
        (packed(("a", None, "d")), "without files"),
        (packed(("a", b"1" * 9999, "f"))[:60], "a damaged archive"),
        (packed(("a", b"1", "f"))[:-6] + b"xxxxxx", "a damaged archive"),
        (b"no archive", "a damaged archive"),
        (gzip.compress(b"no archive" * 100), "a damaged archive"),
    ],
    ids=range(15),  # the bytes of an archive contain the time
)
def test_a_bad_archive_changes_no_file(tmp_path: Path, archive: bytes, message: str) -> None:
    bucket = Bucket()
    bucket.contents["my-model/model.tar.gz"] = archive
    folder = tmp_path / "model"
    with pytest.raises(ArtifactsError, match=message):
        fetch(bucket, folder)
    assert content(folder) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

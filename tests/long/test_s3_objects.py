"""Unusual object names in a real S3 server, and the errors of such a server."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import client, object_store
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.model_data.artifacts import Artifacts

SCREENSHOT = "Screenshot 2026-01-01 at 9.41.00\u202fAM.png"
NO_BREAK = "read\u00a0me.txt"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with object_store(tmp_path_factory.mktemp("store")) as environ:
        s3 = client(environ)
        s3.create_bucket(Bucket="bucket")
        for key in ("m/", f"m/{SCREENSHOT}", f"m/{NO_BREAK}", "m/sub/", "m/sub/\U0001f468\u200d\U0001f4bb"):
            s3.put_object(Bucket="bucket", Key=key, Body=b"" if key.endswith("/") else b"content")
        s3.put_object(Bucket="bucket", Key="empty", Body=b"")
        yield environ


@pytest.fixture(autouse=True)
def environment(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.items():
        monkeypatch.setenv(name, value)


def fetched(uri: str, folder: Path) -> set[str]:
    Artifacts(uri, str(folder)).fetch(lambda _: None)
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != ".vllmendpoint"}


@pytest.mark.parametrize("uri", ["s3://bucket/m/", "s3://bucket/m"])
def test_names_with_unusual_spaces_are_downloaded_and_folder_markers_are_not(
    uri: str, tmp_path: Path
) -> None:
    expected = {SCREENSHOT, NO_BREAK, "sub/\U0001f468\u200d\U0001f4bb"}
    assert fetched(uri, tmp_path) == expected
    assert fetched(uri, tmp_path) == expected  # with the manifest, which contains these names
    assert (tmp_path / SCREENSHOT).read_bytes() == b"content"


def test_names_with_unusual_spaces_are_extracted_from_an_archive(
    store: dict[str, str], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        for name in (SCREENSHOT, NO_BREAK):
            (tmp_path / name).write_text("content")
            tar.add(tmp_path / name, name)
    client(store).upload_file(str(tmp_path / "model.tar.gz"), "bucket", "packed/model.tar.gz")
    assert fetched("s3://bucket/packed/", tmp_path / "folder") == {SCREENSHOT, NO_BREAK}


@pytest.mark.parametrize(
    ("uri", "variables", "message"),
    [
        ("s3://bucket/empty", {}, "names an object of zero bytes"),
        ("s3://bucket/none/", {}, "names a prefix without objects"),
        ("s3://another/", {}, "names a bucket that does not exist (NoSuchBucket). Create the bucket"),
        ("s3://bucket/m/", {"AWS_SECRET_ACCESS_KEY": "hunter2"}, "the AWS credentials are not valid (Sig"),
        ("s3://bucket/m/", {"AWS_ACCESS_KEY_ID": "hunter2"}, "the AWS credentials are not valid (XAdmin"),
    ],
)
def test_the_error_states_what_the_server_rejects(
    uri: str, variables: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactsError) as error:
        fetched(uri, tmp_path)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)

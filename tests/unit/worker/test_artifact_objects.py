"""Which objects of a bucket are the model's data, and where in the folder they go."""

import pytest

from vllmendpoint_worker import artifacts as artifacts_module
from vllmendpoint_worker.artifacts import placed, selected
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.s3 import Location, StoredObject


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b-1.c/a/b/", ("b-1.c", "a/b/")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("S3://bucket/a", None),
        ("s3://b/a", None),
        ("https://bucket/a", None),
        ("s3:///a", None),
        ("s3://Bucket/a", None),
    ],
)
def test_uris(uri: str, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(ArtifactsError, match="is no S3 URI"):
            Location.parse(uri)
    else:
        assert Location.parse(uri) == Location(*expected)


@pytest.mark.parametrize(
    ("key", "keys", "expected"),
    [
        ("m/", ["m/", "m/a", "m/b/c", "m/d/"], ["m/a", "m/b/c"]),
        ("m", ["m-2/a", "m.txt", "m/a"], ["m/a"]),  # S3 lists by beginning, a folder is meant
        ("m.tar.gz", ["m.tar.gz", "m.tar.gz.old"], ["m.tar.gz"]),
        ("", ["a", "b/c"], ["a", "b/c"]),
    ],
)
def test_which_objects(key: str, keys: list[str], expected: list[str]) -> None:
    found = selected((StoredObject(each, "e", 1) for each in keys), key)
    assert [each.key for each in found] == expected


@pytest.mark.parametrize("keys", [[], ["m/"], ["m-2/a"]])
def test_an_empty_prefix(keys: list[str]) -> None:
    with pytest.raises(ArtifactsError, match="holds no object"):
        selected((StoredObject(each, "e", 1) for each in keys), "m")


def test_a_prefix_that_is_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts_module, "MAX_OBJECTS", 3)
    with pytest.raises(ArtifactsError, match="more than 3 objects"):
        selected((StoredObject(f"m/{n}", "e", 1) for n in range(4)), "m/")


@pytest.mark.parametrize(
    "key",
    [
        *("m/../a", "m/a/../../b", "m//etc/passwd", "m/./a", "m/a//b", "m/.vllmendpoint/manifest.json"),
        *("m/a\nb", "m/a\0b", "m/" + "x" * 256),
    ],
)
def test_keys_that_leave_the_folder_are_refused(key: str) -> None:
    with pytest.raises(ArtifactsError, match="no path within the folder") as raised:
        placed([StoredObject(key, "e", 1)], "m/")
    assert raised.value.what.isprintable()


def test_a_file_cannot_be_a_folder_too() -> None:
    with pytest.raises(ArtifactsError, match="both as a file and as a folder"):
        placed([StoredObject("m/a/b", "e", 1), StoredObject("m/a", "e", 1)], "m/")

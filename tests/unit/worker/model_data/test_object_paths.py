"""Which objects of a bucket are downloaded, and to which paths."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.model_data import object_paths
from vllmendpoint_worker.model_data.object_paths import select_objects, target_paths
from vllmendpoint_worker.model_data.s3 import Location, StoredObject


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
def test_a_location_is_parsed_from_its_uri(uri: str, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(ArtifactsError, match="is not an S3 URI"):
            Location.parse(uri)
    else:
        assert Location.parse(uri) == Location(*expected)


@pytest.mark.parametrize(
    ("key", "keys", "expected"),
    [
        ("m/", ["m/", "m/a", "m/b/c", "m/d/"], ["m/a", "m/b/c"]),
        ("m", ["m-2/a", "m.txt", "m/a"], ["m/a"]),  # S3 lists by prefix; the key means a folder
        ("m.tar.gz", ["m.tar.gz", "m.tar.gz.old"], ["m.tar.gz"]),
        ("", ["a", "b/c"], ["a", "b/c"]),
    ],
)
def test_the_object_or_the_folder_of_the_key_is_selected(
    key: str, keys: list[str], expected: list[str]
) -> None:
    found = select_objects((StoredObject(each, "e", 1) for each in keys), key)
    assert [each.key for each in found] == expected


@pytest.mark.parametrize("keys", [[], ["m/"], ["m-2/a"]])
def test_a_prefix_without_objects_is_an_error(keys: list[str]) -> None:
    with pytest.raises(ArtifactsError, match="names a prefix without objects"):
        select_objects((StoredObject(each, "e", 1) for each in keys), "m")


def test_a_prefix_with_too_many_objects_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_paths, "MAX_OBJECTS", 3)
    with pytest.raises(ArtifactsError, match="more than 3 objects"):
        select_objects((StoredObject(f"m/{n}", "e", 1) for n in range(4)), "m/")


@pytest.mark.parametrize("size", [1, 0])
def test_an_object_with_the_name_of_a_folder_is_an_error_unless_it_is_empty(size: int) -> None:
    """A console or a file system mounted over S3 writes an object of zero bytes for a folder."""
    objects = [StoredObject("m", "e", size), StoredObject("m-2", "e", 1), StoredObject("m/a", "e", 1)]
    if size:
        with pytest.raises(ArtifactsError, match=r"both an object and a folder of objects\. Add a slash"):
            select_objects(objects, "m")
    else:
        assert [each.key for each in select_objects(objects, "m")] == ["m/a"]


def test_an_object_of_zero_bytes_is_an_error() -> None:
    with pytest.raises(ArtifactsError, match="names an object of zero bytes"):
        select_objects([StoredObject("m", "e", 0), StoredObject("m-2", "e", 1)], "m")


def test_markers_of_folders_are_not_selected() -> None:
    sizes = {"m/": 0, "m/a": 0, "m/a/": 0, "m/a/b": 0, "m/a/b/c": 1, "m/a/empty": 0, "m/z": 0}
    objects = [StoredObject(key, "e", size) for key, size in sizes.items()]
    found = select_objects(objects, "m/")
    assert [each.key for each in found] == ["m/a/b/c", "m/a/empty", "m/z"]
    assert set(target_paths(found, "m/")) == {"a/b/c", "a/empty", "z"}


def test_the_list_ends_after_the_folder() -> None:
    def objects() -> Iterator[StoredObject]:
        for key in ("m", "m-1", "m.txt"):
            yield StoredObject(key, "e", 1)
        yield StoredObject("m0", "e", 1)
        raise AssertionError("the list continues")

    assert [each.key for each in select_objects(objects(), "m")] == ["m"]


UNUSUAL = [
    *("a\u00a0b", "Screenshot 2026-01-01 at 9.41.00\u202fAM.png", "\u3000", " a ", "a\u200bb", "\ufeffa"),
    *(
        "a\u00adb",
        "\U0001f468\u200d\U0001f4bb",
        "\ue000",
        "\U000e0fff",
        "a\u2028b",
        "e\u0301",
        "\u202eg",
        "a\\b",
    ),
]
"""White space outside ASCII, and characters that Python does not call printable."""


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_characters_are_accepted(name: str, tmp_path: Path) -> None:
    paths = target_paths([StoredObject(f"m/{name}/{name}", "e", 1)], "m/")
    assert list(paths) == [f"{name}/{name}"]
    (tmp_path / name).write_text("the file system accepts it")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a\nb", "a name with a control character"),
        ("a\0b", "a name with a control character"),
        ("a\x7fb", "a name with a control character"),
        ("a\x85b", "a name with a control character"),
        ("x" * 256, "a name longer than 255 bytes"),
        ("\u00e9" * 128, "a name longer than 255 bytes"),
    ],
)
def test_invalid_file_names_are_rejected(name: str, fault: str) -> None:
    with pytest.raises(ArtifactsError, match=f"contains an object with {fault}") as raised:
        target_paths([StoredObject(f"m/{name}", "e", 1)], "m/")
    assert raised.value.fault.isascii()
    assert raised.value.fault.isprintable()


@pytest.mark.parametrize(
    "key", ["m/../a", "m/a/../../b", "m//etc/passwd", "m/./a", "m/a//b", "m/.vllmendpoint/manifest.json"]
)
def test_keys_outside_the_folder_are_rejected(key: str) -> None:
    with pytest.raises(ArtifactsError, match="not a path in the folder") as raised:
        target_paths([StoredObject(key, "e", 1)], "m/")
    assert raised.value.fault.isprintable()


def test_a_path_cannot_be_a_file_and_a_folder() -> None:
    with pytest.raises(ArtifactsError, match="both as a file and as a folder"):
        target_paths([StoredObject("m/a/b", "e", 1), StoredObject("m/a", "e", 1)], "m/")

"""Selects the objects of a bucket to download, and maps them to paths in the folder. Pure."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from vllmendpoint_worker.errors import ArtifactsError

from .file_names import describe_invalid_name
from .s3 import StoredObject

__all__ = ["MAX_OBJECTS", "WORKER_FOLDER", "select_objects", "target_paths"]

MAX_OBJECTS: Final = 100_000
"""A prefix with more objects is probably a mistake."""

WORKER_FOLDER: Final = ".vllmendpoint"
"""The worker's own subfolder, for temporary files."""

_MAX_NAME: Final = 128


def select_objects(objects: Iterable[StoredObject], key: str) -> list[StoredObject]:
    """The object with this ``key``, or those in the folder with this name.

    ``objects`` start with ``key`` and are sorted as S3 lists them. Raises ArtifactsError if there is none, if
    there are too many, or if both an object and a folder have the name.
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
            raise ArtifactsError(f"contains more than {MAX_OBJECTS} objects", "Use the prefix of the model.")
    found = _without_markers(found)
    if named is not None and named.size:
        if found:
            raise ArtifactsError(
                "names both an object and a folder of objects",
                "Add a slash at the end to name the folder, or rename one of the two.",
            )
        return [named]
    if named is not None and not found:
        raise ArtifactsError("names an object of zero bytes", "Upload the model's data, or correct the URI.")
    if not found:
        raise ArtifactsError("names a prefix without objects", "Upload the model's data, or correct the URI.")
    return found


def _without_markers(objects: list[StoredObject]) -> list[StoredObject]:
    """Without the objects that represent a folder: ``a/``, and an ``a`` of zero bytes next to ``a/b``."""
    folders = {str(parent) for each in objects for parent in PurePosixPath(each.key).parents}
    return [each for each in objects if not each.key.endswith("/") and (each.size or each.key not in folders)]


def target_paths(objects: Iterable[StoredObject], key: str) -> dict[str, StoredObject]:
    """Path in the folder -> object. Raises ArtifactsError for a key that is not a valid path."""
    paths: dict[str, StoredObject] = {}
    for each in objects:
        path = PurePosixPath(key).name if each.key == key else each.key.removeprefix(_as_prefix(key))
        shown = ascii(path)[:_MAX_NAME]
        parts = path.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or parts[0] == WORKER_FOLDER:
            fault = f"contains an object whose key is not a path in the folder ({shown})"
            raise ArtifactsError(fault, "Rename the object.")
        if (fault_of_name := describe_invalid_name(path)) is not None:
            raise ArtifactsError(f"contains an object with {fault_of_name} ({shown})", "Rename the object.")
        paths[path] = each
    for path in paths:
        for parent in PurePosixPath(path).parents:
            if str(parent) in paths:
                shown = ascii(str(parent))[:_MAX_NAME]
                raise ArtifactsError(
                    f"contains {shown} both as a file and as a folder", "Rename one of them."
                )
    return paths


def _as_prefix(key: str) -> str:
    return key if not key or key.endswith("/") else f"{key}/"

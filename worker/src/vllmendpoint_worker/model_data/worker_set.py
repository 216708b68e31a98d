"""Which workers of one revision a Dynamo frontend can treat as equal.

A frontend accepts only workers with the same model card in one Dynamo namespace and ignores the others,
although they are healthy. Two pods of one revision can differ: a branch of the hub, an object in S3 or a
ConfigMap of ``worker.envFrom`` has changed between their starts. So the namespace of a worker ends in a
digest of what its model card comes from; workers that differ are routed side by side.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["worker_set"]

_CARD_FILES: Final = frozenset({".json", ".jinja", ".model", ".tiktoken", ".txt"})
"""Endings of the files that a model card is made from: configuration, tokenizer, chat template."""


def worker_set(model: Path, arguments: Sequence[str], *more: Path) -> str:
    """Ten hex digits, from the model's folder, its small files, ``arguments`` and the files ``more``.

    Blocks. Files that cannot be read count by their name only: the engine's start reports them.
    """
    digest = hashlib.sha256()
    files = [path for path in _files(model) if path.suffix in _CARD_FILES]
    for part in (str(model), *arguments):
        digest.update(part.encode() + b"\0")
    for path in (*files, *more):
        digest.update(path.name.encode() + b"\0" + _content(path) + b"\0")
    return digest.hexdigest()[:10]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""

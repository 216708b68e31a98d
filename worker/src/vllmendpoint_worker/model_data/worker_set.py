"""Computes which workers of one revision a Dynamo frontend can treat as equal.

A frontend accepts only workers with the same model card in one Dynamo namespace, and ignores other workers
even if they are healthy. Two pods of one revision can differ, because a branch of the hub, an object in S3 or
a ConfigMap of ``worker.envFrom`` changed between their starts. Therefore the namespace of a worker ends in a
digest of the sources of its model card, and the frontend routes to all workers.

Prefill and decode workers of one revision have different arguments and model cards, and must share a
namespace. Their digest is without arguments. Those of the pod template are part of the revision, so only
arguments of a changed ConfigMap are missing: a worker that starts after such a change may be ignored until
the next rollout, which the condition ``Serving`` reports.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["worker_set"]

_CARD_FILES: Final = frozenset({".json", ".jinja", ".model", ".tiktoken", ".txt"})
"""Extensions of the files from which a model card is made: configuration, tokenizer, chat template."""


def worker_set(model: Path, arguments: Sequence[str], *more: Path) -> str:
    """Ten hexadecimal digits, from the model's folder, its small files, ``arguments`` and the files ``more``.
    ``arguments`` is empty for a worker of one phase.

    Blocks. A file that cannot be read counts by its name only, because the start of the engine reports it.
    """
    digest = hashlib.sha256()
    files = [path for path in _files(model) if path.suffix in _CARD_FILES]
    for part in (str(model), *arguments):
        digest.update(part.encode() + b"\0")
    for path in (*files, *more):
        digest.update(path.name.encode() + b"\0" + _content_digest(path) + b"\0")
    return digest.hexdigest()[:10]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _content_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""

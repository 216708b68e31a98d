"""Detects the type of a model for ``model_type="generate"``: chat if it has a chat template, else
completion.
"""

import json
import os
from pathlib import Path
from typing import Final

from vllmendpoint_api import ModelType

__all__ = ["detect_model_type"]

_TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_TOKENIZERS: Final = ("tokenizer_config.json", "tokenizer.json")


def detect_model_type(model: object) -> ModelType | None:
    """The type of ``model``: a folder, or the name of a model in the Hugging Face cache of this machine.

    None if the model or its tokenizer is not there: this function downloads nothing. Reads a few small files.
    """
    folder = _find_folder(model)
    if folder is None:
        return None
    if any((folder / name).is_file() for name in _TEMPLATES):
        return ModelType.CHAT
    if any(folder.glob("additional_chat_templates/*.jinja")) or _has_chat_template(
        folder / "tokenizer_config.json"
    ):
        return ModelType.CHAT
    return ModelType.COMPLETION if any((folder / name).is_file() for name in _TOKENIZERS) else None


def _has_chat_template(tokenizer_config: Path) -> bool:
    try:
        config = json.loads(tokenizer_config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _find_folder(model: object) -> Path | None:
    if not isinstance(model, str | os.PathLike) or not str(model):
        return None
    try:
        if Path(model).is_dir():
            return Path(model)
    except (OSError, ValueError):  # not a valid file name
        return None
    return _find_in_cache(str(model))


def _find_in_cache(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (vLLM installs it; without it there is no cache)
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a valid repository name
        return None
    return Path(found).parent if isinstance(found, str) else None

"""What ``model_type="generate"`` means for a model: chat where it has a chat template, else completion."""

import json
import os
from pathlib import Path
from typing import Final

from vllmendpoint_api import ModelType

__all__ = ["detect_model_type"]

_TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_TOKENIZERS: Final = ("tokenizer_config.json", "tokenizer.json")


def detect_model_type(model: object) -> ModelType | None:
    """``model``: a folder, or a name that the Hugging Face cache of this machine holds.

    None where neither is there, or no tokenizer in it: nothing is fetched, so the type cannot be told. Reads
    a few small files.
    """
    folder = _folder(model)
    if folder is None:
        return None
    if any((folder / name).is_file() for name in _TEMPLATES):
        return ModelType.CHAT
    if any(folder.glob("additional_chat_templates/*.jinja")) or _configured(folder / "tokenizer_config.json"):
        return ModelType.CHAT
    return ModelType.COMPLETION if any((folder / name).is_file() for name in _TOKENIZERS) else None


def _configured(tokenizer_config: Path) -> bool:
    try:
        config = json.loads(tokenizer_config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _folder(model: object) -> Path | None:
    if not isinstance(model, str | os.PathLike) or not str(model):
        return None
    try:
        if Path(model).is_dir():
            return Path(model)
    except (OSError, ValueError):  # no name that a file can have
        return None
    return _cached(str(model))


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (comes with vLLM; else no cache)
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a repository can have
        return None
    return Path(found).parent if isinstance(found, str) else None

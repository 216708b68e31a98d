"""Parses the path of a handler: the four formats of ``docs/guide/custom-handlers.md`` ("Path formats"). Pure.

=====================================  ==================================================================
``model:f``                            the script: ``$SAGEMAKER_MODEL_PATH/$CUSTOM_SCRIPT_FILENAME``, or
                                       the one that the VLLMEndpoint contains
``/opt/ml/model/handlers.py:f``        a file by its absolute path
``handlers.py:f``                      a file in ``$SAGEMAKER_MODEL_PATH``
``package.module:f``                   an installed module
=====================================  ==================================================================

``f`` may be ``Class.method``, for a static or class method.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

__all__ = ["MODEL_ALIAS", "PATH_FORMATS", "HandlerPath", "PathKind", "parse_handler_path"]

MODEL_ALIAS: Final = "model"

PATH_FORMATS: Final = (
    "Use model:function, handlers.py:function, /path/handlers.py:function or package.module:function."
)
"""The fix for an invalid path."""

_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class PathKind(StrEnum):
    SCRIPT = "script"
    FILE = "file"
    MODULE = "module"


@dataclass(frozen=True, slots=True)
class HandlerPath:
    """``location`` is a file or the name of a module, ``attribute`` a dotted name in it."""

    kind: PathKind
    location: str
    attribute: str

    @property
    def text(self) -> str:
        return f"{self.location}:{self.attribute}"


def parse_handler_path(text: str) -> HandlerPath | str:
    """The path, or the fault of ``text``, without its content, which may come from the environment."""
    text = text.strip()
    if any(character.isspace() for character in text):
        return "contains a space"
    if text.startswith("/") and ":" not in text:
        return "is the path of a route or a file, and does not name a function"
    if text.count(":") != 1:
        return "contains no colon" if ":" not in text else "contains more than one colon"
    location, _, attribute = text.partition(":")
    if not location:
        return "does not name a file or module before the colon"
    if not _NAME.fullmatch(attribute):
        return "does not name a function after the colon"
    if location == MODEL_ALIAS:
        return HandlerPath(PathKind.SCRIPT, location, attribute)
    if location.endswith(".py"):
        if ".." in PurePosixPath(location).parts:
            return "leads out of the model's folder ('..')"
        return HandlerPath(PathKind.FILE, location, attribute)
    if not _NAME.fullmatch(location):
        return "names neither a .py file nor a module before the colon"
    return HandlerPath(PathKind.MODULE, location, attribute)

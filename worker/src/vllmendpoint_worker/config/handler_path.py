"""A handler's path: the guide's four "Path Formats". Pure.

=====================================  ==================================================================
``model:f``                            the script: ``$SAGEMAKER_MODEL_PATH/$CUSTOM_SCRIPT_FILENAME``, or
                                       the one that the VLLMEndpoint brings
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
    "use model:function, handlers.py:function, /path/handlers.py:function or package.module:function"
)
"""The fix of every sentence on a malformed path."""

_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class PathKind(StrEnum):
    SCRIPT = "script"
    FILE = "file"
    MODULE = "module"


@dataclass(frozen=True, slots=True)
class HandlerPath:
    """``where``: a file or a module's name; ``attribute``: a name in it, dots for a class's methods."""

    kind: PathKind
    where: str
    attribute: str

    @property
    def text(self) -> str:
        return f"{self.where}:{self.attribute}"


def parse_handler_path(text: str) -> HandlerPath | str:
    """The path, or what is wrong with it (never what stands there: it may come from the environment)."""
    text = text.strip()
    if any(character.isspace() for character in text):
        return "has a space in it"
    if text.startswith("/") and ":" not in text:
        return "is the path of a route or a file, without a function"
    if text.count(":") != 1:
        return "has no colon" if ":" not in text else "has more than one colon"
    where, _, attribute = text.partition(":")
    if not where:
        return "names no file or module before the colon"
    if not _NAME.fullmatch(attribute):
        return "names no function after the colon"
    if where == MODEL_ALIAS:
        return HandlerPath(PathKind.SCRIPT, where, attribute)
    if where.endswith(".py"):
        if ".." in PurePosixPath(where).parts:
            return "leaves the model's folder ('..')"
        return HandlerPath(PathKind.FILE, where, attribute)
    if not _NAME.fullmatch(where):
        return "names neither a .py file nor a module before the colon"
    return HandlerPath(PathKind.MODULE, where, attribute)

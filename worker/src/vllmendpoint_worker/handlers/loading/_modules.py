"""Modules of the customer's files: each file runs once a load, by whatever name it is asked for.

A handler's path loads a file as a module of its own. An ``import`` in a neighbouring file would load it
again, as another module, with its decorators and its state.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

__all__ = ["PREFIX", "Source", "imported", "names_of", "others"]

PREFIX: Final = "vllmendpoint_handlers_"
"""Begins the names of modules that a path has loaded."""


class Source(SourceFileLoader):
    """Compiles what is in the file now: a ``.pyc`` goes by the second, and a swap may be quicker."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        code: CodeType = compile(self._content, self.path, "exec", dont_inherit=True)
        return code

    def get_data(self, path: str) -> bytes:
        return self._content if path == self.path else super().get_data(path)


def others() -> frozenset[str]:
    """The names of the modules that no path has loaded."""
    modules = list(sys.modules.items())
    return frozenset(name for name, it in modules if not getattr(it, "__name__", "").startswith(PREFIX))


def names_of(file: Path, replaced: Path | None = None) -> list[str]:
    """The names by which ``import`` would load this file, or the one that it has replaced, which need not
    exist. A library's name stays the library's.
    """
    ours = {path.resolve() for path in (file, replaced) if path is not None}
    found = []
    for name in dict.fromkeys(path.stem for path in (file, replaced) if path is not None):
        if not name.isidentifier() or name in sys.builtin_module_names or name in others():
            continue
        spec = PathFinder.find_spec(name)
        if spec is None:
            mine = replaced is not None and name == replaced.stem
        else:
            mine = spec.origin is not None and Path(spec.origin).resolve() in ours
        if mine:
            found.append(name)
    return found


def imported(file: Path, before: frozenset[str]) -> ModuleType | None:
    """The module that an ``import`` has made of this file since there were the modules of ``before``."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name in before or name.startswith(PREFIX) or not isinstance(path, str):
            continue
        if Path(path).resolve() == file.resolve():
            return module
    return None

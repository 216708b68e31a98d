"""Modules of the customer's files: each file runs once in a load, under every name that imports it.

A handler's path loads a file as a module. Without this module, an ``import`` in another file would load the
file a second time, as another module with decorators and state of its own.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

__all__ = ["MODULE_PREFIX", "UncachedSourceLoader", "find_imported", "import_names", "imported_module_names"]

MODULE_PREFIX: Final = "vllmendpoint_handlers_"
"""Start of the names of modules that a path has loaded."""


class UncachedSourceLoader(SourceFileLoader):
    """Compiles the given content. A ``.pyc`` file is matched by the second, and a script may change
    faster.
    """

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        code: CodeType = compile(self._content, self.path, "exec", dont_inherit=True)
        return code

    def get_data(self, path: str) -> bytes:
        return self._content if path == self.path else super().get_data(path)


def imported_module_names() -> frozenset[str]:
    """Names of the modules that an ``import``, and no handler's path, has loaded."""
    modules = list(sys.modules.items())
    return frozenset(
        name for name, module in modules if not getattr(module, "__name__", "").startswith(MODULE_PREFIX)
    )


def import_names(file: Path, replaced: Path | None = None) -> list[str]:
    """The names by which ``import`` would load ``file``, or the file that it replaces, which need not exist.

    A name that a library has remains the library's.
    """
    files = {path.resolve() for path in (file, replaced) if path is not None}
    found = []
    for name in dict.fromkeys(path.stem for path in (file, replaced) if path is not None):
        if not name.isidentifier() or name in sys.builtin_module_names or name in imported_module_names():
            continue
        spec = PathFinder.find_spec(name)
        if spec is None:
            matches = replaced is not None and name == replaced.stem
        else:
            matches = spec.origin is not None and Path(spec.origin).resolve() in files
        if matches:
            found.append(name)
    return found


def find_imported(file: Path, before: frozenset[str]) -> ModuleType | None:
    """The module that an ``import`` has created from ``file``. ``before``: modules to ignore, by name."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name in before or name.startswith(MODULE_PREFIX) or not isinstance(path, str):
            continue
        if Path(path).resolve() == file.resolve():
            return module
    return None

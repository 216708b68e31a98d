"""The changes that one import makes in the process, which are kept or reverted together."""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from vllmendpoint_worker.config.handler_config import HandlerConfig
from vllmendpoint_worker.errors import HandlerTimeoutError

from ._load_problems import code_folders
from ._modules import MODULE_PREFIX
from ._process_state import ScriptChanges, preserve_process_state
from ._standards import ScriptLoader, empty_registries

__all__ = ["ImportTransaction"]


class ImportTransaction:
    """One import. It is ended once, either by the import itself or by the caller that gives it up.

    ``other_modules``: names of modules that are not the customer's; ``previous``: the changes of the script
    that is active.
    """

    def __init__(
        self, config: HandlerConfig, generation: int, other_modules: frozenset[str], previous: ScriptChanges
    ) -> None:
        self.config = config
        self.script_changes = ScriptChanges()
        self.scripts = ScriptLoader(config, generation)
        self._folders = code_folders(config)
        self._other_modules = other_modules
        self._previous = previous
        self._removed: dict[str, ModuleType] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._ended = False

    def begin(self) -> None:
        """Revert the previous script's changes and record the state. Raises HandlerTimeoutError if the import
        was already given up.
        """
        with self._lock:
            if self._ended:
                raise HandlerTimeoutError
            self._removed = self._remove_customer_modules()
            self._previous.revert()
            for folder in self._folders:
                if str(folder) not in sys.path:
                    sys.path.append(str(folder))  # last, so that no file hides a library of the same name
            self._stack.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
            sys.dont_write_bytecode = True  # a .pyc is matched by the second, and a script may change faster
            self._stack.enter_context(preserve_process_state())
            self._stack.enter_context(empty_registries())
            self.script_changes.begin()

    def end(self, *, failed: bool) -> bool:
        """Restore the process state; if ``failed``, also the previous script's changes and modules.

        False if the import was already given up. It must then change nothing, because a newer import may run.
        """
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            self.script_changes.end()
            self._stack.close()
            if failed:
                self.script_changes.revert()
                self._previous.reapply()
                self._remove_customer_modules()
                for name in list(self.scripts.modules):
                    sys.modules.pop(name, None)
                sys.modules.update(self._removed)
        return True

    def imported_files(self) -> frozenset[Path]:
        """All files of the customer's code that were imported."""
        scripts = [Path(str(module.__file__)) for module in self.scripts.modules.values() if module.__file__]
        modules = list(sys.modules.items())
        return frozenset(scripts).union(
            path for name, module in modules if (path := self._customer_file(name, module))
        )

    def _remove_customer_modules(self) -> dict[str, ModuleType]:
        """Remove the customer's modules from ``sys.modules``, so that an import reads their files again."""
        found = {
            name: module for name, module in list(sys.modules.items()) if self._customer_file(name, module)
        }
        for name in found:
            del sys.modules[name]
        return found

    def _customer_file(self, name: str, module: ModuleType | None) -> Path | None:
        """The file of a module in the customer's folders; None for other modules and installed libraries."""
        file = getattr(module, "__file__", None)
        if name in self._other_modules or not isinstance(file, str) or name.startswith(MODULE_PREFIX):
            return None
        path = Path(file)
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            return None
        return path if any(path.is_relative_to(folder) for folder in self._folders) else None

"""The process state that a script changes during its import is restored immediately or with its handlers."""

import asyncio
import gc
import locale
import logging
import multiprocessing
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import Reason
from vllmendpoint_worker.handlers.loading import _loader

PING = "\ndef custom_sagemaker_ping_handler(request):\n    return 1\n"


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """A logger that was there before the script."""
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield logger
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def loggers() -> Any:
    found = []
    for logger in (logging.getLogger(), logging.getLogger("some.library")):
        outputs = [(it, it.level, it.formatter, list(it.filters)) for it in logger.handlers]
        found.append((logger.level, logger.disabled, logger.propagate, outputs, list(logger.filters)))
    return found, logging.root.manager.disable, logging.getLogRecordFactory(), logging.getLoggerClass()


BASIC_CONFIG = """
import logging
logging.basicConfig(level=1, force=True)
logging.getLogger("some.library").setLevel(1)
"""
DICT_CONFIG = """
import logging.config
logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
"""
LIBRARYS_LOGGER = """
import logging
library = logging.getLogger("some.library")
library.handlers[0].setLevel(50)
library.handlers[0].setFormatter(logging.Formatter())
library.addFilter(lambda record: False)
library.addHandler(logging.NullHandler())
library.propagate = False
logging.disable(50)
"""
POLICY = """
import asyncio
class Policy(asyncio.DefaultEventLoopPolicy): pass
asyncio.set_event_loop_policy(Policy())
"""
AT_ONCE: dict[str, tuple[str, Callable[[], Any]]] = {
    "warnings are errors": (
        'import warnings; warnings.filterwarnings("error")',
        lambda: list(warnings.filters),
    ),
    "warnings are off": ('import warnings; warnings.simplefilter("ignore")', lambda: list(warnings.filters)),
    "no filters": ("import warnings; warnings.resetwarnings()", lambda: list(warnings.filters)),
    "captured warnings": ("import logging; logging.captureWarnings(True)", lambda: warnings.showwarning),
    "basicConfig": (BASIC_CONFIG, loggers),
    "dictConfig": (DICT_CONFIG, loggers),
    "a library's logger": (LIBRARYS_LOGGER, loggers),
    "records": ("import logging; logging.setLogRecordFactory(lambda *a, **k: None)", loggers),
    "streams": (
        "import io, sys; sys.stdout = sys.stderr = io.StringIO()",
        lambda: (sys.stdout, sys.stderr),
    ),
    "hooks": (
        "import sys, threading; sys.excepthook = threading.excepthook = sys.unraisablehook = print",
        lambda: (sys.excepthook, threading.excepthook, sys.unraisablehook),
    ),
    "sockets": ("import socket; socket.setdefaulttimeout(0.001)", socket.getdefaulttimeout),
    "loops": (POLICY, asyncio.get_event_loop_policy),
}


@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.parametrize("end", [PING, "\nraise KeyError\n"], ids=["accepted", "refused"])
async def test_state_that_the_worker_needs_is_restored_after_the_import(
    served: Served, library: logging.Logger, name: str, end: str
) -> None:
    code, state = AT_ONCE[name]
    before = state()
    for generation in ("one", "two"):
        served.script(f"{code}{end}# {generation}\n")
        if end == PING:
            await served.start()
            assert (await served.request()).json() == 1
        else:
            assert "KeyError" in (await served.rejection()).message
        assert state() == before


async def test_warnings_as_errors_do_not_break_a_later_load(served: Served) -> None:
    """Compiling the second script warns of its escape."""
    served.script(f'import warnings\nwarnings.filterwarnings("error"){PING}')
    await served.start()
    warned = '\ndef custom_sagemaker_ping_handler(request):\n    return "a\\d"\n'
    served.script(warned)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(
            SyntaxWarning if sys.version_info >= (3, 12) else DeprecationWarning, match="escape"
        ):
            await served.start()
    assert (await served.request()).json() == "a\\d"


async def test_a_script_can_turn_warnings_of_its_own_import_into_errors(served: Served) -> None:
    served.script('import warnings\nwarnings.filterwarnings("error")\nwarnings.warn("old")\n')
    problem = await served.rejection()
    assert "failed at model.py line 3: UserWarning" in problem.message


async def test_warning_filters_of_another_thread_are_kept(served: Served) -> None:
    before, content = warnings.filters, list(warnings.filters)
    go, done = threading.Event(), threading.Event()

    def other() -> None:
        with warnings.catch_warnings():
            go.wait(10)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    served.manager.gates = (go, done)  # type: ignore[attr-defined]
    sys.modules["gates_of_the_test"] = served.manager  # type: ignore[assignment]
    try:
        served.script(
            "import warnings\nfrom gates_of_the_test import gates\n"
            f'warnings.filterwarnings("error")\ngates[0].set()\ngates[1].wait(10){PING}'
        )
        await served.start()
    finally:
        del sys.modules["gates_of_the_test"]
        go.set()
        thread.join()
    assert warnings.filters is before
    assert list(warnings.filters) == content


def working_folder() -> str:
    return str(Path.cwd())


LASTING: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "environment": (
        'import os; os.environ["A_NEW_ONE"] = "1"; os.environ["HOME"] = "/changed"; os.environ.pop("PATH")',
        lambda: [os.environ.get(name) for name in ("A_NEW_ONE", "HOME", "PATH")],
        ["1", "/changed", None],
    ),
    "folder": ('import os; os.chdir("/")', working_folder, "/"),
    "search path": ('import sys; sys.path.insert(0, "/a/new/one")', lambda: sys.path[0], "/a/new/one"),
    "a replaced module": (
        'import sys, types; sys.modules["colorsys"] = types.ModuleType("colorsys"); import colorsys',
        lambda: __import__("importlib").import_module("colorsys").__doc__,
        None,
    ),
    "a stub": (
        'import sys, types; sys.modules["a_stub_of_the_test"] = types.ModuleType("stub")',
        lambda: "a_stub_of_the_test" in sys.modules,
        True,
    ),
    "locale": (
        'import locale; locale.setlocale(locale.LC_TIME, "C.UTF-8")',
        lambda: locale.setlocale(locale.LC_TIME),
        "C.UTF-8",
    ),
    "start method": (
        'import multiprocessing; multiprocessing.set_start_method("forkserver")',
        lambda: multiprocessing.get_start_method(allow_none=True),
        "forkserver",
    ),
    "recursion": ("import sys; sys.setrecursionlimit(7777)", sys.getrecursionlimit, 7777),
    "garbage": (
        "import gc; gc.disable(); gc.set_threshold(7, 7, 7)",
        lambda: (gc.isenabled(), gc.get_threshold()),
        (False, (7, 7, 7)),
    ),
    "metrics": (
        'from prometheus_client import Counter; asked = Counter("asked_of_the_test", "Asked.")',
        lambda: b"asked_of_the_test" in generate_latest(REGISTRY),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LASTING)
async def test_changes_for_the_handlers_last_as_long_as_the_handlers(served: Served, name: str) -> None:
    code, state, expected = LASTING[name]
    before = state()
    assert before != expected
    for generation in ("one", "two"):  # the second begins as the first did
        served.script(f"{code}{PING}# {generation}\n")
        await served.start()
        assert state() == expected
        served.script("raise KeyError\n")
        assert "KeyError" in (await served.rejection()).message
        assert state() == expected, "the last valid handlers stay active"
        served.script(f"{code}\nraise KeyError\n")
        assert "KeyError" in (await served.rejection()).message
        assert state() == expected
    served.script(PING)
    await served.start()
    assert state() == before


async def test_a_rejected_script_does_not_change_the_process(served: Served) -> None:
    states = {name: state for name, (_, state, _) in LASTING.items()}
    before = {name: state() for name, state in states.items()}
    for name, (code, _, _) in LASTING.items():
        served.script(f"{code}\nraise KeyError\n")
        await served.rejection()
        assert states[name]() == before[name], name


async def test_changes_by_other_code_during_an_import_are_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.script(f'import os; os.environ["A_NEW_ONE"] = "1"; os.environ["ANOTHER"] = "1"{PING}')
    await served.start()
    monkeypatch.setenv("A_NEW_ONE", "theirs")
    monkeypatch.setenv("OF_OTHERS", "theirs")
    served.script(PING)
    await served.start()
    assert [os.environ.get(it) for it in ("A_NEW_ONE", "ANOTHER", "OF_OTHERS")] == ["theirs", None, "theirs"]


async def test_imported_libraries_remain(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_library_of_the_test.py").write_text(
        "import logging\nlogging.getLogger(__name__).setLevel(10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    served.script(f"import a_library_of_the_test{PING}")
    await served.start()
    first = sys.modules["a_library_of_the_test"]
    served.script(f"import a_library_of_the_test{PING}# again\n")
    await served.start()
    assert sys.modules.pop("a_library_of_the_test") is first
    assert logging.getLogger("a_library_of_the_test").level == 10


async def test_an_abandoned_import_does_not_change_the_process(
    served: Served, library: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.manager._loader, "_seconds", 0.5)
    changes = [(code, state) for code, state, *_ in (*AT_ONCE.values(), *LASTING.values())]
    codes = [code for code, _ in changes if "Factory" not in code]  # the log of others fails meanwhile
    states = [state for _, state in changes]
    before = [state() for state in states]
    served.script("\n".join(codes) + "\nimport time\ntime.sleep(3)\n")
    assert "not imported within" in (await served.rejection()).message
    assert [state() for state in states] == before
    for thread in threading.enumerate():
        if thread.name == "handlers":
            thread.join(10)
    assert [state() for state in states] == before


async def test_a_failure_of_the_worker_is_not_reported_as_the_scripts(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise AttributeError("the worker's own")

    served.script(PING)
    monkeypatch.setattr(_loader, "_handlers", broken)
    problem = await served.rejection()
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert problem.message.startswith("The worker failed while it loaded the handlers (AttributeError).")

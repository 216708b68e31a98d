"""Problems of handlers are reported with file, line and fix, and the last valid handlers stay active."""

import json
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.worker.handlers_served import GUIDE, INVOCATIONS, MIDDLEWARE, PING, Served
from vllmendpoint_api import HandlerSource, Reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("health_check", "contains no colon"),
        ("/health", "the path of a route"),
        ("a:b:c", "more than one colon"),
        ("model:health check", "contains a space"),
        (":health", "does not name a file or module before"),
        ("model:", "does not name a function after"),
        ("model:1f", "does not name a function after"),
        ("../x.py:f", "leads out of the model's folder"),
        ("no-module:f", "neither a .py file nor a module"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "spec"])
def test_malformed_paths_are_rejected(served: Served, text: str, expected: str, where: str) -> None:
    served.script((GUIDE / "decorators.py").read_text())
    if where == "spec":
        served.spec(ping=text)
    else:
        served.environ[PING] = text
    (problem,) = served.problems()
    assert problem.reason == Reason.INVALID_HANDLER
    assert expected in problem.message
    assert problem.field == ("handlers.ping" if where == "spec" else PING)
    assert problem.source == ("Spec" if where == "spec" else "Environment")
    assert text not in problem.message.partition(". Use")[0]
    assert "Use model:function" in problem.message


@pytest.mark.parametrize(
    ("environ", "script", "reason", "expected"),
    [
        ({"CUSTOM_SCRIPT_FILENAME": "gone.py"}, None, Reason.SCRIPT_NOT_FOUND, "a file that does not exist"),
        ({"SAGEMAKER_MODEL_PATH": "/nowhere"}, None, Reason.SCRIPT_NOT_FOUND, "a folder that does not exist"),
        ({PING: "model:f"}, None, Reason.SCRIPT_NOT_FOUND, "contains no script"),
        ({}, "def f(:\n", Reason.HANDLER_IMPORT_FAILED, "model.py line 1"),
        (
            {"SAGEMAKER_CONTAINER_LOG_LEVEL": "LOUD"},
            None,
            Reason.INVALID_ENVIRONMENT,
            "Use ERROR, INFO or DEBUG.",
        ),
    ],
)
def test_problems_are_reported_before_any_code_runs(
    served: Served, environ: dict[str, str], script: str | None, reason: Reason, expected: str
) -> None:
    served.environ |= environ
    if script is not None:
        served.script(script)
    (problem,) = served.problems()
    assert problem.reason == reason
    assert expected in problem.message


@pytest.mark.parametrize(
    ("script", "reason", "expected"),
    [
        ("import no_such_module_here\n", Reason.HANDLER_IMPORT_FAILED,
         "model.py line 1: ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("x = 1\ny = undefined\n", Reason.HANDLER_IMPORT_FAILED, "model.py line 2: NameError"),
        ("raise ValueError('the secret token')\n", Reason.HANDLER_IMPORT_FAILED, "line 1: ValueError."),
        ("import sys\nsys.exit(3)\n", Reason.HANDLER_IMPORT_FAILED,
         "calls sys.exit() while it is imported (model.py line 2)"),
        ("def g(request):\n    pass\n", Reason.HANDLER_NOT_FOUND, "names a function that does not exist"),
        ("f = 3\n", Reason.INVALID_HANDLER, "is not callable (a int)"),
        ("class f:\n    def m(self, r):\n        pass\n\nf = f.m\n",
         Reason.INVALID_HANDLER, "is a method that needs an instance"),
        ("def f(*, request: 3):\n    pass\n", Reason.INVALID_HANDLER, "parameters that FastAPI refuses"),
    ],
)  # fmt: skip
async def test_problems_of_a_script_are_reported_when_it_runs(
    served: Served, script: str, reason: Reason, expected: str
) -> None:
    served.script("def f(request):\n    return 'the last good one'\n")
    served.environ[PING] = "model:f"
    await served.start()
    served.script(script)
    problem = await served.rejection()
    assert problem.reason == reason, problem
    assert expected in problem.message
    assert "secret" not in problem.message
    assert (await served.request()).json() == "the last good one"


@pytest.mark.parametrize("environ", [{}, {PING: "no_such_module_here:f"}])
async def test_a_missing_module_has_the_remedy_to_install_it(served: Served, environ: dict[str, str]) -> None:
    served.script("import no_such_module_here\n")
    served.environ |= environ
    message = (await served.rejection()).message
    assert "Name its package in requirements.txt in $SAGEMAKER_MODEL_PATH" in message
    assert "Correct the code" not in message


@pytest.mark.parametrize(
    ("path", "reason", "expected"),
    [
        ("gone.py:f", Reason.SCRIPT_NOT_FOUND, "a file that does not exist. Put the file in "),
        ("/gone/away.py:f", Reason.SCRIPT_NOT_FOUND, "a file that does not exist. Create the file."),
        (
            "no_such_module_here:f",
            Reason.HANDLER_NOT_FOUND,
            "a module that does not exist. Correct the name, or",
        ),
        ("json.gone.away:f", Reason.HANDLER_NOT_FOUND, "a module that does not exist. Correct the name, or"),
        ("json:gone", Reason.HANDLER_NOT_FOUND, "a function that does not exist. Define it or correct"),
        ("json:A.b", Reason.HANDLER_NOT_FOUND, "a function that does not exist. Define it or correct"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "spec"])
async def test_a_path_to_a_missing_object_is_rejected(
    served: Served, path: str, reason: Reason, expected: str, where: str
) -> None:
    if where == "spec":
        served.spec(invocations=path)
    else:
        served.environ[INVOCATIONS] = path
    problem = await served.rejection()
    assert problem.reason == reason
    field = f"handlers.invocations ({path})" if where == "spec" else INVOCATIONS
    assert problem.message.startswith(f"{field} names {expected}"), (
        "values of the environment are not reported"
    )


async def test_a_missing_import_of_a_module_is_not_reported_as_the_module_itself(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_elsewhere.py").write_text("import no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    served.spec(invocations="installed_elsewhere:f")
    problem = await served.rejection()
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert "No module named 'no_such_module_here'" in problem.message


async def test_a_default_script_is_reported_as_the_script(served: Served) -> None:
    served.script("import no_such_module_here\n")
    problem = await served.rejection()
    assert (problem.source, problem.field) == ("Script", "the script")
    served.environ["CUSTOM_SCRIPT_FILENAME"] = "model.py"
    problem = await served.rejection()
    assert (problem.source, problem.field) == ("Environment", "CUSTOM_SCRIPT_FILENAME")


async def test_a_handler_name_that_is_not_a_function_is_rejected(served: Served) -> None:
    served.script("custom_sagemaker_ping_handler = 'yes'\n")
    problem = await served.rejection()
    assert problem.reason == Reason.INVALID_HANDLER
    assert "custom_sagemaker_ping_handler is not callable" in problem.message


NEWER = """
import threading
import model_hosting_container_standards.sagemaker as standards
import neighbour

@standards.custom_ping_handler
def ping(request):
    import neighbour as at_run_time
    return [neighbour.WORD, at_run_time.WORD]

for thread in threading.enumerate():
    if thread.name == "handlers" and thread is not threading.current_thread():
        thread.join(20)
"""


@pytest.mark.parametrize(
    "hangs",
    [
        "time.sleep(5)",  # in C: it wakes when it is over
        "try:\n    time.sleep(5)\nexcept BaseException:\n    pass",
    ],
)
async def test_an_abandoned_import_changes_nothing_when_it_continues(
    served: Served, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    served.script("WORD = 'old'\n", "neighbour.py")
    served.script("import neighbour\n")
    await served.start()
    old, writing = sys.modules["neighbour"], sys.dont_write_bytecode
    monkeypatch.setattr(served.manager._loader, "_seconds", 1.0)
    served.script("WORD = 'given up'\n", "neighbour.py")
    served.script(f"import time\nimport neighbour\n{hangs}\n")
    problem = await served.rejection()
    assert "not imported within 1 s (model.py line" in problem.message
    assert any(thread.name == "handlers" for thread in threading.enumerate()), "it still sleeps"
    assert sys.modules["neighbour"] is old
    monkeypatch.setattr(served.manager._loader, "_seconds", 30.0)
    served.script("WORD = 'new'\n", "neighbour.py")
    served.script(NEWER)  # ends when the one given up has
    await served.start()
    assert served.manager.report().ping.source == HandlerSource.DECORATOR
    assert (await served.request()).json() == ["new", "new"]
    assert sys.dont_write_bytecode == writing


@pytest.mark.parametrize(
    "hangs",
    [
        "while True:\n    pass\n",
        "while True:\n    try:\n        int('x')\n    except Exception:\n        pass\n",
    ],
)
async def test_an_import_that_hangs_is_abandoned(
    served: Served, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    monkeypatch.setattr(served.manager._loader, "_seconds", 2.0)
    served.script(hangs)
    problem = await served.rejection()
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert "not imported within 2 s (model.py line" in problem.message
    for thread in threading.enumerate():
        if thread.name == "handlers":
            thread.join(5)
            assert not thread.is_alive(), "an endless loop is ended"
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'corrected'\n")
    await served.start()
    assert (await served.request()).json() == "corrected"


async def test_a_failed_import_leaves_no_trace(served: Served) -> None:
    served.script((GUIDE / "decorators.py").read_text() + "\nimport no_such_module_here\n")
    await served.rejection()
    served.script("x = 1\n")
    await served.start()
    assert served.manager.report().ping.source == HandlerSource.DEFAULT


async def test_an_invalid_middleware_is_rejected(served: Served) -> None:
    served.script(MIDDLEWARE)
    served.environ["CUSTOM_PRE_PROCESS"] = "model:gone"
    problem = await served.rejection()
    assert (problem.reason, problem.field) == (Reason.HANDLER_NOT_FOUND, "CUSTOM_PRE_PROCESS")
    assert json.dumps(problem.wire())

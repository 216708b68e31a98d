"""The script and every file that it imports run once in a load, under every name that imports them."""

import json
import sys
from collections.abc import Iterator

import pytest

from tests.unit.worker.handlers_served import INVOCATIONS, PING, Served
from vllmendpoint_worker.handlers.loading import _modules

SCRIPT = """
import os
RUNS = os.environ["RUNS"] = os.environ.get("RUNS", "") + "m"
state = []
def shared():
    return state
import helper
async def custom_sagemaker_ping_handler(request):
    state.append("asked")
    return [helper.seen(), RUNS]
async def custom_sagemaker_invocation_handler(request):
    return [helper.seen(), VERSION]
VERSION = 1
"""
HELPER = """
import model
from model import shared
def seen():
    import model as again
    assert again is model
    return [shared(), model.VERSION, model.shared is shared]
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, clean: None) -> Iterator[None]:
    """The tests' folders differ, so that no load forgets the modules of the last test."""
    monkeypatch.delenv("RUNS", raising=False)
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if name.partition(".")[0] in (
            "model",
            "helper",
            "my_handlers",
            "handlers",
            "sub",
            "one",
            "two",
            "far",
        ):
            del sys.modules[name]


async def test_another_file_that_imports_the_script_does_not_run_it_again(served: Served) -> None:
    served.script(SCRIPT)
    served.script(HELPER, "helper.py")
    await served.start()
    assert (await served.request()).json() == [[["asked"], 1, True], "m"]
    served.script(SCRIPT.replace("VERSION = 1", "VERSION = 2"))
    await served.start()
    assert (await served.request("/invocations", {})).json() == [[[], 2, True], 2], "the changed script"


async def test_after_a_rejected_script_other_files_still_use_the_last_valid_one(served: Served) -> None:
    served.script(SCRIPT)
    served.script(HELPER, "helper.py")
    await served.start()
    served.script(SCRIPT.replace("VERSION = 1", "VERSION = 2\nraise KeyError"))
    await served.rejection()
    assert (await served.request("/invocations", {})).json() == [[[], 1, True], 1]


async def test_only_the_scripts_decorated_functions_are_used(served: Served) -> None:
    served.script("""
import model_hosting_container_standards.sagemaker as standards
calls = []
@standards.custom_ping_handler
async def ping(request):
    calls.append(1)
    import helper
    return helper.model.calls == calls
""")
    served.script("import model\n", "helper.py")
    await served.start()
    assert (await served.request()).json() is True


async def test_other_files_import_the_script_of_the_spec(served: Served) -> None:
    served.script("raise RuntimeError('it is replaced')\n")
    served.script(HELPER, "helper.py")
    served.spec(script=SCRIPT)
    await served.start()
    assert (await served.request()).json() == [[["asked"], 1, True], "m"]


@pytest.mark.parametrize("replaced", [False, True])
async def test_other_files_import_a_script_with_another_name(served: Served, replaced: bool) -> None:
    served.environ["CUSTOM_SCRIPT_FILENAME"] = "my_handlers.py"
    served.script(HELPER.replace("model", "my_handlers"), "helper.py")
    if replaced:
        served.spec(script=SCRIPT)
    else:
        served.script(SCRIPT, "my_handlers.py")
    await served.start()
    assert (await served.request()).json() == [[["asked"], 1, True], "m"]


@pytest.mark.parametrize("name", ["json", "fractions", "sys"])
async def test_a_script_does_not_hide_a_library_of_the_same_name(served: Served, name: str) -> None:
    served.environ["CUSTOM_SCRIPT_FILENAME"] = f"{name}.py"
    served.script(
        "import helper\nasync def custom_sagemaker_ping_handler(r):\n    return helper.file\n", f"{name}.py"
    )
    served.script(f"import {name}\nfile = str(getattr({name}, '__file__', ''))\n", "helper.py")
    await served.start()
    assert str(served.folder) not in (await served.request()).json()


async def test_a_script_can_import_itself(served: Served) -> None:
    served.script(
        "import model\nstate = []\nasync def custom_sagemaker_ping_handler(r):\n"
        "    return model.state is state\n"
    )
    await served.start()
    assert (await served.request()).json() is True


NEIGHBOUR = """
import os
os.environ["RUNS"] = os.environ.get("RUNS", "") + "n"
state = []
async def ping(request):
    state.append(1)
    return [len(state), os.environ["RUNS"]]
async def invoke(request):
    return [len(state), os.environ["RUNS"]]
"""


@pytest.mark.parametrize("where", ["handlers", "sub.handlers"])
@pytest.mark.parametrize("imports", [True, False], ids=["imported", "not imported"])
async def test_a_file_that_a_path_names_and_a_script_imports_runs_once(
    served: Served, where: str, imports: bool
) -> None:
    path = where.replace(".", "/") + ".py"
    served.script(f"import {where} as neighbour\n" if imports else "\n")
    served.script(NEIGHBOUR, path)
    served.environ |= {PING: f"{path}:ping", INVOCATIONS: f"{served.folder / path}:invoke"}
    await served.start()
    assert (await served.request()).json() == [1, "n"]
    assert (await served.request("/invocations", {})).json() == [1, "n"]
    served.script(NEIGHBOUR.replace("1)", "1); state.append(2)"), path)
    await served.start()
    assert (await served.request()).json() == [2, "n"], "a changed file runs again"


async def test_a_file_that_a_path_names_and_another_named_file_imports_runs_once(served: Served) -> None:
    served.script(NEIGHBOUR, "one.py")
    served.script("import one\nasync def invoke(request):\n    return await one.invoke(request)\n", "two.py")
    served.environ |= {PING: "one.py:ping", INVOCATIONS: "two.py:invoke"}
    await served.start()
    assert (await served.request()).json() == [1, "n"]
    assert (await served.request("/invocations", {})).json() == [1, "n"]


async def test_a_changed_file_in_another_folder_is_imported_again(served: Served) -> None:
    elsewhere = served.folder.parent / "elsewhere"
    served.script("import sys\nsys.path.append('../elsewhere')\n".replace("..", str(served.folder.parent)))
    served.script(NEIGHBOUR, str(elsewhere / "far.py"))
    served.environ[PING] = f"{elsewhere / 'far.py'}:ping"
    await served.start()
    assert (await served.request()).json() == [1, "n"]
    served.script(NEIGHBOUR.replace("1)", "1); state.append(2)"), str(elsewhere / "far.py"))
    await served.start()
    assert (await served.request()).json()[0] == 2


async def test_modules_of_a_former_script_are_removed(served: Served) -> None:
    served.script(SCRIPT)
    served.script(HELPER, "helper.py")
    await served.start()
    served.script("async def custom_sagemaker_ping_handler(r):\n    return 1\n", "other.py")
    served.environ["CUSTOM_SCRIPT_FILENAME"] = "other.py"
    await served.start()
    assert "helper" not in sys.modules
    assert "model" not in sys.modules
    assert json.loads((await served.request()).text) == 1
    assert _modules.import_names(served.folder / "no-name.py") == []

"""Random handlers in the spec and the environment: each path is used or rejected, no secret is repeated."""

import json
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.worker.config.fuzz_checks import load, problems_of
from tests.unit.worker.fuzzing import SECRET, fuzz, raw_text, scalars, values
from vllmendpoint_api import script_digest
from vllmendpoint_worker.config.handler_config import HANDLER_VARIABLES, MIDDLEWARE_VARIABLES, Route
from vllmendpoint_worker.config.sources import LoadedConfiguration

VALID_PATHS = ["model:f", "handlers.py:f", "/a/b.py:C.m", "package.module:f", " model:f\n"]
INVALID_PATHS = [
    SECRET,
    f"{SECRET}:",
    f":{SECRET}",
    f"{SECRET}:f:g",
    f"/{SECRET}",
    f"../{SECRET}.py:f",
    "a b:c",
]
paths = st.sampled_from([*VALID_PATHS, *INVALID_PATHS]) | raw_text
scripts = st.sampled_from([b"x = 1\n", b"def f(:\n", b"\x00", b"\xff", b"# coding: hex\n"]) | st.binary(
    max_size=20
)


def assert_used_or_rejected(
    loaded: LoadedConfiguration, settings: dict[str, Any], fields: dict[Route, str], problems: dict[str, str]
) -> None:
    """Each path is used unchanged, or rejected with its field."""
    assert loaded.handlers is not None
    for route, field in fields.items():
        text = settings.get(field)
        if text is None or not text.strip():
            continue
        reference = loaded.handlers.references.get(route)
        if reference is None:
            assert field in problems
            assert text not in VALID_PATHS
        else:
            assert (reference.field, reference.path.text) == (field, text.strip())
            assert text not in INVALID_PATHS


@given(
    handlers=st.fixed_dictionaries(
        {},
        optional={
            "scriptDigest": st.sampled_from([script_digest(b"x = 1\n"), "other"]) | scalars,
            "ping": paths | scalars,
            "invocations": paths | scalars,
            "unknown": values,
        },
    )
    | values,
    script=scripts,
)
@example(
    handlers={"scriptDigest": script_digest(b"x=" + b"-" * 99_999 + b"1")},
    script=b"x=" + b"-" * 99_999 + b"1",
)
@example(handlers={"scriptDigest": script_digest(b"x=1" + b"+1" * 99_999)}, script=b"x=1" + b"+1" * 99_999)
@example(handlers={"ping": "a\x00.py:f"}, script=b"")
@fuzz(400)
def test_the_handlers_of_the_spec_are_used_or_rejected(folder: Path, handlers: Any, script: bytes) -> None:
    (folder / "model.py").write_bytes(script)
    (folder / "settings.json").write_text(json.dumps({"handlers": handlers}))
    loaded = load(folder, {"SM_VLLM_MODEL": "m"})
    problems = problems_of(loaded)
    (folder / "settings.json").unlink()
    if loaded.sources.spec_problems or handlers is None:
        return
    assert_used_or_rejected(loaded, handlers, {route: f"handlers.{route[1:]}" for route in Route}, problems)
    assert loaded.handlers is not None
    if handlers.get("scriptDigest") is not None and loaded.handlers.script is None:
        assert "handlers.script" in problems


@given(
    environ=st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys([*HANDLER_VARIABLES.values(), *MIDDLEWARE_VARIABLES], paths),
            "CUSTOM_SCRIPT_FILENAME": st.sampled_from(["model.py", SECRET, ".", "/"]) | raw_text,
            "SAGEMAKER_MODEL_PATH": st.sampled_from([SECRET, f"/{SECRET}" * 600, f"{SECRET}/" * 40])
            | raw_text,
            "SAGEMAKER_CONTAINER_LOG_LEVEL": st.sampled_from(["debug", "10", SECRET, "1" * 5000]) | raw_text,
        },
    ),
    script=scripts,
)
@example(environ={"CUSTOM_SCRIPT_FILENAME": SECRET * 30}, script=b"")
@fuzz(400)
def test_the_handlers_of_the_environment_are_used_or_rejected(
    folder: Path, environ: dict[str, str], script: bytes
) -> None:
    (folder / "model.py").write_bytes(script)
    loaded = load(folder, {"SM_VLLM_MODEL": "m", **environ})
    problems = problems_of(loaded)
    assert SECRET not in json.dumps(problems)
    assert_used_or_rejected(loaded, environ, HANDLER_VARIABLES, problems)
    assert loaded.handlers is not None
    level = environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "").strip().upper()
    assert loaded.handlers.log_level == ("" if "SAGEMAKER_CONTAINER_LOG_LEVEL" in problems else level)
    assert level not in (SECRET, "1" * 5000) or "SAGEMAKER_CONTAINER_LOG_LEVEL" in problems

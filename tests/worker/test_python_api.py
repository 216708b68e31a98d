"""The guide's Python, as printed, on Dynamo's real runtime: file discovery, loopback, no engine.

Each program runs in a process of its own: it changes the environment, and Dynamo's runtime lives as long as
the process does. A file controls how its handler behaves.
"""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port

from .conftest import LOOPBACK, ROOT
from .guide_python import (
    BASIC_USAGE,
    COMPLETE_EXAMPLE,
    CUSTOM_PAYLOAD,
    GLOBAL_DEFAULT,
    MODEL_SPECIFIC,
    PYTHON_CONFIG,
)

SECONDS = 60.0

PRELUDE = """
import asyncio, json, sys
import vllmendpoint_worker.compat

config = type("Config", (), {"model": MODEL})
BEHAVIOUR = sys.argv[1]

def say(**what):
    print(json.dumps(what), flush=True)

class Handler:
    async def generate(self, requestSIGNATURE):
        say(request=request, with_context=WITH_CONTEXT)
        behaviour = open(BEHAVIOUR).read()
        if behaviour == "raise":
            raise RuntimeError("as the test requests")
        if behaviour == "hang":
            await asyncio.sleep(3600)
        if behaviour != "empty":
            yield {"token_ids": [1], "finish_reason": "stop"}

handler = Handler()
"""

BLOCK = """
async def main():
    import ast, inspect
    from dynamo import DistributedRuntime
    runtime = await DistributedRuntime.from_settings()
    endpoint = runtime.namespace("vllm").component("inference").endpoint("generate")
    names = globals() | {"endpoint": endpoint}
    for block in BLOCKS:
        running = eval(compile(block, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.isawaitable(running):
            await running
    say(ended=True)

asyncio.run(main())
"""

RUN_EXAMPLE = """
asyncio.run(setup_vllm_with_health_checks())
"""

SERVE_WITHOUT = "await endpoint.serve_endpoint(handler=handler.generate)"


class Program:
    """One process. ``environ`` comes on top of the loopback set."""

    def __init__(self, folder: Path, source: str, environ: dict[str, str]) -> None:
        self._behaviour = folder / "behaviour"
        self._output = folder / "output"
        self.port = free_port()
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DYN_", "VLLM", "SAGEMAKER", "SM_"))
        }
        self.behave("answer")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", source, str(self._behaviour)],
                stdout=output, stderr=output, cwd=folder,
                env=kept | LOOPBACK | {
                    "DYN_FILE_KV": str(folder / "discovery"),
                    "DYN_SYSTEM_PORT": str(self.port),
                    "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "1",
                    "VLLMENDPOINT_SETTINGS_DIR": str(folder),
                } | environ,
            )  # fmt: skip

    def behave(self, behaviour: str) -> None:
        new = self._behaviour.with_suffix(".new")
        new.write_text(behaviour)
        new.replace(self._behaviour)

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        # The last may be half written.
        return [json.loads(line) for line in self.output().split("\n")[:-1] if line.startswith("{")]

    def requests(self) -> list[dict[str, Any]]:
        return [line["request"] for line in self.lines() if "request" in line]

    def health(self, port: int = 0) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())["status"]

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if found := condition():
                    return found
            assert self._process.poll() is None, self.output()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"did not come about in {SECONDS} s: {self.output()[-3000:]}")

    def until_health(self, status: int, word: str) -> None:
        self.until(lambda: self.health() == (status, word))

    def exit_code(self) -> int:
        return self._process.wait(SECONDS)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(20)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(
        *blocks: str, model: str = "gpt2", signature: str = "", environ: dict[str, str] | None = None
    ) -> Program:
        prelude = PRELUDE.replace("MODEL", repr(model)).replace("SIGNATURE", signature)
        with_context = f"hasattr({signature.strip(', ')}, 'is_stopped')" if signature else "False"
        source = prelude.replace("WITH_CONTEXT", with_context)
        if len(blocks) == 1 and "setup_vllm_with_health_checks" in blocks[0]:
            source += blocks[0] + RUN_EXAMPLE
        else:
            source += f"BLOCKS = {blocks!r}\n{BLOCK}"
        programs.append(Program(tmp_path, source, environ or {}))
        return programs[-1]

    try:
        yield start
    finally:
        for program in programs:
            program.stop()


MINIMAL = {"prompt": "1", "max_tokens": 1, "temperature": 0.0, "stream": False, "_health_check": True}
EACH_SECOND = {"DYN_HEALTH_CHECK_ENABLED": "1", "DYN_HEALTH_CHECK_INTERVAL": "1"}


def marked(payload: dict[str, Any]) -> dict[str, Any]:
    return payload | {"_health_check": True, "_HEALTH_CHECK": True}


def test_the_guides_complete_example_works_as_printed(run: Callable[..., Program]) -> None:
    """Its own settings of the environment reach Dynamo: probing is on, the first after 30 idle seconds."""
    program = run(COMPLETE_EXAMPLE)
    program.until(lambda: "Health check task started for: generate" in program.output())
    output = program.output()
    assert "Health check manager started (canary_wait_time: 30s, request_timeout: 1s)" in output
    assert f"Health check payload: source=GenericDefault level=Minimal payload={MINIMAL}" in output
    assert "Health check payload: source=Runtime" in output
    assert program.health() == (503, "notready")  # nothing is proven yet


def test_health_follows_the_handler(run: Callable[..., Program]) -> None:
    program = run(COMPLETE_EXAMPLE.replace('"30"', '"1"').replace('"true"', '"1"'))
    program.until_health(200, "ready")
    for behaviour in ("raise", "hang", "empty"):
        program.behave(behaviour)
        program.until_health(503, "notready")
        program.behave("answer")
        program.until_health(200, "ready")
    assert all(request == marked(MINIMAL) for request in program.requests())


def test_the_example_of_the_documentation_works_as_printed(run: Callable[..., Program]) -> None:
    """docs/tasks/python-api.md."""
    page = (ROOT / "docs/tasks/python-api.md").read_text()
    block = page.split("```python\n", 1)[1].split("```", 1)[0]
    program = run(block, environ=EACH_SECOND | {"DYN_HEALTH_CHECK_LEVEL": "standard"})
    program.until_health(200, "ready")
    assert program.requests()[0] == marked(
        MINIMAL | {"prompt": "The sky is", "max_tokens": 5, "temperature": 0.7}
    )


def test_requests_of_users_and_of_the_canary_reach_the_same_handler(run: Callable[..., Program]) -> None:
    """What Dynamo's endpoint has upstream works through ours: here ``client()``."""
    ask = """
serving = endpoint.serve_endpoint(handler.generate, health_check_payload={"prompt": "1"})
client = await endpoint.client()
await client.wait_for_instances()
say(answers=[item.data() async for item in await client.round_robin({"prompt": "from a user"})])
say(connected=endpoint.connection_id() > 0)
await serving
"""
    program = run(ask, environ={"DYN_HEALTH_CHECK_ENABLED": "TRUE", "DYN_HEALTH_CHECK_INTERVAL": "86400"})
    program.until(lambda: {"connected": True} in program.lines())
    assert program.requests() == [{"prompt": "from a user"}]
    assert {"answers": [{"token_ids": [1], "finish_reason": "stop"}]} in program.lines()
    program.until_health(200, "ready")


@pytest.mark.parametrize("signature", [", context", ", ctx"])
def test_a_handler_receives_the_context(run: Callable[..., Program], signature: str) -> None:
    program = run(CUSTOM_PAYLOAD, signature=signature, environ=EACH_SECOND)
    program.until_health(200, "ready")
    payload = {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0}
    assert program.lines()[0] == {"request": marked(payload), "with_context": True}


def test_basic_usage_sends_messages_to_a_chat_model(run: Callable[..., Program], toy_model: Path) -> None:
    program = run(BASIC_USAGE, model=str(toy_model), environ=EACH_SECOND)
    program.until_health(200, "ready")
    chat = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "temperature": 0.0,
        "stream": False,
    }
    assert program.requests()[0] == marked(chat)


@pytest.mark.parametrize(
    ("blocks", "environ", "payload"),
    [
        ([GLOBAL_DEFAULT, SERVE_WITHOUT], {}, {"prompt": "ping", "max_tokens": 1, "temperature": 0.0}),
        ([GLOBAL_DEFAULT, BASIC_USAGE], {}, {"prompt": "ping", "max_tokens": 1, "temperature": 0.0}),
        (
            [PYTHON_CONFIG, "config = Config", BASIC_USAGE],
            {},
            {"prompt": "The weather is", "max_tokens": 3, "temperature": 0.5},
        ),
        (
            [PYTHON_CONFIG, "config = Config()", GLOBAL_DEFAULT, BASIC_USAGE],
            {"DYN_HEALTH_CHECK_PAYLOAD": '{"prompt": "test", "max_tokens": 1, "temperature": 0}'},
            {"prompt": "test", "max_tokens": 1, "temperature": 0},
        ),
        (
            [CUSTOM_PAYLOAD],
            {"DYN_HEALTH_CHECK_PAYLOAD": '{"prompt": "test", "max_tokens": 1, "temperature": 0}'},
            {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0},
        ),
        (
            [
                MODEL_SPECIFIC,
                "await endpoint.serve_endpoint(handler.generate, health_check_payload=health_payload)",
            ],
            {},
            {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2, "temperature": 0.0},
        ),
    ],
    ids=["custom default", "custom default, got", "config", "environment", "runtime", "model-specific"],
)
def test_the_guides_other_code_blocks_work_as_printed(
    run: Callable[..., Program], blocks: list[str], environ: dict[str, str], payload: dict[str, Any]
) -> None:
    program = run(*blocks, environ=EACH_SECOND | environ)
    program.until_health(200, "ready")
    assert program.requests()[0] == marked(payload)


@pytest.mark.parametrize("environ", [{}, {"DYN_HEALTH_CHECK_ENABLED": "0"}], ids=["unset", "off"])
def test_no_payload_is_sent_if_it_is_disabled(run: Callable[..., Program], environ: dict[str, str]) -> None:
    """Dynamo calls the endpoint ready once it is registered, as it does one that is not checked."""
    program = run(CUSTOM_PAYLOAD, environ=environ | {"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"})
    program.until_health(200, "ready")
    assert "Health check payload: disabled, endpoint=vllm.inference.generate" in program.output()
    assert "Health check task started" not in program.output()


def test_health_is_served_at_the_guides_address(run: Callable[..., Program]) -> None:
    """Port 8082 of localhost, if no port is set; 127.0.0.1 only."""
    program = run(COMPLETE_EXAMPLE, environ={"DYN_SYSTEM_PORT": "", "DYN_SYSTEM_HOST": ""})
    found = program.until(
        lambda: re.search(r"\[spawn_system_status_server\] binding to: (\S+)", program.output())
    )
    assert found[1] == "127.0.0.1:8082"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"DYN_HEALTH_CHECK_INTERVAL": "0.5"}, "Environment: DYN_HEALTH_CHECK_INTERVAL is not a number of"),
        ({"DYN_HEALTH_CHECK_ENABLED": "maybe"}, "Environment: DYN_HEALTH_CHECK_ENABLED is not a boolean"),
        (
            {"DYN_HEALTH_CHECK_LEVEL": "huge"},
            "Environment: DYN_HEALTH_CHECK_LEVEL is not a health-check level",
        ),
    ],
)
def test_an_invalid_value_ends_the_program_with_the_message(
    run: Callable[..., Program], environ: dict[str, str], sentence: str
) -> None:
    program = run(SERVE_WITHOUT, environ=environ)
    assert program.exit_code() == 1
    assert f"HealthCheckRejectedError: {sentence}" in program.output()

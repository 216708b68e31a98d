"""Engine options in a real worker: rejections, options that reach both servers, and absent routes."""

import os
import signal
from collections.abc import Callable

from tests.worker.conftest import WorkerProcess
from vllmendpoint_api import ConfigurationState

MANAGED = {"VLLMENDPOINT_FRONTEND_MODE": "Managed"}


def test_options_from_every_source_are_rejected_in_one_report(
    make_worker: Callable[..., WorkerProcess],
) -> None:
    rejected = {"DYN_SYSTEM_PORT": "55467", "DYN_ENDPOINT": "dyn://a.b.c", "SM_VLLM_API_KEY": "hunter2"}
    worker = make_worker(MANAGED | rejected, ["-n2", "--enable-rl"])
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 30.0)
    problems = worker.report().configuration.problems
    named = {"engine.args (-n2)", "engine.args (--enable-rl)"}
    assert {problem.field for problem in problems} == named | rejected.keys()
    assert "hunter2" not in worker.log() + worker.request("report", "/status")[1].decode()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0


def test_parsers_reach_the_frontend_and_callers_cannot_load_adapters(
    make_worker: Callable[..., WorkerProcess],
) -> None:
    parsers = ["--tool-call-parser", "hermes", "--enable-auto-tool-choice", "--enable-lora"]
    worker = make_worker(MANAGED | {"SM_VLLM_ENABLE_PREFIX_CACHING": "false"}, parsers)
    worker.start()
    worker.until_ready()
    cards = [path.read_text() for path in (worker.folder / "discovery").rglob("*") if path.is_file()]
    assert any('"tool_call_parser":"hermes"' in card.replace(" ", "") for card in cards)
    assert "enable_prefix_caching=False" in worker.log()
    adapter = {"lora_name": "a", "lora_path": "/tmp/a"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert worker.request("http", path, adapter)[0] == 404
    assert worker.request("http", "/adapters", {"name": "a", "src": "/tmp/a"})[0] == 404

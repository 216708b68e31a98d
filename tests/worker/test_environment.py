"""Real workers that only the environment configures: probing is disabled, and pre- and post-processing
(docs/tasks/handlers.md) wrap vLLM's own ``/invocations``."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vllmendpoint_api import Verdict

from .spied import Spied

pytestmark = pytest.mark.timeout(300)
QUICK = {"DYN_HEALTH_CHECK_INTERVAL": "1"}
FLOAT32 = ["--dtype", "float32"]
"""In bfloat16, vLLM crashes with an illegal instruction on CPUs with AMX if the first request is this
short."""
PROCESSING = """
from fastapi.responses import JSONResponse

async def pre(request):
    request.scope["headers"].append((b"x-request-id", b"set-before"))
    return request

async def post(response):
    response.headers["x-post"] = "set-after"
    return response

async def throttle(request, call_next):
    if request.headers.get("x-slow"):
        return JSONResponse({"error": "slow down"}, status_code=429)
    return await call_next(request)
"""


def invoke(worker: Spied, **headers: str) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and body of one ``POST /invocations``."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{worker.ports['http']}/invocations",
        json.dumps({"prompt": "Hello", "max_tokens": 4}).encode(),
        {"content-type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, dict(response.headers), json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.load(error)


@pytest.mark.parametrize(
    "off",
    [{"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"}, {"DYN_HEALTH_CHECK_ENABLED": "false"}],
    ids=["payload disabled", "not enabled"],
)
def test_the_environment_disables_probing_and_sets_pre_and_post_processing(
    tmp_path: Path, toy_model: Path, off: dict[str, str]
) -> None:
    script = tmp_path / "code" / "model.py"
    script.parent.mkdir()
    script.write_text(PROCESSING)
    processing = {
        "SAGEMAKER_MODEL_PATH": str(script.parent),
        "CUSTOM_PRE_PROCESS": "model:pre",
        "CUSTOM_POST_PROCESS": "model:post",
        "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:throttle",
    }
    worker = Spied(tmp_path, toy_model, QUICK | off | processing, FLOAT32)
    worker.start()
    try:
        worker.until_ready()
        began = worker.report()
        assert (began.verdict.state, began.verdict.reason) == (Verdict.DISABLED, "ProbingDisabled")
        assert worker.status("http", "/ping") == 200
        status, headers, answer = invoke(worker)
        assert (status, headers["x-post"]) == (200, "set-after"), answer
        assert answer["id"] == "cmpl-set-before"
        assert invoke(worker, **{"x-slow": "1"})[::2] == (429, {"error": "slow down"})
        # Wait for five periods, by the time in the reports.
        worker.until(lambda report: (report.time - began.time).total_seconds() > 5, 30.0)
        (request,) = map(json.loads, worker.seen_lines())
        assert request["id"].startswith("cmpl-set-before"), "the engine received only the user's request"
        assert worker.report().ready
    finally:
        worker.stop()

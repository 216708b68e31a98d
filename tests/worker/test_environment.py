"""Real workers that the environment alone configures, with what nothing else gives: probing turned off, and
the linked guide's pre- and post-processing around vLLM's own ``/invocations``."""

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
"""In bfloat16 vLLM dies of an illegal instruction on a CPU with AMX if so short a request is the first."""
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
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, dict(refusal.headers), json.load(refusal)


@pytest.mark.parametrize(
    "off",
    [{"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"}, {"DYN_HEALTH_CHECK_ENABLED": "false"}],
    ids=["payload disabled", "not enabled"],
)
def test_turned_off_by_the_environment_and_processed_before_and_after(
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
        # Five periods later, by the reports' own clock.
        worker.until(lambda report: (report.time - began.time).total_seconds() > 5, 30.0)
        (asked,) = map(json.loads, worker.seen_lines())
        assert asked["id"].startswith("cmpl-set-before"), "nobody but the user asked the engine"
        assert worker.report().ready
    finally:
        worker.stop()

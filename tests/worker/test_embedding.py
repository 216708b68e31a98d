"""An embedding worker on a real model (all-MiniLM-L6-v2): type detection, probes, serving, a frozen engine.

The tests share one process and run in the order of the file.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import (
    ConfigurationState,
    ModelType,
    Outcome,
    PayloadSource,
    RouteState,
    Verdict,
    names,
)

from .conftest import (
    PATIENT,
    PERIOD,
    QUICK,
    TIMEOUT,
    Load,
    WorkerProcess,
    assert_health_follows,
    stopped,
    wait,
)
from .frontend import request_through_frontend
from .frontend_process import FrontendProcess
from .spied import Spied

pytestmark = pytest.mark.timeout(300)
BODY = {"model": "minilm", "input": "a cat"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Iterator[Spied]:
    worker = Spied(
        tmp_path_factory.mktemp("embedding"),
        minilm,
        {"DYN_HEALTH_CHECK_LEVEL": "comprehensive"},
        ["--max-model-len", "256", "--served-model-name", "minilm"],
    )
    worker.settings(PATIENT)
    worker.start()
    try:
        worker.until_ready()
        yield worker
    finally:
        worker.stop()


def vector(answer: bytes) -> list[float]:
    return list(json.loads(answer)["data"][0]["embedding"])


def test_type_and_payload_are_detected_from_the_model(worker: WorkerProcess) -> None:
    report = worker.report()
    assert report.model_type == ModelType.EMBEDDING
    assert report.verdict.state == Verdict.GENERATING
    assert report.last_probe is not None
    assert report.last_probe.outcome == Outcome.COMPLETE
    check = report.health_check
    assert check is not None
    assert (check.source, check.level) == (PayloadSource.MODEL_DEFAULT, None)
    assert check.payload == {"input": "test", "_health_check": True}
    (ignored,) = check.ignored
    assert ignored.source == PayloadSource.ENVIRONMENT
    assert "DYN_HEALTH_CHECK_LEVEL" in ignored.reason
    assert "one payload" in ignored.reason


@pytest.mark.parametrize(
    ("payload", "prompt"),
    [
        (None, "[CLS] test [SEP]"),
        ({"input": "health check", "encoding_format": "base64"}, "[CLS] health check [SEP]"),
        ({"input": "one two three four five six", "truncate_prompt_tokens": 4}, "[CLS] one two [SEP]"),
        ({"input": "cat", "add_special_tokens": False}, "cat"),
        ({"input": [101, 4937, 102]}, "[CLS] cat [SEP]"),
    ],
)
def test_every_field_reaches_the_engine(worker: Spied, payload: dict[str, Any] | None, prompt: str) -> None:
    digest = worker.settings(PATIENT | ({"payload": payload} if payload else {}))
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    assert worker.report().configuration.state == ConfigurationState.RESOLVED
    wait(lambda: worker.prompt(worker.probes_seen()[-1]) == prompt)
    seen = worker.probes_seen()[-1]
    assert seen["sampling"] is None
    assert seen["pooling"]["task"] == "embed"
    worker.until(lambda report: report.verdict.state == Verdict.GENERATING and report.ready, 20.0)


def test_embeddings_and_invocations_are_served(worker: WorkerProcess) -> None:
    vectors = []
    for path in ("/v1/embeddings", "/invocations"):
        status, answer = worker.request("http", path, BODY)
        assert status == 200, answer
        vectors.append(vector(answer))
    assert len(vectors[0]) == 384
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-3)
    assert worker.status("http", "/ping") == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a cat"}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "a cat"}]}),
        ("/rerank", {"query": "a cat", "documents": ["a dog"]}),
        ("/score", {"text_1": "a cat", "text_2": ["a dog"]}),
        ("/score", {"queries": "a cat", "documents": ["a dog"]}),
    ],
)
def test_invocations_reject_an_unknown_model_in_every_form(
    worker: WorkerProcess, path: str, body: dict[str, Any]
) -> None:
    for served in (body, body | {"model": "minilm"}):
        assert worker.request("http", "/invocations", served)[0] == worker.request("http", path, served)[0]
    refused = worker.request("http", "/invocations", body | {"model": "typo"})
    assert refused == worker.request("http", path, body | {"model": "typo"})
    assert (refused[0], "The model `typo` does not exist." in refused[1].decode()) == (404, True)


def test_dynamos_frontend_is_served(worker: WorkerProcess) -> None:
    answer = request_through_frontend(worker, "/v1/embeddings", BODY)
    assert len(answer["data"][0]["embedding"]) == 384


def test_a_frontends_probe_is_answered_with_the_embedding_of_the_last_probe(worker: Spied) -> None:
    before = worker.users_seen()
    answer = request_through_frontend(worker, "/v1/embeddings", BODY, {names.PROBE_HEADER: "1"})
    check = worker.report().health_check
    assert check is not None
    assert check.payload is not None
    body = {"model": "minilm", "input": check.payload["input"]}
    probed = vector(worker.request("http", "/v1/embeddings", body)[1])
    assert answer["data"][0]["embedding"] == pytest.approx(probed, abs=1e-5)
    assert len(worker.users_seen()) == len(before) + 1, "the request on port 8080"


def test_our_frontend_recognizes_the_worker_by_its_answer(worker: WorkerProcess) -> None:
    frontend = FrontendProcess(worker.folder, PATIENT, DYN_NAMESPACE_PREFIX="")
    try:
        frontend.start()
        frontend.until(lambda report: report.ready, 60.0)
        (route,) = frontend.report().routes
        assert (route.instance_id, route.state) == (worker.report().instance_id, RouteState.ANSWERED)
        probed = frontend.request("/v1/embeddings", BODY, {names.PROBE_HEADER: "1"})[1]
        assert json.loads(probed)["model"] == route.instance_id
        assert json.loads(frontend.request("/v1/embeddings", BODY)[1])["model"] == "minilm"
    finally:
        frontend.stop()


def test_metrics_of_vllm_and_of_the_worker_are_served(worker: WorkerProcess) -> None:
    text = worker.request("system", "/metrics")[1].decode()
    for name in ("vllmendpoint_probe_latency_seconds_bucket", "vllmendpoint_probes_total", "vllm:"):
        assert any(line.startswith(name) for line in text.splitlines()), name


def test_no_route_of_upstream_changes_the_engine_or_its_routing(worker: WorkerProcess) -> None:
    assert worker.request("system", "/engine/update/model_taints", {"taints": ["x"]})[0] == 404
    assert worker.request("system", "/engine/control/sleep", {})[0] == 404


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        (
            {"payload": {"prompt": "test"}},
            "healthCheck.payload.prompt",
            "is not accepted by an embedding model",
        ),
        (
            {"payload": {"messages": [{"role": "user", "content": "Hi"}]}},
            "healthCheck.payload.messages",
            "is not accepted by an embedding model. Use input.",
        ),
        (
            {"expect": {"regex": "Paris"}},
            "healthCheck.expect",
            "does not apply to an embedding model, which does not generate text. Remove it.",
        ),
    ],
)
def test_a_payload_that_generates_text_is_rejected(
    worker: WorkerProcess, settings: dict[str, Any], field: str, expected: str
) -> None:
    digest = worker.settings(PATIENT | settings)
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    report = worker.report()
    (problem,) = report.configuration.problems
    assert problem.field == field
    assert expected in problem.message
    assert report.ready
    worker.settings(PATIENT)
    worker.until(lambda report: report.configuration.state == ConfigurationState.RESOLVED, 20.0)


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        ({"input": "cat " * 500}, "input", "256"),
        ({"input": "cat", "dimensions": 64}, "dimensions", "dimensions"),
        ({"input": [40000]}, "input", "40000"),
        ({"input": "cat", "truncate_prompt_tokens": 5000}, "truncate_prompt_tokens", "5000"),
    ],
    ids=["too-long", "dimensions", "out-of-vocabulary", "truncation"],
)
def test_a_payload_that_vllm_rejects_leaves_the_replica_ready(
    worker: WorkerProcess, payload: dict[str, Any], field: str, expected: str
) -> None:
    before = worker.report().health_check
    digest = worker.settings(PATIENT | {"payload": payload})
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    report = worker.report()
    (problem,) = report.configuration.problems
    assert (problem.reason, problem.source, problem.field) == (
        "InvalidPayload",
        "Spec",
        f"healthCheck.payload.{field}",
    )
    assert "is rejected by vLLM: " in problem.message
    assert expected in problem.message
    assert (report.ready, report.health_check) == (True, before)
    worker.settings(PATIENT)
    worker.until(lambda report: report.configuration.state == ConfigurationState.RESOLVED, 20.0)


def test_embeddings_of_users_postpone_the_probe(worker: Spied) -> None:
    with Load(worker, 1, BODY, "/v1/embeddings") as load:
        wait(lambda: load.answers > 0)
        worker.request("report", "/probe", {}, method="POST")
        before = worker.metric("vllmendpoint_probes_total")
        time.sleep(4.0 * PERIOD)
        report = worker.report()
        # On a machine with too much to do an answer may take longer than a stop of progress may last.
        assert worker.metric("vllmendpoint_probes_total") - before <= 2, "four periods, unspared four probes"
        assert report.verdict.last_proof_of_life is not None
        assert (report.time - report.verdict.last_proof_of_life).total_seconds() < PERIOD


def test_a_frozen_engine_is_stalled_and_recovers(worker: WorkerProcess) -> None:
    worker.apply(QUICK)
    with stopped(worker.engine_core()):
        # The contract's bound (period + timeout + 1), and room for a slow machine.
        took = worker.until(lambda report: report.verdict.state == Verdict.STALLED, PERIOD + TIMEOUT + 6.0)
        print(f"SIGSTOP -> Stalled in {took:.1f} s")
        report = worker.report()
        assert (report.ready, report.verdict.reason) == (False, "EngineStalled")
        assert worker.status("http", "/ping") == 503
        assert worker.status("report", "/ready") == 503
    worker.until(lambda report: report.ready, 30.0)
    assert worker.request("http", "/v1/embeddings", BODY)[0] == 200


def test_dynamos_health_is_not_ready_while_the_engine_is_frozen(worker: WorkerProcess) -> None:
    assert_health_follows(worker)


def test_sigterm_ends_the_worker_with_exit_code_zero(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(40.0) == 0
    assert "Traceback" not in "".join(worker.log_lines())

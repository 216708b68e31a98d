"""Classifiers, rerankers and token classifiers: type detection, probes, serving, a frozen engine.

Models without a probe are rejected. The tests share their workers and run in the order of the file.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import (
    ConfigurationState,
    ModelType,
    Outcome,
    PayloadSource,
    Stage,
    Verdict,
    WorkerReport,
    names,
)

from .conftest import PATIENT, QUICK, START_SECONDS, Load, WorkerProcess, stopped, wait
from .frontend import request_through_frontend
from .spied import Spied
from .tiny_models import make_bert, make_whisper

pytestmark = pytest.mark.timeout(2 * START_SECONDS)
NAME = ["--served-model-name", "pooled", "--max-model-len", "64"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Iterator[Callable[..., Spied]]:
    workers: list[Spied] = []

    def start(architecture: str, labels: int, environ: dict[str, str] | None = None) -> Spied:
        model = make_bert(tmp_path_factory.mktemp("model"), minilm, architecture, labels)
        worker = Spied(tmp_path_factory.mktemp("worker"), model, environ, NAME)
        workers.append(worker)
        worker.settings(PATIENT)
        worker.start()
        return worker

    try:
        yield start
    finally:
        for worker in workers:
            worker.stop()


@pytest.fixture(scope="module")
def classifier(started: Callable[..., Spied]) -> Iterator[Spied]:
    worker = started("BertForSequenceClassification", 3)
    worker.until_ready()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def reranker(started: Callable[..., Spied]) -> Iterator[Spied]:
    worker = started("BertForSequenceClassification", 1)
    worker.until_ready()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def tagger(started: Callable[..., Spied]) -> Iterator[Spied]:
    worker = started("BertForTokenClassification", 3)
    worker.until_ready()
    yield worker
    worker.stop()


def asked_with(worker: Spied, payload: dict[str, Any] | None) -> None:
    """Apply the payload and assert that a probe with it is complete."""
    digest = worker.settings(PATIENT | ({"payload": payload} if payload else {}))
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    assert worker.report().configuration.state == ConfigurationState.RESOLVED, worker.report().configuration
    answer = json.loads(worker.request("report", "/probe", {}, method="POST")[1])
    assert answer["outcome"] == Outcome.COMPLETE, answer
    assert worker.report().ready


def refusal(worker: Spied, payload: dict[str, Any]) -> tuple[str, str]:
    digest = worker.settings(PATIENT | {"payload": payload})
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    report = worker.report()
    assert report.ready
    (problem,) = report.configuration.problems
    assert problem.reason == "InvalidPayload"
    return problem.field, problem.message


def default(worker: Spied) -> tuple[str, Any]:
    report = worker.report()
    assert report.verdict.state == Verdict.GENERATING
    assert report.health_check is not None
    assert report.health_check.source == PayloadSource.MODEL_DEFAULT
    return report.model_type, report.health_check.payload


def never_healthy_while_frozen(worker: Spied) -> None:
    worker.apply(QUICK)
    worker.until(lambda report: report.ready, 30.0)
    with stopped(worker.engine_core()):
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 20.0)
        assert not worker.report().ready
        assert worker.status("http", "/ping") == 503
        assert worker.status("report", "/ready") == 503
    worker.until(lambda report: report.ready, 30.0)


# --- a classifier


def test_a_classifier_is_probed_for_a_label(classifier: Spied) -> None:
    assert default(classifier) == (ModelType.CLASSIFY, {"input": "test", "_health_check": True})
    seen = classifier.probes_seen()[-1]
    assert (seen["pooling"]["task"], classifier.prompt(seen)) == ("classify", "[CLS] test [SEP]")


@pytest.mark.parametrize(
    "payload",
    [
        {"input": "a cat", "use_activation": False},
        {"input": [101, 4937, 102]},
        {"input": ["a cat", "a dog"]},
        {"input": "cat " * 100, "truncate_prompt_tokens": 8},
    ],
    ids=["text", "tokens", "several", "truncated"],
)
def test_a_classifier_takes_vllms_fields(classifier: Spied, payload: dict[str, Any]) -> None:
    asked_with(classifier, payload)


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        ({"prompt": "x"}, ".prompt", "is not accepted by a classification model. Use input."),
        (
            {"messages": [{"role": "user", "content": "x"}]},
            ".messages",
            "is not accepted by a classification model. Use input.",
        ),
        (
            {"query": "x", "documents": ["y"]},
            ".query",
            "is not accepted by a classification model. Use input.",
        ),
        ({"input": "x", "max_tokens": 1}, "", "Dynamo's classification handler does not read"),
        ({"input": "cat " * 100}, ".input", "is rejected by vLLM: "),
    ],
)
def test_an_unsuitable_payload_for_a_classifier_is_rejected(
    classifier: Spied, payload: dict[str, Any], field: str, expected: str
) -> None:
    where, message = refusal(classifier, payload)
    assert where == f"healthCheck.payload{field}"
    assert expected in message


def test_a_classifier_serves_its_own_routes_and_invocations(classifier: Spied) -> None:
    body = {"model": "pooled", "input": "a cat"}
    for path in ("/classify", "/invocations"):
        status, answer = classifier.request("http", path, body)
        assert status == 200, answer
        assert len(json.loads(answer)["data"][0]["probs"]) == 3
    assert classifier.status("http", "/ping") == 200


def test_a_classifier_serves_dynamos_frontend(classifier: Spied) -> None:
    users = len(classifier.users_seen())
    body = {"model": "pooled", "input": "a cat"}
    answer = request_through_frontend(classifier, "/v1/classify", body, {names.PROBE_HEADER: "1"})
    assert answer["data"]
    assert len(classifier.users_seen()) == users, "a frontend's probe is not a user's request"
    answer = request_through_frontend(classifier, "/v1/classify", body)
    assert len(classifier.users_seen()) == users + 1
    assert len(answer["data"][0]["probs"]) == 3


def test_a_frozen_classifier_is_never_healthy(classifier: Spied) -> None:
    never_healthy_while_frozen(classifier)


# --- a reranker


def test_a_reranker_is_probed_for_a_score(reranker: Spied) -> None:
    payload = {"query": "test", "documents": ["test"], "_health_check": True}
    assert default(reranker) == (ModelType.SCORE, payload)
    seen = reranker.probes_seen()[-1]
    assert seen["pooling"]["task"] == "classify"
    assert reranker.prompt(seen) == "[CLS] test [SEP] test [SEP]"


@pytest.mark.parametrize(
    "payload",
    [
        {"query": "a cat", "documents": ["a kitten", "tax law"], "top_n": 1},
        {"query": "a cat", "documents": "a kitten"},
        {"queries": "a cat", "documents": ["a kitten"]},
        {"queries": ["a cat"], "items": ["a kitten"]},
        {"text_1": "a cat", "text_2": ["a kitten", "tax law"]},
        {"data_1": "a cat", "data_2": "a kitten", "use_activation": False},
        {"query": "a cat", "documents": ["kitten " * 100], "truncate_prompt_tokens": 16},
        {"input": "a cat"},
    ],
    ids=["rerank", "one", "queries", "items", "text", "data", "truncated", "input"],
)
def test_a_reranker_accepts_every_form_of_vllm(reranker: Spied, payload: dict[str, Any]) -> None:
    asked_with(reranker, payload)


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        ({"prompt": "x"}, ".prompt", "is not accepted by a scoring model. Use query and documents"),
        ({"query": "x"}, "", "contains query but not documents. Add documents."),
        ({"query": "x", "documents": []}, ".documents", "is empty"),
        ({"query": "x", "documents": ["y"], "top_k": 1}, "", "Rename it to top_n, or remove it."),
        ({"query": "x", "documents": ["y " * 100]}, ".documents", "is rejected by vLLM: "),
        ({"query": "x", "documents": [5]}, ".documents", "is rejected by vLLM: "),
        ({"query": "x", "documents": ["y"], "top_n": -1}, ".top_n", "is rejected by vLLM: "),
    ],
)
def test_an_unsuitable_payload_for_a_reranker_is_rejected(
    reranker: Spied, payload: dict[str, Any], field: str, expected: str
) -> None:
    where, message = refusal(reranker, payload)
    assert where == f"healthCheck.payload{field}"
    assert expected in message


def test_a_reranker_serves_its_own_routes_and_invocations(reranker: Spied) -> None:
    body = {"model": "pooled", "query": "a cat", "documents": ["a kitten", "tax law"]}
    for path in ("/rerank", "/v1/rerank", "/invocations"):
        status, answer = reranker.request("http", path, body)
        assert status == 200, answer
        assert len(json.loads(answer)["results"]) == 2


def test_requests_of_users_postpone_the_probe_of_a_reranker(reranker: Spied) -> None:
    asked_with(reranker, None)
    body = {"model": "pooled", "query": "a cat", "documents": ["a kitten"]}
    with Load(reranker, 1, body, "/rerank") as load:
        wait(lambda: load.answers > 0)
        reranker.until(lambda report: since_last_probe(report) > 5.0, 40.0)


def since_last_probe(report: WorkerReport) -> float:
    """Seconds."""
    return (report.time - report.last_probe.time).total_seconds() if report.last_probe else 0.0


def test_a_frozen_reranker_is_never_healthy(reranker: Spied) -> None:
    never_healthy_while_frozen(reranker)


# --- a label for every token


def test_a_token_classifier_is_probed_for_its_labels(tagger: Spied) -> None:
    assert default(tagger) == (ModelType.POOLING, {"input": "test", "_health_check": True})
    assert tagger.probes_seen()[-1]["pooling"]["task"] == "token_classify"
    status, answer = tagger.request("http", "/pooling", {"model": "pooled", "input": "a cat"})
    assert status == 200, answer
    answer = request_through_frontend(tagger, "/v1/pooling", {"model": "pooled", "input": "a cat"})
    assert len(answer["data"][0]["data"]) == len(["[CLS]", "a", "cat", "[SEP]"])
    asked_with(tagger, {"input": "a cat", "task": "token_classify", "encoding_format": "base64"})
    field, message = refusal(tagger, {"input": "a cat", "task": "embed"})
    assert "is rejected by vLLM: " in message
    assert field.startswith("healthCheck.payload")
    field, message = refusal(tagger, {"query": "a", "documents": ["b"]})
    assert field == "healthCheck.payload.query"
    assert "because vLLM computes no scores with this model" in message
    never_healthy_while_frozen(tagger)


# --- what has no probe


def refused_at_start(worker: WorkerProcess, seconds: float) -> tuple[str, str]:
    worker.until(lambda report: report.stage.name == Stage.REJECTED, seconds)
    report = worker.report()
    assert (report.started, report.ready) == (True, False)
    (problem,) = report.configuration.problems
    worker.stop()
    return problem.field, problem.message


def test_a_transcription_model_is_rejected_before_it_is_loaded(tmp_path: Path) -> None:
    worker = WorkerProcess(
        tmp_path / "worker", make_whisper(tmp_path / "whisper"), {}, ["--max-model-len", "64"]
    )
    worker.start()
    try:
        field, message = refused_at_start(worker, START_SECONDS)
    finally:
        worker.stop()
    assert (field, message.startswith("model only transcribes speech")) == ("model", True)
    assert "EngineCore" not in worker.log()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("Chat", "model.type is Chat, but vLLM runs the model as a pooling model"),
        ("Embedding", "model.type is Embedding, but the model's tasks in vLLM are those of Classify"),
    ],
)
def test_a_declared_type_that_differs_from_the_models_is_rejected(
    started: Callable[..., Spied], declared: str, expected: str
) -> None:
    worker = started("BertForSequenceClassification", 3, {names.ENV_MODEL_TYPE: declared})
    field, message = refused_at_start(worker, START_SECONDS)
    assert field == "model.type"
    assert message.startswith(expected)

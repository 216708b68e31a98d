"""The type of a model, which follows from vLLM's tasks, and the forms of payload that fit it."""

import pytest

from vllmendpoint_api import POOLED, Level, ModelType, PayloadSource, payload_for
from vllmendpoint_worker.payload.forms import SCORE_FORMS, SCORE_PARTNERS, Form, RequestFields
from vllmendpoint_worker.payload.model_type import pooled_type, reject_after_start, reject_before_start
from vllmendpoint_worker.payload.validation import check_payload
from vllmendpoint_worker.setting_origin import SettingOrigin

SPEC = SettingOrigin(PayloadSource.SPEC, "healthCheck.payload")
PAYLOADS = {
    Form.PROMPT: {"prompt": "x"},
    Form.MESSAGES: {"messages": [{"role": "user", "content": "x"}]},
    Form.INPUT: {"input": "x"},
    Form.QUERY: {"query": "x", "documents": ["y"]},
    Form.QUERIES: {"queries": "x", "items": ["y"]},
    Form.DATA: {"data_1": "x", "data_2": "y"},
    Form.TEXT: {"text_1": "x", "text_2": ["y"]},
}
FITTING = {
    ModelType.CHAT: {Form.PROMPT, Form.MESSAGES},
    ModelType.COMPLETION: {Form.PROMPT},
    ModelType.EMBEDDING: {Form.INPUT} | SCORE_FORMS,
    ModelType.CLASSIFY: {Form.INPUT},
    ModelType.SCORE: {Form.INPUT} | SCORE_FORMS,
    ModelType.POOLING: {Form.INPUT} | SCORE_FORMS,
}


@pytest.mark.parametrize(
    ("task", "scores", "model_type"),
    [
        ("embed", True, ModelType.EMBEDDING),
        ("embed&token_classify", False, ModelType.EMBEDDING),
        ("classify", False, ModelType.CLASSIFY),
        ("classify", True, ModelType.SCORE),
        ("token_embed", True, ModelType.POOLING),
        ("token_classify", False, ModelType.POOLING),
        ("plugin", False, None),
        (None, False, None),
    ],
)
def test_the_task_determines_the_type_of_a_pooling_model(
    task: str | None, scores: bool, model_type: ModelType | None
) -> None:
    assert pooled_type(task, scores=scores) is model_type


@pytest.mark.parametrize("model_type", list(ModelType))
@pytest.mark.parametrize("form", list(Form))
def test_a_payload_fits_the_model_type_or_the_problem_names_one_that_does(
    form: Form, model_type: ModelType
) -> None:
    problems = check_payload(PAYLOADS[form], SPEC, None, model_type)
    assert (problems == []) is (form in FITTING[model_type])
    for problem in problems:
        assert problem.field == f"healthCheck.payload.{form}"
        assert ". Use " in problem.message


@pytest.mark.parametrize("model_type", list(ModelType))
@pytest.mark.parametrize("level", list(Level))
def test_the_default_payload_fits_every_model_type(level: Level, model_type: ModelType) -> None:
    payload = payload_for(level, model_type)
    assert check_payload(payload, SPEC, None, model_type) == []
    if model_type in POOLED:
        assert payload == payload_for(Level.MINIMAL, model_type)


@pytest.mark.parametrize("form", sorted(SCORE_PARTNERS))
def test_a_score_payload_has_two_parts(form: Form) -> None:
    partners = SCORE_PARTNERS[form]
    (problem,) = check_payload({form.value: "x"}, SPEC, None, ModelType.SCORE)
    partner = " or ".join(partners)
    assert f"contains {form} but not {partner}. Add {partner}." in problem.message
    (problem,) = check_payload({form.value: "x", partners[0]: []}, SPEC, None, ModelType.SCORE)
    assert (problem.field, "is empty" in problem.message) == (f"healthCheck.payload.{partners[0]}", True)


def test_fields_are_compared_with_the_request_of_the_model_type() -> None:
    fields = RequestFields(
        frozenset(), frozenset(), frozenset({"input", "dimensions"}), frozenset({"input", "use_activation"})
    )
    payload = {"input": "x", "use_activation": True}
    assert check_payload(payload, SPEC, fields, ModelType.CLASSIFY) == []
    (problem,) = check_payload(payload, SPEC, fields, ModelType.EMBEDDING)
    assert "Dynamo's embedding handler does not read" in problem.message


@pytest.mark.parametrize(
    ("declared", "runner", "transcribes", "expected"),
    [
        (None, "generate", False, None),
        (None, "pooling", False, None),
        (ModelType.CHAT, "generate", False, None),
        (ModelType.EMBEDDING, "pooling", False, None),
        (ModelType.CHAT, "pooling", False, "model.type is Chat, but vLLM runs the model as a pooling model"),
        (ModelType.EMBEDDING, "generate", False, "Add --runner pooling to engine.args"),
        (None, "generate", True, "model only transcribes speech"),
        (ModelType.CHAT, "generate", True, "model only transcribes speech"),
    ],
)
def test_a_wrong_model_type_is_rejected_before_the_engine_starts(
    declared: ModelType | None, runner: str, transcribes: bool, expected: str | None
) -> None:
    problem = reject_before_start(declared, runner, only_transcribes=transcribes)
    assert (problem is None) is (expected is None)
    if problem is not None and expected is not None:
        assert expected in problem.message


@pytest.mark.parametrize(
    ("declared", "detected", "tasks", "expected"),
    [
        (None, ModelType.SCORE, ["classify"], None),
        (ModelType.COMPLETION, ModelType.CHAT, ["generate"], None),
        (ModelType.CHAT, ModelType.COMPLETION, ["generate"], None),
        (ModelType.EMBEDDING, ModelType.EMBEDDING, ["embed"], None),
        (ModelType.EMBEDDING, ModelType.SCORE, ["classify"], "are those of Score. Remove model.type."),
        (None, None, ["plugin"], "has only tasks without a probe (plugin)"),
        (None, None, ["transcription"], "model only transcribes speech"),
        (None, None, [], "(none)"),
    ],
)
def test_a_wrong_model_type_is_rejected_after_the_engine_started(
    declared: ModelType | None, detected: ModelType | None, tasks: list[str], expected: str | None
) -> None:
    problem = reject_after_start(declared, detected, tasks)
    assert (problem is None) is (expected is None)
    if problem is not None and expected is not None:
        assert expected in problem.message

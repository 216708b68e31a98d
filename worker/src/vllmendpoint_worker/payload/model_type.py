"""Derives the type of a model from vLLM's tasks, and rejects models that this worker does not serve. Pure."""

from collections.abc import Sequence
from typing import Final

from vllmendpoint_api import POOLED, ModelType, PayloadSource, Problem, Reason
from vllmendpoint_worker.setting_origin import SettingOrigin

__all__ = ["RUNNER_GENERATE", "RUNNER_POOLING", "pooled_type", "reject_after_start", "reject_before_start"]

RUNNER_GENERATE: Final = "generate"
RUNNER_POOLING: Final = "pooling"
"""vLLM's two runners."""

_MODEL: Final = SettingOrigin(PayloadSource.SPEC, "model")
_MODEL_TYPE: Final = SettingOrigin(PayloadSource.SPEC, "model.type")


def pooled_type(task: str | None, *, scores: bool) -> ModelType | None:
    """The type of a pooling model; None if the worker has no probe for the task.

    ``task`` is the one that vLLM chooses for the model. ``scores``: vLLM serves ``/score`` and ``/rerank``
    with it.
    """
    match task:
        case "embed" | "embed&token_classify":  # Dynamo requests embeddings by name
            return ModelType.EMBEDDING
        case "classify":
            return ModelType.SCORE if scores else ModelType.CLASSIFY
        case "token_embed" | "token_classify":
            return ModelType.POOLING
        case _:
            return None


def reject_before_start(declared: ModelType | None, runner: str, *, only_transcribes: bool) -> Problem | None:
    """What is known from the model's configuration. ``declared`` is ``model.type``."""
    if only_transcribes:
        return _transcription_only()
    if declared in POOLED and runner == RUNNER_GENERATE:
        fix = "Add --runner pooling to engine.args."
        return _wrong_type(declared, "vLLM runs the model as a generative model", fix)
    if declared is not None and declared not in POOLED and runner == RUNNER_POOLING:
        fix = "Remove model.type, or add --runner generate to engine.args."
        return _wrong_type(declared, "vLLM runs the model as a pooling model", fix)
    return None


def reject_after_start(
    declared: ModelType | None, detected: ModelType | None, tasks: Sequence[str]
) -> Problem | None:
    """What is known from the running engine. ``detected`` is derived from ``tasks``, which are vLLM's."""
    if detected is None:
        if "transcription" in tasks:
            return _transcription_only()
        return _MODEL.violation(
            f"has only tasks without a probe ({', '.join(tasks) or 'none'})",
            "Set --pooler-config.task in engine.args to another task of the model, or use a model that "
            "generates, embeds, classifies or scores.",
            reason=Reason.INVALID_SETTINGS,
        )
    if declared is None or declared is detected or (declared not in POOLED and detected not in POOLED):
        return None
    return _wrong_type(declared, f"the model's tasks in vLLM are those of {detected}", "Remove model.type.")


def _transcription_only() -> Problem:
    return _MODEL.violation(
        "only transcribes speech, which Dynamo does not serve",
        "Serve the model with `vllm serve`, or use a model that generates, embeds, classifies or scores.",
        reason=Reason.INVALID_SETTINGS,
    )


def _wrong_type(declared: ModelType | None, fault: str, fix: str) -> Problem:
    return _MODEL_TYPE.violation(f"is {declared}, but {fault}", fix, reason=Reason.INVALID_SETTINGS)

"""What a model is asked for, told from vLLM's tasks, and which models this worker does not serve. Pure."""

from collections.abc import Sequence
from typing import Final

from vllmendpoint_api import POOLED, ModelType, PayloadSource, Problem, Reason

__all__ = ["RUNNER_GENERATE", "RUNNER_POOLING", "pooled_type", "reject_after_start", "reject_before_start"]

RUNNER_GENERATE: Final = "generate"
RUNNER_POOLING: Final = "pooling"
"""vLLM's two runners."""

_TRANSCRIPTION_ONLY: Final = (
    "The model only transcribes speech. Dynamo serves no transcription, and this worker has no probe for it: "
    "serve the model with `vllm serve`, or choose a model that generates, embeds, classifies or scores."
)


def pooled_type(task: str | None, *, scores: bool) -> ModelType | None:
    """The type of a model that vLLM pools. ``task``: the one that vLLM chooses for it; ``scores``: whether
    vLLM serves ``/score`` and ``/rerank`` with it. None where there is no probe for the task.
    """
    match task:
        case "embed" | "embed&token_classify":  # Dynamo asks for embeddings by name
            return ModelType.EMBEDDING
        case "classify":
            return ModelType.SCORE if scores else ModelType.CLASSIFY
        case "token_embed" | "token_classify":
            return ModelType.POOLING
        case _:
            return None


def reject_before_start(declared: ModelType | None, runner: str, *, only_transcribes: bool) -> Problem | None:
    """What can be told before the engine starts. ``declared``: ``model.type``."""
    if only_transcribes:
        return _problem("model", _TRANSCRIPTION_ONLY)
    if declared in POOLED and runner == RUNNER_GENERATE:
        return _declared_type_problem(
            declared, "vLLM generates with this model", "add --runner pooling to engine.args"
        )
    if declared is not None and declared not in POOLED and runner == RUNNER_POOLING:
        fix = "remove model.type, or add --runner generate to engine.args"
        return _declared_type_problem(declared, "vLLM pools this model and does not generate with it", fix)
    return None


def reject_after_start(
    declared: ModelType | None, told: ModelType | None, tasks: Sequence[str]
) -> Problem | None:
    """What is known once the engine stands. ``told``: from ``tasks``, which are vLLM's."""
    if told is None:
        if "transcription" in tasks:
            return _problem("model", _TRANSCRIPTION_ONLY)
        names = ", ".join(tasks) or "none"
        return _problem(
            "model",
            f"This worker has no probe for the tasks that vLLM has for the model ({names}): set "
            "--pooler-config.task in engine.args to one that the model has, or choose a model that "
            "generates, embeds, classifies or scores.",
        )
    if declared is None or declared is told or (declared not in POOLED and told not in POOLED):
        return None
    return _declared_type_problem(
        declared, f"the tasks that vLLM has for the model make it {told}", "remove model.type"
    )


def _declared_type_problem(declared: ModelType | None, what: str, fix: str) -> Problem:
    return _problem("model.type", f"model.type is {declared}, but {what}: {fix}.")


def _problem(field: str, message: str) -> Problem:
    return Problem(
        reason=Reason.INVALID_SETTINGS, source=str(PayloadSource.SPEC), field=field, message=message
    )

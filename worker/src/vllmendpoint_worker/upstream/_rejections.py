"""vLLM's message for a request that it rejects, as its API returns it."""

from dynamo.llm.exceptions import HttpError
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from vllmendpoint_worker.vllm_rejections import VLLMRejection

__all__ = ["rejection_in_response", "rejection_of"]


def rejection_of(error: BaseException | None) -> VLLMRejection | None:
    """The rejection in ``error``; None if the engine or the worker caused it, not the request.

    Uses vLLM's own classification, from which its HTTP server answers 4xx or 5xx.
    """
    cause = error.__cause__ if isinstance(error, HttpError) and error.__cause__ is not None else error
    if isinstance(cause, HttpError):
        return VLLMRejection(cause.message) if 400 <= cause.code < 500 else None
    if not isinstance(cause, Exception):
        return None
    info = create_error_response(cause).error
    return VLLMRejection(info.message, info.param) if 400 <= info.code < 500 or info.code == 501 else None


def rejection_in_response(answer: object) -> VLLMRejection | None:
    """The rejection that vLLM's renderers return instead of a rendered request; None if there is none."""
    info = getattr(answer, "error", None)
    message = getattr(info, "message", None)
    return None if message is None else VLLMRejection(str(message), getattr(info, "param", None))

"""What vLLM says of a request that it does not take: the sentence that a user of the API gets."""

from dynamo.llm.exceptions import HttpError
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from vllmendpoint_worker.vllm_rejections import VLLMRejection

__all__ = ["rejection_in_response", "rejection_of"]


def rejection_of(error: BaseException | None) -> VLLMRejection | None:
    """The refusal in ``error``; None where the engine or the worker is at fault, not the request.

    vLLM's own classification, by which its HTTP server answers 4xx or 5xx.
    """
    cause = error.__cause__ if isinstance(error, HttpError) and error.__cause__ is not None else error
    if isinstance(cause, HttpError):
        return VLLMRejection(cause.message) if 400 <= cause.code < 500 else None
    if not isinstance(cause, Exception):
        return None
    info = create_error_response(cause).error
    return VLLMRejection(info.message, info.param) if 400 <= info.code < 500 or info.code == 501 else None


def rejection_in_response(answer: object) -> VLLMRejection | None:
    """The refusal that vLLM's renderers return in the place of a rendered request."""
    info = getattr(answer, "error", None)
    message = getattr(info, "message", None)
    return None if message is None else VLLMRejection(str(message), getattr(info, "param", None))

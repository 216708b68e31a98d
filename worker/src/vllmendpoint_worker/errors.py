"""The one tree of errors of the worker."""

from collections.abc import Sequence

from vllmendpoint_api import Problem

from .vllm_rejections import VLLMRejection

__all__ = [
    "ArtifactsError",
    "ConfigurationRejectedError",
    "EngineStartError",
    "HandlerAbortedError",
    "HandlerTimeoutError",
    "PackagesError",
    "ProbeUnavailableError",
    "TranslationError",
    "WorkerError",
]


class WorkerError(Exception):
    """Base of every error that the worker raises itself."""


class ArtifactsError(WorkerError):
    """The model's data could not be fetched. ``what`` and ``fix`` finish a sentence that begins with the
    field.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}: {fix}")


class ConfigurationRejectedError(WorkerError):
    """The configuration is refused; ``problems`` says why, in sentences made for the report."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


class TranslationError(WorkerError):
    """The payload is refused, by this worker or by vLLM's own request models, renderers or engine.

    ``field`` is the payload's field at fault, or ``""``. The text never repeats a value of the payload;
    ``refusal``, vLLM's sentence, may.
    """

    def __init__(self, field: str, message: str, refusal: VLLMRejection | None = None) -> None:
        self.field = field
        self.refusal = refusal
        super().__init__(message)


class EngineStartError(WorkerError):
    """The engine could not be started, or its arguments are wrong."""


class HandlerTimeoutError(WorkerError):
    """The customer's code did not end within its bound. Its text: the line that it was in, or nothing."""


class HandlerAbortedError(BaseException):
    """Raised in the customer's code where it takes too long; no Exception, which code that tries again for
    ever would catch.
    """


class PackagesError(WorkerError):
    """Packages could not be installed. ``what`` and ``fix`` finish a sentence that begins with the
    setting.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}: {fix}")


class ProbeUnavailableError(WorkerError):
    """A probe was asked for when none can run: probing is off, or the worker does not serve yet."""

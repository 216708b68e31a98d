"""The exceptions of the worker."""

from collections.abc import Sequence

from vllmendpoint_api import Problem

from .vllm_rejections import VLLMRejection

__all__ = [
    "ArtifactsError",
    "ConfigurationRejectedError",
    "EngineNotGeneratingError",
    "EngineStartError",
    "FrontendError",
    "HandlerAbortedError",
    "HandlerTimeoutError",
    "PackagesError",
    "ProbeUnavailableError",
    "RequestInterruptedError",
    "TranslationError",
    "WorkerError",
]


class WorkerError(Exception):
    """Base class of the worker's exceptions."""


class _SettingError(WorkerError):
    """``fault`` and ``fix`` as for ``SettingOrigin.violation``."""

    def __init__(self, fault: str, fix: str) -> None:
        self.fault = fault
        self.fix = fix
        super().__init__(f"{fault}. {fix}")


class ArtifactsError(_SettingError):
    """The download of the model data failed."""


class PackagesError(_SettingError):
    """The installation of Python packages failed."""


class ConfigurationRejectedError(WorkerError):
    """The configuration is invalid. ``problems`` go into the worker's report."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(problem.message for problem in self.problems))


class TranslationError(WorkerError):
    """This worker, or a request model, renderer or engine of vLLM, rejects the payload.

    ``field`` is the rejected field of the payload, or ``""``. ``fault`` as for ``SettingOrigin.violation``;
    it never repeats a value of the payload. ``rejection``, vLLM's own message, may repeat one.
    """

    def __init__(self, field: str, fault: str, rejection: VLLMRejection | None = None) -> None:
        self.field = field
        self.rejection = rejection
        super().__init__(fault)


class EngineStartError(WorkerError):
    """The engine cannot start, or its arguments are invalid."""


class EngineNotGeneratingError(WorkerError):
    """A frontend's probe cannot be answered, because the engine does not generate tokens."""


class HandlerTimeoutError(WorkerError):
    """The user's code exceeded its time limit. The message is the line that it was executing, or empty."""


class FrontendError(WorkerError):
    """The frontend cannot start. The message is a sentence for the user."""


class HandlerAbortedError(BaseException):
    """Raised inside the user's code when it exceeds its time limit.

    Not an Exception, because a retry loop in the user's code would catch that.
    """


class ProbeUnavailableError(WorkerError):
    """No probe can run, because probing is disabled or the worker is not serving yet."""


class RequestInterruptedError(WorkerError):
    """The worker ended a request in flight, because the engine cannot complete it."""

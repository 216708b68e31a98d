"""Names the place that a setting was read from, and builds the problem that the worker reports for it."""

from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import PayloadSource, Problem, Reason

__all__ = ["SettingOrigin"]

_MAX_FIELD: Final = 128


@dataclass(frozen=True, slots=True)
class SettingOrigin:
    """The source of a setting and its name in that source."""

    source: PayloadSource
    field: str
    """As the user writes it: ``healthCheck.payload``, ``DYN_HEALTH_CHECK_PAYLOAD``."""
    confidential: bool = False
    """The value may contain a secret, so no message repeats it."""
    correction: str = "Correct the payload."
    """The fix for a payload that vLLM rejects."""

    def violation(
        self, fault: str, fix: str, *, reason: Reason = Reason.INVALID_PAYLOAD, field: str = ""
    ) -> Problem:
        """The message is ``FIELD FAULT. FIX``: ``healthCheck.payload is empty. Add a prompt.``

        ``fault`` is a predicate without a full stop, ``fix`` one or more complete sentences. ``field`` is a
        known field inside the payload.
        """
        name = f"{self.field}.{field}" if field else self.field
        return Problem(
            reason=reason,
            source=str(self.source),
            field=name[:_MAX_FIELD],
            message=f"{name} {fault}. {fix}",
        )

    def vllm_rejection(self, field: str, message: str) -> Problem:
        """A payload that vLLM rejected. ``message`` is vLLM's own, without its full stop; it is empty if it
        may repeat a secret.
        """
        if message:
            return self.violation(f"is rejected by vLLM: {message}", self.correction, field=field)
        return self.violation(
            "is rejected by vLLM",
            "The error message of vLLM is omitted because it may repeat a secret from the payload. Correct "
            "the payload, or send it to the worker's API to read the message.",
            field=field,
        )

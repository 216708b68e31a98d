"""Names the place that a setting was read from, and builds the problem that the worker reports for it."""

from dataclasses import dataclass

from vllmendpoint_api import PayloadSource, Problem, Reason

__all__ = ["SettingOrigin"]


@dataclass(frozen=True, slots=True)
class SettingOrigin:
    """The source of a setting and its name there."""

    source: PayloadSource
    field: str
    """As the user writes it: ``healthCheck.payload``, ``DYN_HEALTH_CHECK_PAYLOAD``."""
    confidential: bool = False
    """The value may hold a secret, so no message repeats it."""
    correct: str = "Correct the payload"
    """Fix for a payload that vLLM rejects."""

    def violation(
        self, what: str, fix: str, *, reason: Reason = Reason.INVALID_PAYLOAD, field: str = ""
    ) -> Problem:
        """One rejected setting. ``field`` is a known field inside the payload."""
        where = f"{self.field}.{field}" if field else self.field
        return Problem(
            reason=reason, source=str(self.source), field=where[:128], message=f"{where} {what}: {fix}."
        )

    def vllm_rejection(self, field: str, sentence: str) -> Problem:
        """A payload that vLLM rejected. ``sentence`` is vLLM's message without its full stop; empty if it may
        repeat a secret.
        """
        where = f"{self.field}.{field}" if field else self.field
        says = f": {sentence}. {self.correct}."
        if not sentence:
            says = (
                ". Its sentence is not shown, because it may repeat the payload, which may hold a secret. "
                "Correct the payload, or send it to the worker's API to read the sentence."
            )
        return Problem(
            reason=Reason.INVALID_PAYLOAD,
            source=str(self.source),
            field=where[:128],
            message=f"{where} is refused by vLLM{says}",
        )

"""Decides whether the stream of a probe is an answer."""

from collections.abc import Mapping
from typing import Any

from vllmendpoint_api import Outcome
from vllmendpoint_worker.payload.expect import Expectation

__all__ = ["Answer"]


class Answer:
    """Collects the chunks of one stream.

    An answer is a set of choices with tokens and a finish reason each, whose text meets ``expect`` if that is
    given, or an embedding.
    """

    def __init__(self, expect: Expectation | None) -> None:
        self.tokens = 0
        self._expect = expect
        self._choices: dict[int, list[int]] = {}
        self._unfinished: set[int] = set()
        self._finish_reasons: list[str] = []
        self._has_embedding = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        if chunk.get("event") == "error":
            self._finish_reasons.append("error")
        index = chunk.get("index") or 0
        tokens = chunk.get("token_ids")
        if tokens:
            self.tokens += len(tokens)
            self._unfinished.add(index)
            if self._expect is not None:
                self._choices.setdefault(index, []).extend(tokens)
        if chunk.get("data"):
            self._has_embedding = True
        if finish := chunk.get("finish_reason"):
            self._finish_reasons.append(str(finish))
            self._unfinished.discard(index)

    def outcome(self) -> tuple[Outcome, str]:
        """The outcome once the stream has ended, and a detail for the verdict's message."""
        for reason in self._finish_reasons:
            if reason.startswith("error") or reason in ("cancelled", "abort"):
                return Outcome.ERROR, "the finish reason is an error"
        if self._has_embedding:
            return Outcome.COMPLETE, ""
        if not self.tokens:
            return Outcome.UNEXPECTED_ANSWER, "the answer has no tokens"
        if self._unfinished or not self._finish_reasons:
            return Outcome.UNEXPECTED_ANSWER, "the stream ended without a finish reason"
        if self._expect is not None:
            return self._check_text(self._expect)
        return Outcome.COMPLETE, ""

    def _check_text(self, expect: Expectation) -> tuple[Outcome, str]:
        try:
            met = expect.is_met(self._choices.values())
        except Exception as error:  # noqa: BLE001  (the tokenizer belongs to the model and may raise anything)
            return Outcome.ERROR, f"the tokens cannot be decoded: {type(error).__name__}"
        if met:
            return Outcome.COMPLETE, ""
        # Without the text: more people can read the report than may read answers of the user's model.
        count = "1 token that does" if self.tokens == 1 else f"{self.tokens} tokens that do"
        return Outcome.UNEXPECTED_ANSWER, f"{count} not match healthCheck.expect.regex"

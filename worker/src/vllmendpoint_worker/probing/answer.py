"""Decides whether the stream of a probe is an answer."""

from collections.abc import Mapping
from typing import Any, Final

from vllmendpoint_api import Outcome
from vllmendpoint_worker.payload.expect import Expectation

__all__ = ["Answer"]

_REPLAYED: Final = ("index", "token_ids", "finish_reason", "completion_usage")
"""Fields of a chunk that answer any request. Others, such as log probabilities, depend on the request."""


class Answer:
    """Collects the chunks of one stream.

    An answer is a set of choices with tokens and a finish reason each, whose text meets ``expect`` if that is
    given, or an embedding. ``chunks``: the first choice, or the first embedding, as Dynamo's handlers yield
    them.
    """

    def __init__(self, expect: Expectation | None) -> None:
        self.tokens = 0
        self.chunks: list[Mapping[str, Any]] = []
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
        if data := chunk.get("data"):
            self._has_embedding = True
            if chunk.get("object") == "list" and isinstance(data, list):
                self.chunks.append({**chunk, "data": data[:1]})
        elif index == 0:
            self.chunks.append({name: chunk[name] for name in _REPLAYED if name in chunk})
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

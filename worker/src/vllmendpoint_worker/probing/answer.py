"""What came back of a probe, and whether it is an answer."""

from collections.abc import Mapping
from typing import Any

from vllmendpoint_api import Outcome
from vllmendpoint_worker.payload.expect import Expectation

__all__ = ["Answer"]


class Answer:
    """Tokens with an end (that make the text expected), or an embedding."""

    def __init__(self, expect: Expectation | None) -> None:
        self.tokens = 0
        self._expect = expect
        self._choices: dict[int, list[int]] = {}
        self._open: set[int] = set()
        self._ends: list[str] = []
        self._embedded = False

    def feed(self, chunk: Mapping[str, Any]) -> None:
        if chunk.get("event") == "error":
            self._ends.append("error")
        index = chunk.get("index") or 0
        tokens = chunk.get("token_ids")
        if tokens:
            self.tokens += len(tokens)
            self._open.add(index)
            if self._expect is not None:
                self._choices.setdefault(index, []).extend(tokens)
        if chunk.get("data"):
            self._embedded = True
        if finish := chunk.get("finish_reason"):
            self._ends.append(str(finish))
            self._open.discard(index)

    def judge(self) -> tuple[Outcome, str]:
        for end in self._ends:
            if end.startswith("error") or end in ("cancelled", "abort"):
                return Outcome.ERROR, "the answer's end is an error"
        if self._embedded:
            return Outcome.COMPLETE, ""
        if not self.tokens:
            return Outcome.UNEXPECTED_ANSWER, "no token came back"
        if self._open or not self._ends:
            return Outcome.UNEXPECTED_ANSWER, "the stream ended before the answer did"
        if self._expect is not None:
            return self._judge_text(self._expect)
        return Outcome.COMPLETE, ""

    def _judge_text(self, expect: Expectation) -> tuple[Outcome, str]:
        try:
            met = expect.is_met(self._choices.values())
        except Exception as error:  # noqa: BLE001  (the tokenizer is the model's: it raises what it likes)
            return Outcome.ERROR, f"the tokens cannot be read as text: {type(error).__name__}"
        if met:
            return Outcome.COMPLETE, ""
        # Not the text: the report goes further than the answer of a user's own model should.
        many = "1 token that does" if self.tokens == 1 else f"{self.tokens} tokens that do"
        return Outcome.UNEXPECTED_ANSWER, f"{many} not match healthCheck.expect.regex"

"""Checks the generated text of a probe against ``healthCheck.expect``.

The expressions are RE2's, as in admission (``matches`` of CEL). A search takes time linear in the text, so no
expression can block the worker. The model's own tokenizer decodes the text, without special tokens, as for a
user.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import re2

__all__ = ["Decode", "Expectation", "regex_error"]

Decode = Callable[[Sequence[int]], str]
"""The model's tokenizer: token ids to text."""

_MAX_ERROR: Final = 128


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False  # stderr would contain the pattern
    return options


def regex_error(regex: str) -> str | None:
    """The syntax error of ``regex`` in RE2, or None."""
    try:
        re2.compile(regex, options=_options())
    except re2.error as error:
        message = error.args[0] if error.args else ""
        return (message.decode(errors="replace") if isinstance(message, bytes) else str(message))[:_MAX_ERROR]
    except UnicodeEncodeError:
        return "UTF-8 cannot encode it"
    return None


@dataclass(frozen=True, slots=True)
class Expectation:
    """``regex`` must be valid (:func:`regex_error`). Two expectations with the same expression are equal."""

    regex: str
    decode: Decode = field(compare=False, repr=False)

    def is_met(self, choices: Iterable[Sequence[int]]) -> bool:
        """Whether the expression matches in the text of every choice. Raises what ``decode`` raises."""
        pattern = re2.compile(self.regex, options=_options())  # re2 caches it
        return all(pattern.search(self.decode(tokens)) is not None for tokens in choices)

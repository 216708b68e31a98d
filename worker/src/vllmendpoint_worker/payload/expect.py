"""``healthCheck.expect``: must the generated text match? Generating garbage is not generating.

RE2, as admission has it (CEL's ``matches``) and so that no pattern can hang the worker: its search takes time
linear in the text. The text is made from the probe's tokens by the model's own tokenizer, as a user would
read it, special tokens left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import re2

__all__ = ["Decode", "Expectation", "regex_error"]

Decode = Callable[[Sequence[int]], str]
"""The model's tokenizer: token ids to text."""

MAX_SHOWN: Final = 128


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False  # it would write the pattern to stderr
    return options


def regex_error(regex: str) -> str | None:
    """What is wrong with ``regex`` in RE2 syntax, or None."""
    try:
        re2.compile(regex, options=_options())
    except re2.error as error:
        told = error.args[0] if error.args else ""
        return (told.decode(errors="replace") if isinstance(told, bytes) else str(told))[:MAX_SHOWN]
    except UnicodeEncodeError:
        return "it is not text that UTF-8 can carry"
    return None


@dataclass(frozen=True, slots=True)
class Expectation:
    """``regex`` must have passed :func:`regex_error`. Two with the same expression are equal."""

    regex: str
    decode: Decode = field(compare=False, repr=False)

    def is_met(self, choices: Iterable[Sequence[int]]) -> bool:
        """Whether the expression is found in the text of every choice. Raises what ``decode`` raises."""
        pattern = re2.compile(self.regex, options=_options())  # re2 caches it
        return all(pattern.search(self.decode(tokens)) is not None for tokens in choices)

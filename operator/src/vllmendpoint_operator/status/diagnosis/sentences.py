"""Parts of the sentences that messages consist of: counts with their verb, and quoted texts."""

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["counted", "one_line", "pods_named", "quantities", "quantity", "sentence"]

_MAX_QUOTED: Final = 700
"""Characters of a quoted text."""


def counted(count: int, noun: str) -> str:
    """``1 replica``, ``2 replicas``; ``noun`` in the singular."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def quantity(count: int, total: int, noun: str, singular: str = "is", plural: str = "are") -> str:
    """``1 of 3 replicas is``, ``0 of 3 replicas are``, ``1 of 1 replica is``."""
    verb = singular if 1 in (count, total) else plural
    return f"{count} of {counted(total, noun)} {verb}"


def quantities(counts: Iterable[tuple[int, int, str]], singular: str = "is", plural: str = "are") -> str:
    """``1 of 2 replicas and 1 of 1 prefill replica are``. Each item has the arguments of :func:`quantity`."""
    found = list(counts)
    if len(found) == 1:
        return quantity(*found[0], singular, plural)
    texts = [f"{count} of {counted(total, noun)}" for count, total, noun in found]
    return f"{' and '.join(texts)} {plural}"


def pods_named(names: Sequence[str]) -> str:
    """``pod w-1``, ``pod w-1 and 2 more``."""
    return f"pod {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def one_line(text: str) -> str:
    """A message of a kubelet, a registry or a process: printable, on one line, without its full stop."""
    spaced = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(spaced.split())[:_MAX_QUOTED].rstrip(" .:;,")


def sentence(text: str) -> str:
    """A message of a worker or of the plan, with its full stop."""
    stripped = text.rstrip(" .:;,")
    return stripped if stripped.endswith(("?", "!")) else f"{stripped}."

"""From the records of one case to its row of the table. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Record", "Row", "expected_texts", "row"]


@dataclass(frozen=True)
class Record:
    """One request of a caller. Times in seconds."""

    kind: str
    began: float
    """Unix time."""
    status: int
    """HTTP status; 0 without a response."""
    text: str
    finish: str
    error: str
    seconds: float
    """From the request to the end of the response."""
    first: float
    """From the request to the first byte of content."""
    gap: float
    """Longest time in which the caller received nothing."""

    @property
    def answered(self) -> bool:
        """Whether the response is complete, whatever its text."""
        return self.status == 200 and bool(self.finish) and not self.error


@dataclass(frozen=True)
class Row:
    """What callers lost in one case."""

    requests: int
    failed: int
    wrong: int
    """Complete responses whose text differs from the undisturbed text."""
    moved: int
    """Requests that the frontends moved to another worker."""
    extra_median: float
    """Median of the additional seconds of the requests that overlap with the disruption."""
    extra_max: float
    gap: float
    """Longest time in which a caller of a streaming or waiting request received nothing, less the usual."""
    errors: tuple[str, ...] = ()
    """Distinct errors, for the log."""


def expected_texts(records: Iterable[Record]) -> dict[str, str]:
    """Text of each kind without a disruption. Raises ValueError if it is not the same every time."""
    texts: dict[str, set[str]] = {}
    for record in records:
        if record.answered:
            texts.setdefault(record.kind, set()).add(record.text)
    for kind, found in texts.items():
        if len(found) != 1:
            raise ValueError(f"{kind}: {len(found)} different texts without a disruption")
    return {kind: found.pop() for kind, found in texts.items()}


def row(
    records: Sequence[Record],
    baseline: Sequence[Record],
    expected: Mapping[str, str],
    disruption: tuple[float, float],
    moved: int,
) -> Row:
    """``disruption``: Unix time of its start and of its end; ``baseline``: records before it."""
    begin, end = disruption
    usual = {kind: median(r.seconds for r in baseline if r.kind == kind and r.answered) for kind in expected}
    usual_gap = {kind: median(r.gap for r in baseline if r.kind == kind and r.answered) for kind in expected}
    during = [r for r in records if r.began + r.seconds >= begin and r.began <= end]
    answered = [r for r in during if r.answered]
    extra = [r.seconds - usual[r.kind] for r in answered]
    failed = [r for r in during if not r.answered]
    return Row(
        requests=len(during),
        failed=len(failed),
        wrong=sum(r.text != expected[r.kind] for r in answered),
        moved=moved,
        extra_median=median(extra) if extra else 0.0,
        extra_max=max(extra, default=0.0),
        gap=max((r.gap - usual_gap[r.kind] for r in during), default=0.0),
        errors=tuple(sorted({f"{r.status} {r.error or 'incomplete'}"[:160] for r in failed})),
    )

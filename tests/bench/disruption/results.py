"""The rows of a run in a file, which is written after each case: an interrupted run can be resumed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .analysis import Row

__all__ = ["Results"]


@dataclass
class Results:
    """Rows, and reasons for cases that were not measured, by subject and case."""

    path: Path | None = None
    version: str = ""
    """What was measured: the commit."""
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    unmeasured: dict[str, dict[str, str]] = field(default_factory=dict)

    def resume(self) -> None:
        """Read the rows of an earlier run. Raises ValueError if it measured another version.

        Cases that the earlier run could not measure are measured again.
        """
        if self.path is None or not self.path.exists():
            return
        found = json.loads(self.path.read_text())
        if found["version"] != self.version:
            raise ValueError(f"{self.path} is from {found['version']}, and this is {self.version}")
        self.rows = {
            subject: {case: _row(values) for case, values in cases.items()}
            for subject, cases in found["rows"].items()
        }

    def measured(self, subject: str, case: str, row: Row) -> None:
        self.rows.setdefault(subject, {})[case] = row
        self.unmeasured.get(subject, {}).pop(case, None)
        self.write()

    def failed(self, subject: str, case: str, reason: str) -> None:
        self.unmeasured.setdefault(subject, {})[case] = reason
        self.write()

    def complete(self, subject: str, cases: Sequence[str]) -> None:
        """Record the cases that an interrupted run did not reach."""
        for case in cases:
            if not self.has(subject, case) and case not in self.unmeasured.get(subject, {}):
                self.failed(subject, case, "the run ended before it")

    def has(self, subject: str, case: str) -> bool:
        return case in self.rows.get(subject, {})

    def write(self) -> None:
        if self.path is None:
            return
        content = {
            "version": self.version,
            "rows": {
                name: {case: asdict(row) for case, row in cases.items()} for name, cases in self.rows.items()
            },
            "unmeasured": self.unmeasured,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.path)

    def lines(self, subjects: Sequence[str], cases: Sequence[str]) -> list[str]:
        """A table with one line per case and subject."""
        lines = [
            "| case | subject | requests | failed | wrong | moved | extra s (median, max) | gap s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for case in cases:
            for subject in subjects:
                if (row := self.rows.get(subject, {}).get(case)) is not None:
                    lines.append(
                        f"| {case} | {subject} | {row.requests} | {row.failed} | {row.wrong} | {row.moved} "
                        f"| {row.extra_median:.1f}, {row.extra_max:.1f} | {row.gap:.1f} |"
                    )
                elif (reason := self.unmeasured.get(subject, {}).get(case)) is not None:
                    lines.append(f"| {case} | {subject} | not measured: {reason} | | | | | |")
        return lines

    def side_by_side(self, ours: str, reference: str, cases: Sequence[str]) -> list[str]:
        """The table of docs/concepts/requests-in-flight.md: failures of both, the rest of ours."""
        lines = []
        for case in cases:
            row, other = self.rows.get(ours, {}).get(case), self.rows.get(reference, {}).get(case)
            cells = [
                f"{found.failed} of {found.requests}" if found else "not measured" for found in (other, row)
            ]
            if row is not None:
                cells += [f"{row.wrong}", f"{row.moved}", f"{row.extra_median:.1f}, {row.extra_max:.1f}"]
                cells.append(f"{row.gap:.1f}")
            else:
                cells += [""] * 4
            lines.append(f"| {case} | {' | '.join(cells)} |")
        return lines


def _row(values: dict[str, Any]) -> Row:
    return Row(**{**values, "errors": tuple(values["errors"])})

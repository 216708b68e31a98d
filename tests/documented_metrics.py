"""The operator's metrics as docs/tasks/monitor.md lists them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs/tasks/monitor.md"


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric by its name."""
    table = DOCS.read_text().split("<!-- metrics:", 1)[1].split("<!-- /metrics -->", 1)[0]
    rows = re.findall(r"^\| `(\w+)(?:\{([\w,]+)\})?` \| (\w+) \|", table, re.MULTILINE)
    return {name: (kind, set(filter(None, labels.split(",")))) for name, labels, kind in rows}

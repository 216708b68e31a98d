"""The pages of the documentation for users, which the tests read."""

import re
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1] / "docs"
FOLDERS = ("getting-started", "concepts", "tasks", "troubleshooting")
PAGES = [
    *sorted(page for folder in FOLDERS for page in (DOCS / folder).glob("*.md")),
    DOCS / "reference.md",
]
TEXT = "\n".join(page.read_text() for page in PAGES)


def yaml_blocks(text: str) -> list[Any]:
    """The first document of each YAML block."""
    return [next(yaml.safe_load_all(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def parts_of_specs(text: str) -> list[Any]:
    """YAML blocks without a ``kind``: parts of the spec of a VLLMEndpoint."""
    return [block for block in yaml_blocks(text) if "kind" not in block]


def table(text: str, name: str) -> list[list[str]]:
    """Cells of the rows between ``<!-- NAME: ... -->`` and ``<!-- /NAME -->`` that start with code."""
    (block,) = re.findall(rf"<!-- {name}:.*?-->(.*?)<!-- /{name} -->", text, re.DOTALL)
    rows = [row for row in block.splitlines() if row.startswith("| `")]
    return [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows]


def commands(text: str) -> list[str]:
    """The blocks of shell commands."""
    return re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

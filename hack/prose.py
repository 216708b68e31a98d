"""Prints every refused word of docs/contributing/style.md in the repository, with its replacement.

    python3 hack/prose.py [FILE...]     without FILE: all tracked files except EXCLUDED

Whole lines are searched, so the check covers comments, messages and names. Exit status 1 if a word was found.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
STYLE = ROOT / "docs/contributing/style.md"
EXCLUDED = (
    "LICENSE",
    "uv.lock",
    "tests/unit/test_prose.py",
    "tests/unit/operator/status/diagnosis/recorded.json",
)
"""Files that quote refused words, or that no person writes."""


def rows(text: str, table: str) -> Iterator[list[str]]:
    """Cells of the table between the comments ``<!-- TABLE: ... -->`` and ``<!-- /TABLE -->``."""
    block = text.split(f"<!-- {table}:", 1)[1].split(f"<!-- /{table} -->", 1)[0]
    for line in block.splitlines()[3:]:
        yield [cell.strip(" `") for cell in line.strip("|").split("|")]


class Style:
    """The rules in the text of style.md."""

    def __init__(self, text: str) -> None:
        self.replacements = {
            word.strip(): replacement
            for words, replacement in rows(text, "refused")
            for word in words.split(",")
        }
        self.exceptions = {(file, quoted) for file, quoted in rows(text, "exceptions")}
        words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in self.replacements)
        self.pattern = re.compile(rf"\b({words})\b", re.IGNORECASE)

    def problems(self, file: str, text: str) -> Iterator[str]:
        """``file:line: word: replacement`` for each refused word of a file; ``file``: its path in the repository."""
        for name, quoted in self.exceptions:
            if name == file:
                # Of the same length, so that the line numbers stay.
                text = text.replace(quoted, re.sub(r"\S", "-", quoted))
        for match in self.pattern.finditer(text):
            word = re.sub(r"\s+", " ", match[0])
            line = text.count("\n", 0, match.start()) + 1
            yield f"{file}:{line}: {word}: use {self.replacements[word.lower()]}"


def main(arguments: list[str]) -> int:
    style = Style(STYLE.read_text())
    if not arguments:
        command = ["git", "ls-files", ".", *(f":!{path}" for path in EXCLUDED)]
        arguments = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    paths = {(ROOT / argument).resolve() for argument in arguments} - {STYLE}
    found = [
        problem
        for path in sorted(paths)
        for problem in style.problems(str(path.relative_to(ROOT)), path.read_text())
    ]
    for problem in found:
        print(problem)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

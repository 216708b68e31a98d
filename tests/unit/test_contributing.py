"""The first change in CONTRIBUTING.md works as described."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block(language: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (found,) = re.findall(rf"^   ```{language}\n(.*?)^   ```$", text, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found)


def test_the_test_of_the_first_change_fails_before_it_and_passes_after_it(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (name,) = re.findall(r"`(tests/unit/\S+/test_\w+\.py)`:", text)
    shutil.copytree(ROOT / "operator/src", tmp_path / "operator/src")
    shutil.copytree(ROOT / "tests/unit/operator", tmp_path / "tests/unit/operator")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_text(block("python"))

    def outcome() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'operator/src'}:{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    assert "2 failed" in outcome()
    subprocess.run(["git", "apply"], cwd=tmp_path, input=block("diff"), text=True, check=True)
    assert "2 passed" in outcome()

"""hack/prose.py: the check for refused words."""

import runpy
from pathlib import Path

import pytest

HACK = Path(__file__).parents[2] / "hack"
prose = runpy.run_path(str(HACK / "prose.py"))

STYLE = """
<!-- refused: read by hack/prose.py -->
| Word | Use instead |
|---|---|
| told, tells | reported |
| at once | immediately |
<!-- /refused -->
<!-- exceptions: read by hack/prose.py -->
| File | Text |
|---|---|
| docs/a.md | `he was told` |
<!-- /exceptions -->
"""


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("a.py", "# It is told here.\n", ["a.py:1: told: use reported"]),
        ("a.py", "first = 1\nx = 'It Tells'\n", ["a.py:2: Tells: use reported"]),
        ("a.md", "It restarts at\nonce.\n", ["a.md:1: at once: use immediately"]),
        ("a.py", "untold = was_told = retold\n", []),
        ("docs/a.md", "> as he was told\n\ntold\n", ["docs/a.md:3: told: use reported"]),
        ("docs/b.md", "> as he was told\n", ["docs/b.md:1: told: use reported"]),
    ],
)
def test_a_refused_word_is_found_with_its_replacement(file: str, text: str, found: list[str]) -> None:
    assert list(prose["Style"](STYLE).problems(file, text)) == found


def test_the_style_guide_has_words_and_the_excluded_paths_exist() -> None:
    style = prose["Style"](prose["STYLE"].read_text())
    assert {"told", "said", "tells", "anew", "nobody", "heard"} <= style.replacements.keys()
    assert all((prose["ROOT"] / path).exists() for path in prose["EXCLUDED"])


def test_the_exit_status_shows_whether_a_word_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prose["ROOT"] / "README.md"
    assert prose["main"]([str(file)]) == 0
    monkeypatch.setattr(Path, "read_text", lambda path: STYLE if path == prose["STYLE"] else "told")
    assert prose["main"]([str(file)]) == 1
    assert capsys.readouterr().out == "README.md:1: told: use reported\n"

"""The site of the documentation has every page, and the hook of mkdocs converts links, lists and tables."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "hack/docs_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(item)


def test_every_page_is_in_the_navigation_once(hook: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = list(pages(hook.with_pages_of_folders(config["nav"])))
    assert len(listed) == len(set(listed))
    found = sorted(page for page in listed if not page.startswith("repository/"))
    assert found == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("docs/faq.md", "tasks/expose.md#a", "tasks/expose.md#a"),
        ("docs/faq.md", "#a", "#a"),
        ("docs/faq.md", "https://example.com/x", "https://example.com/x"),
        ("docs/tasks/handlers.md", "../../samples/gpu.yaml", "../repository/samples/gpu.yaml"),
        (
            "docs/README.md",
            "../charts/vllmendpoint-operator/README.md",
            "repository/charts/vllmendpoint-operator.md",
        ),
        ("charts/vllmendpoint-operator/README.md", "../../docs/tasks/secure.md#b", "../../tasks/secure.md#b"),
    ],
)
def test_links_to_files_outside_of_docs_lead_to_their_copies(
    hook: ModuleType, page: str, link: str, expected: str
) -> None:
    assert hook.with_site_links(f"[text]({link})", ROOT / page) == f"[text]({expected})"


def test_lists_and_tables_are_separated_from_their_introduction(hook: ModuleType) -> None:
    text = "All of:\n- one\n  more\n- two\n\nThe table:\n| a |\n|---|\n```\nx\n- y\n```\n"
    assert hook.with_empty_lines(text) == (
        "All of:\n\n- one\n  more\n- two\n\nThe table:\n\n| a |\n|---|\n```\nx\n- y\n```\n"
    )


def test_code_in_tables_can_break_between_the_parts_of_a_path(hook: ModuleType) -> None:
    html = "<code>a.b</code><td><code>a.b</code> c.d</td>"
    assert hook.with_breaks_in_tables(html) == "<code>a.b</code><td><code>a.<wbr>b</code> c.d</td>"


def test_an_option_in_code_is_not_broken_after_a_hyphen(hook: ModuleType) -> None:
    html = "--a <code>x --max-len 1</code>"
    assert hook.with_whole_options(html) == '--a <code>x <span class="option">--max-len</span> 1</code>'


def test_anchors_are_those_of_github(hook: ModuleType) -> None:
    assert hook.github_anchor("SM_VLLM_* variables", "-") == "sm_vllm_-variables"

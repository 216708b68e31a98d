"""A hook of mkdocs: builds the documents as GitHub shows them.

- Links from ``docs/`` to other files of the repository work: the site contains these files below ``repository/``.
- A list or table may follow its introduction without an empty line, which Python-Markdown requires.
- Anchors are those of GitHub.
- A folder in the navigation is replaced with its pages.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
LINK: Final = re.compile(r"(?<=\]\()(?!https?://)([^)\s#]+)(?=[#)])")
CELL: Final = re.compile(r"<td.*?</td>", re.DOTALL)
CODE: Final = re.compile(r"<code>[^<]+")
SOURCES: Final[dict[str, Path]] = {}
"""Files outside of ``docs/`` by their path below the root of the site."""
ITEM: Final = re.compile(r"- |\d+\. |\|")


def site_path(path: Path) -> str:
    """Path of a file of the repository below the root of the site.

    A README outside of ``docs/`` has the name of its folder, because mkdocs would use it as the first page of its section.
    """
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    outside = "repository" / path.relative_to(ROOT)
    return (outside.parent.with_suffix(".md") if outside.name == "README.md" else outside).as_posix()


def with_site_links(text: str, page: Path) -> str:
    """The text with links between files of the repository replaced by links between files of the site."""
    folder = Path(site_path(page)).parent

    def replaced(match: re.Match[str]) -> str:
        return os.path.relpath(site_path((page.parent / match[1]).resolve()), folder)

    return LINK.sub(replaced, text)


def outside_files(pages: list[Path]) -> list[Path]:
    """Files outside of ``docs/`` that the pages, or other such Markdown files, link to."""
    found: list[Path] = []
    pending = list(pages)
    while pending:
        page = pending.pop()
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            if not target.is_relative_to(DOCS) and target not in found:
                found.append(target)
                if target.suffix == ".md":
                    pending.append(target)
    return sorted(found)


def with_empty_lines(text: str) -> str:
    """The text with an empty line before each list and table."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        previous = lines[-1] if lines else ""
        starts = ITEM.match(line) and previous and not ITEM.match(previous) and not previous.startswith(" ")
        if starts and not fenced:
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def with_breaks_in_tables(html: str) -> str:
    """The page with possible line breaks in the code of tables, such as in paths of fields."""

    def broken(code: re.Match[str]) -> str:
        return re.sub(r"(?<=[\w\]])([./_,=])(?=\w)", r"\1<wbr>", code[0])

    return CELL.sub(lambda cell: CODE.sub(broken, cell[0]), html)


def with_whole_options(html: str) -> str:
    """The page without line breaks after the hyphens of an option in code."""
    option = re.compile(r"(?<![\w-])(--[\w-]+)")
    return CODE.sub(lambda code: option.sub(r'<span class="option">\1</span>', code[0]), html)


def github_anchor(heading: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def with_pages_of_folders(nav: Any) -> Any:
    """The navigation with each path that ends with a slash replaced by the pages of that folder."""
    if isinstance(nav, list):
        return [with_pages_of_folders(item) for item in nav]
    if isinstance(nav, dict):
        return {title: with_pages_of_folders(item) for title, item in nav.items()}
    if not nav.endswith("/"):
        return nav
    pages = sorted((DOCS / nav).glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    return [site_path(page) for page in pages]


def on_config(config: Any) -> Any:
    config.nav = with_pages_of_folders(config.nav)
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_anchor
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path in outside_files(sorted(DOCS.rglob("*.md"))):
        SOURCES[site_path(path)] = path
        if path.suffix == ".md":
            files.append(File.generated(config, site_path(path), content=path.read_text()))
        elif path.is_file():
            files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    name = page.file.src_uri
    return with_empty_lines(with_site_links(markdown, SOURCES.get(name, DOCS / name)))


def on_page_content(html: str, **_: Any) -> str:
    return with_whole_options(with_breaks_in_tables(html))

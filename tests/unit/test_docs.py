"""What the documents repeat of the code is the code's."""

import re
from pathlib import Path

import yaml

from vllmendpoint_api import HANDLER_PRECEDENCE, PRECEDENCE, VLLMEndpointSpec

ROOT = Path(__file__).parents[2]


def test_precedence_in_the_docs_is_the_table_in_the_code():
    text = (ROOT / "docs/health-checks.md").read_text()
    block = text.split("<!-- precedence:", 1)[1].split("<!-- /precedence -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {row.level} | `{row.source}` | {row.where} |" for row in PRECEDENCE]


def test_precedence_of_handlers_in_the_docs_is_the_table_in_the_code():
    text = (ROOT / "docs/handlers.md").read_text()
    block = text.split("<!-- precedence:", 1)[1].split("<!-- /precedence -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| `{row.source}` | {row.ping} | {row.invocations} |" for row in HANDLER_PRECEDENCE]


def test_the_tests_that_hold_the_invariants_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    block = text.split("<!-- invariants:", 1)[1].split("<!-- /invariants -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [str(number) for number in range(1, 11)]
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert re.search(rf"^(async )?def {name}\(", code, re.MULTILINE), name


def test_samples_are_valid_and_so_is_the_manifest_in_the_readme():
    seen = 0
    for path in (ROOT / "samples").glob("*.yaml"):
        for sample in yaml.safe_load_all(path.read_text()):
            if sample["kind"] == "VLLMEndpoint":
                VLLMEndpointSpec.model_validate(sample["spec"])
                seen += 1
    assert seen == 3
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "samples/gpu.yaml").read_text() in readme

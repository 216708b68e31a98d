"""The documents match the code, and their links resolve."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.rendered_chart import container, env, one, template
from tests.user_docs import table
from vllmendpoint_api import (
    CONDITION_REASONS,
    HANDLER_PRECEDENCE,
    PRECEDENCE,
    EventReason,
    Level,
    ModelType,
    Reason,
    VLLMEndpointSpec,
    names,
    payload_for,
)

ROOT = Path(__file__).parents[2]
INSTALLATION = ROOT / "docs/getting-started/any-cluster.md"


def test_the_precedence_of_payloads_in_the_docs_is_that_of_the_code():
    text = (ROOT / "docs/tasks/health-check.md").read_text()
    block = text.split("<!-- precedence:", 1)[1].split("<!-- /precedence -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {row.level} | `{row.source}` | {row.where} |" for row in PRECEDENCE]


def test_the_precedence_of_handlers_in_the_docs_is_that_of_the_code():
    text = (ROOT / "docs/tasks/handlers.md").read_text()
    block = text.split("<!-- precedence:", 1)[1].split("<!-- /precedence -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| `{row.source}` | {row.ping} | {row.invocations} |" for row in HANDLER_PRECEDENCE]


def test_the_payloads_in_the_guide_are_those_of_the_code():
    text = (ROOT / "docs/guide/health-check-payloads.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert blocks == [
        *(payload_for(level, None) for level in Level),
        payload_for(Level.MINIMAL, ModelType.CHAT),
        payload_for(Level.MINIMAL, ModelType.EMBEDDING),
    ]


def test_the_examples_in_the_guide_are_those_that_tests_run():
    text = (ROOT / "docs/guide/custom-handlers.md").read_text()
    for example in (ROOT / "tests/guide").glob("*.py"):
        assert f"```python\n{example.read_text()}```" in text, example.name
    text = (ROOT / "docs/guide/health-check-payloads.md").read_text()
    examples = re.findall(r'= """\n(.*?)"""', (ROOT / "tests/worker/guide_python.py").read_text(), re.DOTALL)
    assert len(examples) >= 6
    for example in examples:
        assert f"```python\n{example}```" in text, example


def anchors(text):
    """The anchors of the headings, as GitHub derives them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_in_the_documents_resolves():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = [ROOT / name for name in listed.stdout.split()]
    assert len(pages) >= 10
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if link.startswith(("http://", "https://")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            assert target.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {link}"
            if anchor:
                assert anchor in anchors(target.read_text()), f"{page.relative_to(ROOT)}: {link}"


def test_the_tests_in_the_table_of_invariants_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    block = text.split("<!-- invariants:", 1)[1].split("<!-- /invariants -->", 1)[0]
    rows = [line for line in block.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [str(number) for number in range(1, 12)]
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert re.search(rf"^(async )?def {name}\(", code, re.MULTILINE), name


def test_samples_are_valid_and_so_is_the_documented_manifest():
    count = 0
    for path in (ROOT / "samples").glob("*.yaml"):
        for sample in yaml.safe_load_all(path.read_text()):
            if sample["kind"] == "VLLMEndpoint":
                VLLMEndpointSpec.model_validate(sample["spec"])
                count += 1
    assert count == 6
    page = INSTALLATION.read_text()
    assert (ROOT / "samples/gpu.yaml").read_text() in page


def test_the_documentation_creates_the_objects_that_its_sample_refers_to():
    page = INSTALLATION.read_text()
    spec = yaml.safe_load((ROOT / "samples/gpu.yaml").read_text())["spec"]
    claim = spec["cache"]["persistentVolumeClaim"]["claimName"]
    secret = spec["model"]["tokenSecretRef"]
    assert f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}=" in page
    created = yaml.safe_load(page.split("kubectl apply -f - <<EOF\n", 1)[1].split("EOF\n", 1)[0])
    assert (created["kind"], created["metadata"]["name"]) == ("PersistentVolumeClaim", claim)
    assert created["spec"]["accessModes"] == ["ReadWriteMany"], "the sample has more than one replica"


def test_the_chart_runs_the_images_that_the_documentation_builds():
    page = INSTALLATION.read_text()
    (registry,) = re.findall(r"--set global\.imageRegistry=(\S+)", page)
    (pushed,) = re.findall(r"docker push (\S+)", page)
    rendered = template({"global": {"imageRegistry": registry}})
    assert container(rendered)["image"] == pushed.replace("$image", "operator")
    assert env(rendered)["VLLMENDPOINT_WORKER_IMAGE"] == pushed.replace("$image", "worker")
    assert env(rendered)["VLLMENDPOINT_FRONTEND_IMAGE"] == pushed.replace("$image", "frontend")
    (built,) = re.findall(r"for image in (.*); do", page)
    assert built.split() == ["operator", "worker", "frontend"]


def test_every_alert_is_documented():
    groups = one(template({"prometheusRule": {"enabled": True}}), "PrometheusRule")["spec"]["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    rows = table((ROOT / "docs/tasks/monitor.md").read_text(), "alerts")
    assert [alert for alert, *_ in rows] == alerts
    assert all(len(row) == 3 and all(row) for row in rows)


REASONS = (ROOT / "docs/troubleshooting/reasons.md").read_text()
ENTRY = re.compile(
    r"^### (\w+)\nConditions: (.*)\n\n"
    r"- \*\*Symptom:\*\* \S[^*]*\n- \*\*Cause:\*\* \S[^*]*\n- \*\*Remedy:\*\* \S[^*]*?\n(?:\n|$)",
    re.MULTILINE,
)
"""A reason, its conditions, and the three parts of its entry."""


def test_every_entry_of_a_reason_has_symptom_cause_and_remedy() -> None:
    entries = [reason for reason, _ in ENTRY.findall(REASONS)]
    assert entries == re.findall(r"^### (.*)$", REASONS, re.MULTILINE)
    assert len(set(entries)) == len(entries)


def test_every_reason_of_every_condition_is_documented() -> None:
    rows = [*ENTRY.findall(REASONS), *((reason, of) for reason, of, _ in table(REASONS, "neutral"))]
    documented = [(reason, name) for reason, of in rows for name in re.findall(r"\w+", of)]
    expected = [(reason, condition) for condition, found in CONDITION_REASONS.items() for reason in found]
    expected.append((Reason.MANAGED_BY_ANOTHER_OPERATOR, names.CONDITION_OPERATOR_CONFLICT))
    assert sorted(documented) == sorted(expected)


def test_every_event_without_a_condition_is_documented() -> None:
    assert [reason for reason, _ in table(REASONS, "events")] == [*EventReason]


PACKAGES = (
    ROOT / "operator/src/vllmendpoint_operator",
    ROOT / "worker/src/vllmendpoint_worker",
    ROOT / "crds/src",
)


@pytest.mark.parametrize("page", ["follow-a-field.md", "follow-a-payload.md"])
def test_every_step_of_a_walkthrough_names_an_existing_symbol(page: str) -> None:
    text = (ROOT / "docs/contributing" / page).read_text()
    steps = re.findall(r"^\| \d+ \|[^|]*\| `([^`]+)` `([^`]+)` \|", text, re.MULTILINE)
    assert len(steps) > 10
    for module, symbol in steps:
        files = [package / module for package in PACKAGES if (package / module).exists()]
        assert files, module
        assert any(
            re.search(rf"^ *(async def|def|class) {symbol}\b", f.read_text(), re.MULTILINE) for f in files
        ), symbol
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    assert [path for path in named if not any((package / path).exists() for package in PACKAGES)] == []

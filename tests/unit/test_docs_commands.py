"""Shell commands in the documents parse, and the targets, files, values, fields and labels there exist."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.user_docs import PAGES, commands
from vllmendpoint_api import Condition, custom_resource_definition, names

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/vllmendpoint-operator"
DOCUMENTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "docs/README.md", "docs/faq.md", "docs/engine-options.md")),
    *(ROOT / "docs/contributing").glob("*.md"),
    *(ROOT.glob("[A-Z]*.md")),
    CHART / "README.md",
    ROOT / "hack/cluster/README.md",
    ROOT / "hack/kind/README.md",
]
DOCUMENTS = sorted({page for page in DOCUMENTS if page.name != "CHANGELOG.md"})
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in DOCUMENTS
    for number, block in enumerate(commands(page.read_text()))
]
PROGRAMS = ["kubectl", "helm", "make", "docker", "curl", "hack", "git", "export", "for", "cd", "uv"]
KINDS = {
    "vep",
    "pods",
    "pod",
    "service",
    "svc",
    "secret",
    "configmap",
    "lease",
    "deploy",
    "pvc",
    "pod,lease",
    "events",
}
PLACEHOLDERS = {"previous.yaml", "-", "my-values.yaml"}
OTHER_FIELDS = {"status.podIP", "handlers.lastError"}
"""Fields of a pod and of a worker's report."""
(VERSION,) = custom_resource_definition()["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]["properties"]
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def has_field(schema: dict[str, Any], path: str) -> bool:
    for step in path.replace("[]", "").split("."):
        schema = schema.get("items", schema)
        if schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema:
            return True
        if step not in schema.get("properties", {}):
            return False
        schema = schema["properties"][step]
    return True


def has_value(path: str) -> bool:
    values: Any = VALUES
    for step in path.split("."):
        if not isinstance(values, dict) or (values and step not in values):
            return False
        values = values.get(step)
    return True


def calls(block: str, program: str) -> Iterator[list[str]]:
    """Words after each call of the program. Documents inside of commands are not searched."""
    text = re.sub(r"<<'?EOF'?\n.*?^EOF$", "", block, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line.replace("$(", " ; ").replace("| ", " ; "), comments=True)
        for start, word in enumerate(words):
            if word == program:
                stop = (at for at, end in enumerate(words) if at > start and end in ("&&", ";", "|", "&"))
                yield words[start + 1 : next(stop, len(words))]


def options(words: list[str], *options: str) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        for option in options:
            if word == option:
                yield following
            elif word.startswith(f"{option}="):
                yield word.partition("=")[2]


def test_commands_are_in_blocks_that_are_marked_as_such() -> None:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for page in DOCUMENTS:
        for language, block in fence.findall(page.read_text()):
            first = "" if language or "──►" in block else block.split()[0].partition("/")[0]
            assert first not in PROGRAMS, (page, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_commands_parses(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", BLOCKS)
def test_the_files_in_a_block_of_commands_exist(block: str) -> None:
    for program in ("kubectl", "helm", "docker"):
        for words in calls(block, program):
            named = {*options(words, "-f", "--filename", "--values")} - PLACEHOLDERS
            named |= {word for word in words if re.match(r"(samples|charts|hack|crds)/", word)}
            assert [name for name in named if not (ROOT / name).exists()] == []
            for template in options(words, "--show-only"):
                assert (CHART / template).exists()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_images_in_a_block_of_commands_are_targets_of_the_dockerfile(block: str) -> None:
    targets = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    named = re.findall(r"for image in (.*);", block)
    named += [name for name in re.findall(r"--target (\S+)", block) if not name.startswith("$")]
    assert {image for text in named for image in text.split()} <= set(targets)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_chart_values_in_a_block_of_commands_exist(block: str) -> None:
    for words in calls(block, "helm"):
        for value in options(words, "--set", "--set-string", "--set-json"):
            assert has_value(value.partition("=")[0]), value


@pytest.mark.parametrize("block", BLOCKS)
def test_what_a_kubectl_command_names_exists(block: str) -> None:
    known = {value for name, value in vars(names).items() if name.startswith(("LABEL_", "ANNOTATION_"))}
    for words in calls(block, "kubectl"):
        for condition in re.findall(r"--for=condition=(\w+)", " ".join(words)):
            assert condition in set(Condition)
        for path in re.findall(r"\{\.(spec|status)\.([\w.]+)\}", " ".join(words)):
            assert has_field(SCHEMA[path[0]], path[1]), path
        for label in re.findall(r"([\w.-]+/[\w-]+)=", " ".join(words)):
            assert label in known, label
        if "get" in words[:3]:
            kind = next(word for word in words[words.index("get") + 1 :] if not word.startswith("-"))
            assert kind.partition("/")[0] in KINDS, kind


def targets_of(text: str) -> list[str]:
    """Targets of make in commands and in code of the text."""
    inline = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    code = [*commands(text), *re.findall(r"`([^`]+)`", inline)]
    return [
        word
        for block in code
        for words in re.findall(r"(?:^|\(|&& )make ((?:-s |[a-z-]+ ?|[A-Z]+=\S+ ?)+)", block, re.MULTILINE)
        for word in words.split()
        if word[0].islower()
    ]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_targets_of_make_exist(page: Path) -> None:
    existing = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(targets_of(page.read_text())) <= existing


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_fields_and_values_exist(page: Path) -> None:
    """Code such as `healthCheck.level`, `spec.restartedAt` or `global.imageRegistry`."""
    roots = {*SCHEMA["spec"]["properties"], *SCHEMA["status"]["properties"], *VALUES}
    for path in re.findall(r"`([a-zA-Z]+\.[\w.\[\]]+)`", page.read_text()):
        root, _, rest = path.partition(".")
        if path in OTHER_FIELDS or path.endswith((".md", ".py", ".yaml", ".json", ".txt")):
            continue
        if root in ("spec", "status"):
            assert has_field(SCHEMA[root], rest), path
        elif root in roots:
            places = (SCHEMA["spec"], SCHEMA["status"])
            assert any(has_field(place, path) for place in places) or has_value(path), path


def test_the_checks_find_errors() -> None:
    assert [*calls("make x && kubectl -n a get vep | head -1\n", "kubectl")] == [["-n", "a", "get", "vep"]]
    assert targets_of("```bash\nmake demo CLUSTER=kind # and\n```\n`make -s kubeconfig` make it") == [
        "demo",
        "kubeconfig",
    ]
    assert has_field(SCHEMA["spec"], "worker.env[].valueFrom.secretKeyRef.name")
    assert has_field(SCHEMA["spec"], "worker.podTemplate.spec.nodeSelector")
    assert not has_field(SCHEMA["spec"], "worker.images")
    assert has_value("global.imageRegistry")
    assert not has_value("global.registry")

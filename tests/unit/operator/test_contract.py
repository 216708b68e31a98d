"""The committed CRD is the generated one, and the payloads are exactly those of the guide."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vllmendpoint_api import PRECEDENCE, Level, ModelType, PayloadSource, payload_for

ROOT = Path(__file__).parents[3]
COMMITTED = ["crds/vllmendpoints.yaml", "charts/vllmendpoint-operator/files/crds/vllmendpoints.yaml"]


@pytest.fixture(scope="module")
def generated() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vllmendpoint_api"], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize("path", COMMITTED)
def test_the_committed_crd_is_the_generated_one(generated, path):
    assert (ROOT / path).read_text() == generated, f"{path} is stale: `make generate`"


def test_the_reference_is_generated_and_describes_every_field():
    done = subprocess.run(
        [sys.executable, "-m", "vllmendpoint_api", "reference"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert (ROOT / "docs/reference.md").read_text() == done.stdout, "docs/reference.md: `make generate`"
    assert [
        line for line in done.stdout.splitlines() if line.startswith("| `") and line.endswith("|  |")
    ] == []


def test_the_stored_crd_has_less_than_64_kib(generated):
    stored = json.dumps(yaml.safe_load(generated), separators=(",", ":"))
    assert len(stored) < 64 * 1024


def test_no_text_of_the_crd_has_a_placeholder(generated):
    texts = list(descriptions(yaml.safe_load(generated)))
    assert len(texts) > 100
    assert [text for text in texts if re.search(r"\{[A-Z_]+\}", text)] == []


def descriptions(node):
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            yield node["description"]
        for value in node.values():
            yield from descriptions(value)
    elif isinstance(node, list):
        for value in node:
            yield from descriptions(value)


def properties(node):
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield from node["properties"]
        for value in node.values():
            yield from properties(value)
    elif isinstance(node, list):
        for value in node:
            yield from properties(value)


def test_no_property_reads_as_a_boolean_in_yaml(generated):
    found = set(properties(yaml.safe_load(generated)))
    assert "replicas" in found
    assert not {str(name).lower() for name in found} & {"n", "y", "no", "yes", "on", "off", "true", "false"}


def test_the_fields_of_the_health_check_have_no_defaults(generated):
    schema = yaml.safe_load(generated)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    check = schema["properties"]["spec"]["properties"]["healthCheck"]
    assert not [name for name, field in check["properties"].items() if "default" in field]
    assert schema["properties"]["status"]["default"] == {"observedGeneration": -1}


MINIMAL = {"prompt": "1", "max_tokens": 1, "temperature": 0.0, "stream": False, "_health_check": True}
STANDARD = {
    "prompt": "The sky is",
    "max_tokens": 5,
    "temperature": 0.7,
    "stream": False,
    "_health_check": True,
}
COMPREHENSIVE = {
    "prompt": "Write a haiku about artificial intelligence:",
    "max_tokens": 50,
    "temperature": 0.8,
    "top_p": 0.95,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "stream": False,
    "_health_check": True,
}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 1,
    "temperature": 0.0,
    "stream": False,
    "_health_check": True,
}
EMBEDDING = {"input": "test", "_health_check": True}


def as_chat(payload):
    rest = {key: value for key, value in payload.items() if key != "prompt"}
    return {"messages": [{"role": "user", "content": payload["prompt"]}], **rest}


@pytest.mark.parametrize(
    ("level", "model_type", "payload"),
    [
        (Level.MINIMAL, ModelType.COMPLETION, MINIMAL),
        (Level.MINIMAL, None, MINIMAL),
        (Level.STANDARD, ModelType.COMPLETION, STANDARD),
        (Level.STANDARD, None, STANDARD),
        (Level.COMPREHENSIVE, ModelType.COMPLETION, COMPREHENSIVE),
        (Level.MINIMAL, ModelType.CHAT, CHAT),
        (Level.STANDARD, ModelType.CHAT, as_chat(STANDARD)),
        (Level.COMPREHENSIVE, ModelType.CHAT, as_chat(COMPREHENSIVE)),
        (Level.MINIMAL, ModelType.EMBEDDING, EMBEDDING),
        (Level.COMPREHENSIVE, ModelType.EMBEDDING, EMBEDDING),
    ],
)
def test_payloads_are_those_of_the_guide(level, model_type, payload):
    found = payload_for(level, model_type)
    assert found == payload
    assert [(key, type(value)) for key, value in found.items()] == [(k, type(v)) for k, v in payload.items()]
    found["max_tokens"] = 99
    assert payload_for(level, model_type) == payload, "each call returns a new payload"


def test_the_precedence_is_that_of_the_guide():
    assert [row.source for row in PRECEDENCE] == [
        PayloadSource.SPEC,
        PayloadSource.RUNTIME,
        PayloadSource.ENVIRONMENT,
        PayloadSource.CONFIG_FILE,
        PayloadSource.CUSTOM_DEFAULT,
        PayloadSource.MODEL_DEFAULT,
        PayloadSource.GENERIC_DEFAULT,
    ]


def test_no_other_package_has_a_class_with_the_name_of_a_class_of_the_api():
    def classes(package):
        paths = ROOT.glob(f"{package}/src/**/*.py")
        return {name for path in paths for name in re.findall(r"(?m)^class (\w+)", path.read_text())}

    of_the_api = {name for name in classes("crds") if not name.startswith("_")}
    assert not of_the_api & (classes("operator") | classes("worker"))

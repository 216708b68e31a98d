"""The ConfigMaps of an endpoint: settings, handlers and the engine's config file."""

import json

import pytest

from tests.nested import walk
from vllmendpoint_api import script_digest
from vllmendpoint_operator.observe.snapshot import Observed


def test_the_health_check_changes_only_the_settings(make_endpoint, make_plan, child):
    check = {"level": "Standard", "periodSeconds": 7, "mode": "Observe"}
    planned = make_plan(make_endpoint(healthCheck=check))
    text = child(planned, "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert json.loads(text) == {"healthCheck": check, "hash": planned.settings.hash}
    assert "Standard" not in json.dumps(child(planned, "Deployment", "smollm-workers"))


def test_settings_contain_only_fields_that_the_user_set(make_endpoint, make_plan, child):
    text = child(make_plan(make_endpoint()), "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert json.loads(text)["healthCheck"] == {}, (
        "a default would override the environment and the config file"
    )


def test_settings_are_readable_and_deterministic(make_endpoint, make_plan, child):
    payload = {"prompt": "héé \u2028 \U0001f642", "b": [], "a": {"y": 1.5, "x": 10**18}}
    planned = make_plan(make_endpoint(healthCheck={"payload": payload}))
    text = child(planned, "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"
    assert json.loads(text)["healthCheck"]["payload"] == payload


def test_inline_config_is_an_immutable_config_map_named_by_its_digest(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(engine={"config": {"inline": {"max-model-len": 512}}}))
    volume = walk(
        child(planned, "Deployment", "smollm-workers"),
        "spec.template.spec.volumes.[name=engine-config].configMap.name",
    )
    config = child(planned, "ConfigMap", volume)
    assert config["immutable"]
    assert config["data"] == {"config.yaml": "max-model-len: 512\n"}
    other = make_plan(make_endpoint(engine={"config": {"inline": {"max-model-len": 513}}}))
    assert volume not in [c["metadata"]["name"] for c in other.children]


SCRIPT = "def custom_sagemaker_ping_handler(request):\n    return 1\n"


@pytest.mark.parametrize(
    "script", [{"inline": SCRIPT}, {"configMapKeyRef": {"name": "scripts", "key": "model.py"}}]
)
def test_handlers_are_part_of_the_settings(make_endpoint, make_plan, child, config_maps, noon, script):
    world = Observed(now=noon, config_maps=config_maps(scripts={"model.py": SCRIPT}))
    handlers = {"script": script, "ping": "model:custom_sagemaker_ping_handler"}
    planned = make_plan(make_endpoint(handlers=handlers), world)
    data = child(planned, "ConfigMap", "smollm-settings")["data"]
    assert data["model.py"] == SCRIPT
    assert json.loads(data["settings.json"])["handlers"] == {
        "scriptDigest": script_digest(SCRIPT.encode()),
        "ping": "model:custom_sagemaker_ping_handler",
    }
    other = make_plan(make_endpoint(handlers={"script": {"inline": SCRIPT + "# changed\n"}}), world)
    assert other.settings.hash != planned.settings.hash
    workers = [child(it, "Deployment", "smollm-workers") for it in (planned, other)]
    assert workers[0] == workers[1], "a change of handlers restarts nothing"

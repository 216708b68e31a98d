"""Values that are documented as verbatim reach the process unchanged, although the kubelet expands them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllmendpoint_operator.plan.pods.frontend as frontend_module
import vllmendpoint_operator.plan.pods.workers as workers_module
from vllmendpoint_operator.plan.pods.containers import escape_variable_references

VARIABLES = {"HOME": "/tmp", "POD_IP": "10.0.0.1"}
AWKWARD = ["$$price $(HOME) $$(HOME)", "$", "$$", "$$$(HOME)", "$(", "a$", "$(NOPE)", "${HOME} $HOME", "$()"]


def expanded(text):
    """As the kubelet expands it (k8s.io/kubernetes/third_party/forked/golang/expansion)."""

    def replaced(found):
        if found[0] == "$$":
            return "$"
        return VARIABLES.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)


@pytest.fixture
def main(child):
    def read(planned, name="smollm-workers"):
        (container,) = child(planned, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        return container

    return read


def environment(container):
    return {item["name"]: item["value"] for item in container["env"] if "value" in item}


@pytest.mark.parametrize("text", AWKWARD)
def test_arguments_and_variables_reach_the_process_verbatim(make_endpoint, make_plan, main, text):
    env = [{"name": "A", "value": text}, {"name": "SM_VLLM_CHAT_TEMPLATE", "value": text}]
    spec = {"engine": {"args": ["--chat-template", text, f"--hf-overrides={text}"]}, "worker": {"env": env}}
    container = main(make_plan(make_endpoint(**spec)))
    arguments = [expanded(item) for item in container["args"]]
    assert arguments[-3:] == ["--chat-template", text, f"--hf-overrides={text}"]
    arrived = {name: expanded(value) for name, value in environment(container).items()}
    assert (arrived["A"], arrived["SM_VLLM_CHAT_TEMPLATE"]) == (text, text)


def test_other_fields_reach_the_process_verbatim(make_endpoint, make_plan, main):
    model = {"uri": "file:///m$(HOME)", "artifactsUri": "s3://bucket/$(HOME)/"}
    path = [{"name": "SAGEMAKER_MODEL_PATH", "value": "/d/$(HOME)"}]
    container = main(make_plan(make_endpoint(model=model, worker={"env": path})))
    arguments = [expanded(item) for item in container["args"]]
    assert arguments == ["--served-model-name", "smollm", "--model", "/m$(HOME)"]
    arrived = {name: expanded(value) for name, value in environment(container).items()}
    assert arrived["VLLMENDPOINT_ARTIFACTS_URI"] == "s3://bucket/$(HOME)/"
    assert arrived["SAGEMAKER_MODEL_PATH"] == "/d/$(HOME)"
    # The kubelet does not expand the path of a mount.
    assert "/d/$(HOME)" in [mount["mountPath"] for mount in container["volumeMounts"]]
    container = main(make_plan(make_endpoint(model={"uri": "s3://bucket/$(HOME)"})))
    assert expanded(environment(container)["VLLMENDPOINT_MODEL_URI"]) == "s3://bucket/$(HOME)"
    assert expanded(container["args"][-1]).endswith("/bucket/$(HOME)")


@given(st.text(alphabet="$()HOME_ a", max_size=24))
def test_any_text_is_escaped(text):
    container = escape_variable_references(
        {"args": [text], "command": [text], "env": [{"name": "A", "value": text}]}
    )
    assert expanded(container["args"][0]) == expanded(container["command"][0]) == text
    assert expanded(container["env"][0]["value"]) == text


def test_values_from_sources_are_not_escaped(make_endpoint, make_plan, main):
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    container = main(make_plan(make_endpoint(worker={"env": [{"name": "A", "valueFrom": source}]})))
    assert {"name": "A", "valueFrom": source} in container["env"]


def test_variable_references_in_a_pod_template_are_expanded(make_endpoint, make_plan, main):
    env = [{"name": "ADDRESS", "value": "tcp://$(POD_IP):1"}]
    template = {"podTemplate": {"spec": {"containers": [{"name": "main", "env": env}]}}}
    planned = make_plan(make_endpoint(worker=template, frontend=template))
    for name in ("smollm-workers", "smollm-frontend"):
        assert expanded(environment(main(planned, name))["ADDRESS"]) == "tcp://10.0.0.1:1"


def test_a_pinned_template_keeps_what_an_earlier_version_rendered(
    make_endpoint, make_plan, make_observed, child, monkeypatch
):
    endpoint = make_endpoint(engine={"args": ["--chat-template", "$(HOME)"]})
    with monkeypatch.context() as earlier:
        earlier.setattr(workers_module, "escape_variable_references", lambda container: container)
        earlier.setattr(frontend_module, "escape_variable_references", lambda container: container)
        first = make_plan(endpoint)
    second = make_plan(endpoint, make_observed(first))
    for name in ("smollm-workers", "smollm-frontend"):
        assert child(second, "Deployment", name)["spec"] == child(first, "Deployment", name)["spec"]
    assert second.revision.upgrade_available

"""A model, or its data, in S3; a revision: what the workers get for it, and nothing else; SM_VLLM_* in
worker.env.
"""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError

URI = "s3://my-bucket/my-model/"
HUB = "hf://o/n"


@pytest.fixture
def rendered(make_endpoint, make_plan, child):
    """The pod's spec, and the environment, mounts and volumes by name."""

    def render(**spec):
        planned = make_plan(make_endpoint(**spec))
        pod = child(planned, "Deployment", "smollm-workers")["spec"]["template"]["spec"]
        main = pod["containers"][0]
        env = {item["name"]: item.get("value") for item in main["env"]}
        mounts = {item["name"]: item["mountPath"] for item in main["volumeMounts"]}
        return pod, env, mounts, {item["name"]: item for item in pod["volumes"]}

    return render


def test_the_worker_gets_the_uri_and_a_volume(rendered):
    _, env, mounts, volumes = rendered(model={"uri": HUB, "artifactsUri": URI})
    assert env["VLLMENDPOINT_ARTIFACTS_URI"] == URI
    assert env["SAGEMAKER_MODEL_PATH"] == mounts["artifacts"] == "/opt/ml/model"
    assert volumes["artifacts"] == {"name": "artifacts", "emptyDir": {}}


def test_without_artifacts_uri_there_is_no_volume(rendered):
    _, env, mounts, volumes = rendered(model={"uri": HUB})
    assert not {"VLLMENDPOINT_ARTIFACTS_URI", "SAGEMAKER_MODEL_PATH"} & set(env)
    assert "artifacts" not in mounts
    assert "artifacts" not in volumes


def test_the_users_model_path_is_the_mount_path(rendered):
    where = {"name": "SAGEMAKER_MODEL_PATH", "value": "/data/model"}
    pod, env, mounts, _ = rendered(model={"uri": HUB, "artifactsUri": URI}, worker={"env": [where]})
    assert env["SAGEMAKER_MODEL_PATH"] == mounts["artifacts"] == "/data/model"
    assert [item["name"] for item in pod["containers"][0]["env"]].count("SAGEMAKER_MODEL_PATH") == 1


def test_an_empty_model_path_means_the_default(rendered):
    where = {"name": "SAGEMAKER_MODEL_PATH", "value": ""}
    _, _, mounts, _ = rendered(model={"uri": HUB, "artifactsUri": URI}, worker={"env": [where]})
    assert mounts["artifacts"] == "/opt/ml/model"


@pytest.mark.parametrize(
    "where",
    [{"value": "data/model"}, {"valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
)
def test_a_model_path_that_cannot_be_mounted_is_rejected(rendered, where):
    env = [{"name": "SAGEMAKER_MODEL_PATH", **where}]
    with pytest.raises(PlanError, match="SAGEMAKER_MODEL_PATH must be an absolute path") as raised:
        rendered(model={"uri": HUB, "artifactsUri": URI}, worker={"env": env})
    assert raised.value.reason == Reason.INVALID_SPEC
    rendered(model={"uri": HUB}, worker={"env": env})  # nothing is mounted: the worker's own business


def test_another_artifacts_uri_changes_the_template(make_endpoint, make_plan, make_observed):
    first = make_plan(make_endpoint(model={"uri": HUB, "artifactsUri": URI}))
    observed = make_observed(first)
    assert make_plan(make_endpoint(model={"uri": HUB, "artifactsUri": URI}), observed).revision.name == (
        first.revision.name
    )
    second = make_plan(make_endpoint(model={"uri": HUB, "artifactsUri": f"{URI}v2/"}), observed)
    assert second.revision.name != first.revision.name


def test_workers_may_connect_to_the_object_store(make_endpoint, make_plan):
    planned = make_plan(make_endpoint(model={"uri": HUB, "artifactsUri": URI}))
    policies = [each["spec"] for each in planned.children if each["kind"] == "NetworkPolicy"]
    assert policies
    assert all(policy["policyTypes"] == ["Ingress"] and "egress" not in policy for policy in policies)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SM_VLLM_NAMESPACE", "Dynamo namespace"),
        ("SM_VLLM_CONFIG", "spec.engine.config"),
        ("SM_VLLM_SERVED_MODEL", "it is an abbreviation of --served-model-name"),
        ("SM_VLLM_HEALTH_CHECK_PAYLOAD", "spec.healthCheck.payload"),
    ],
)
def test_arguments_of_the_operator_are_rejected_in_the_environment(rendered, name, message):
    with pytest.raises(PlanError, match=f"worker.env: {name}.*{message}"):
        rendered(worker={"env": [{"name": name, "value": "x"}]})


@pytest.mark.parametrize(
    "name", ["SM_VLLM_MODEL", "SM_VLLM_SERVED_MODEL_NAME", "SM_VLLM_MAX_MODEL_LEN", "SM_X"]
)
def test_other_variables_are_accepted(rendered, name):
    assert rendered(worker={"env": [{"name": name, "value": "x"}]})[1][name] == "x"


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("s3://my-bucket/models/small/", "/var/cache/vllmendpoint/s3/my-bucket/models/small"),
        ("s3://my-bucket", "/var/cache/vllmendpoint/s3/my-bucket"),
    ],
)
def test_the_worker_downloads_a_model_from_s3_into_its_cache(rendered, uri, folder):
    pod, env, mounts, _ = rendered(model={"uri": uri})
    assert pod["containers"][0]["args"][2:] == ["--model", folder]
    assert env["VLLMENDPOINT_MODEL_URI"] == uri
    assert folder.startswith(mounts["cache"])


def test_the_worker_does_not_download_other_models(rendered):
    _, env, _, _ = rendered(model={"uri": HUB})
    assert "VLLMENDPOINT_MODEL_URI" not in env


def test_model_revision_becomes_an_engine_argument(rendered):
    pod, _, _, _ = rendered(model={"uri": HUB, "revision": "v2"}, engine={"args": ["--seed", "1"]})
    args = pod["containers"][0]["args"]
    assert args == ["--served-model-name", "smollm", "--model", "o/n", "--revision", "v2", "--seed", "1"]
    pod, _, _, _ = rendered(model={"uri": HUB})
    assert "--revision" not in pod["containers"][0]["args"]


def test_packages_of_a_script_are_installed_on_a_writable_volume(rendered):
    """The worker installs below XDG_CACHE_HOME, which a restart of the container keeps."""
    pod, env, mounts, volumes = rendered(model={"uri": HUB, "artifactsUri": URI})
    assert env["XDG_CACHE_HOME"].startswith(f"{mounts['tmp']}/")
    assert volumes["tmp"]["emptyDir"] == {}
    (mount,) = (item for item in pod["containers"][0]["volumeMounts"] if item["name"] == "tmp")
    assert not mount.get("readOnly")

"""Every part of a spec in the documentation is valid and has the effect that the text describes."""

from datetime import UTC, datetime

import pytest

from tests import user_docs
from vllmendpoint_operator.observe.snapshot import Observed

SECTIONS = [(text.splitlines()[0], user_docs.parts_of_specs(text)) for text in user_docs.TEXT.split("\n## ")]
BLOCKS = {title: blocks for title, blocks in SECTIONS if blocks}


def test_titles_are_unique():
    assert len(BLOCKS) == sum(bool(blocks) for _, blocks in SECTIONS)


@pytest.fixture
def planned(make_endpoint, config_maps, make_plan):
    observed = Observed(now=datetime.now(UTC), config_maps=config_maps(handlers={"model.py": ""}))

    def of(title, block=0):
        return make_plan(make_endpoint(**BLOCKS[title][block]), observed)

    return of


@pytest.fixture
def pods(planned, child):
    """``pods(title)``: pod specs of workers and frontend."""

    def of(title, block=0):
        plan = planned(title, block)
        found = [child(plan, "Deployment", f"smollm-{part}") for part in ("workers", "frontend")]
        return [deployment["spec"]["template"]["spec"] for deployment in found]

    return of


def environment(pod):
    (main,) = [c for c in pod["containers"] if c["name"] == "main"]
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in main["env"]}


def test_every_spec_can_be_planned(planned):
    assert sum(map(len, BLOCKS.values())) >= 9
    for title, blocks in BLOCKS.items():
        for number in range(len(blocks)):
            assert planned(title, number).children


def test_workers_have_the_token_and_the_mirror_of_the_hub(pods):
    workers, frontend = pods("A gated model, a mirror of the hub")
    found = environment(workers)
    assert found["HF_TOKEN"] == {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    assert found["HF_ENDPOINT"] == "https://hub.example.com"
    assert "HF_TOKEN" not in environment(frontend)


def test_pods_pull_from_the_private_registry_with_its_secret(pods):
    for part, pod in zip(("worker", "frontend"), pods("A private registry"), strict=True):
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["containers"][0]["image"] == f"registry.example.com/vllmendpoint/{part}:1"


def test_workers_use_the_proxy_except_within_the_cluster(pods):
    workers, _ = pods("A proxy")
    found = environment(workers)
    assert found["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    assert ".svc" in found["NO_PROXY"].split(",")


def test_workers_use_the_private_ca(pods):
    workers, _ = pods("A private CA")
    (mount,) = [m for m in workers["containers"][0]["volumeMounts"] if m["name"] == "private-ca"]
    (volume,) = [v for v in workers["volumes"] if v["name"] == "private-ca"]
    assert volume["configMap"] == {"name": "private-ca"}
    for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE"):
        assert environment(workers)[name].startswith(mount["mountPath"] + "/")
    assert len(workers["volumes"]) == 5, "the volumes of the operator are kept"


def test_workers_mount_the_cache_from_an_existing_or_new_claim(pods, planned, child):
    for block, claim in ((0, "models"), (1, "smollm-cache")):
        workers, _ = pods("The cache", block)
        (volume,) = [v for v in workers["volumes"] if v["name"] == "cache"]
        assert volume["persistentVolumeClaim"] == {"claimName": claim}
    assert child(planned("The cache", 1), "PersistentVolumeClaim", "smollm-cache")


def test_only_workers_use_the_service_account_of_the_spec(pods):
    workers, frontend = pods("A ServiceAccount of your own")
    assert (workers["serviceAccountName"], frontend["serviceAccountName"]) == (
        "reads-my-bucket",
        "smollm-frontend",
    )


def test_pod_templates_are_applied_to_their_pods(pods):
    workers, frontend = pods("podTemplate")
    assert workers["nodeSelector"] == {"gpu": "h100"}
    assert workers["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert frontend["priorityClassName"] == "serving"

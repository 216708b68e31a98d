"""A podTemplate can remove fields with every client, also if it is applied repeatedly."""

import json

import pytest

DELETING = {
    # Removes all fields of the operator except the named ones.
    "retain": {"$retainKeys": ["runAsNonRoot", "seccompProfile"]},
    "replace": {"$patch": "replace", "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
}
KEPT = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CLIENTS = (
    ("apply",),
    ("apply", "--server-side", "--force-conflicts"),
    ("replace", "--force=false"),
)


def manifest(name, security):
    main = {"name": "main", "env": [{"name": "HF_HOME", "$patch": "delete"}]}
    volumes = [{"name": "shm", "$patch": "delete"}]
    mounts = [{"mountPath": "/dev/shm", "$patch": "delete"}]
    template = {
        "spec": {
            "securityContext": security,
            "containers": [{**main, "volumeMounts": mounts}],
            "volumes": volumes,
        }
    }
    return json.dumps(
        {
            "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
            "kind": "VLLMEndpoint",
            "metadata": {"name": name, "namespace": "shared"},
            "spec": {"model": {"uri": "file:///m"}, "worker": {"podTemplate": template}},
        }
    )


@pytest.mark.parametrize("security", DELETING.values(), ids=DELETING)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda words: "-".join(words[:2]).strip("-"))
def test_patch_directives_work_with_every_client(shared, make_endpoint, api, until, client, security):
    endpoint = make_endpoint()
    text = manifest(endpoint.name, security)
    api.kubectl(*(("create",) if client[0] == "replace" else client), "-f", "-", text=text)
    deployment = until(lambda: endpoint.child("Deployment", "-workers"), "the workers' Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    assert pod["securityContext"] == KEPT
    assert "shm" not in [volume["name"] for volume in pod["volumes"]]
    assert "HF_HOME" not in [item["name"] for item in main["env"]]
    for again in (client, client):
        api.kubectl(*again, "-f", "-", text=text)
    assert endpoint.get()["metadata"]["generation"] == 1
    endpoint.patch(spec={"replicas": 2})
    until(lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, "2 replicas")
    assert endpoint.child("Deployment", "-workers")["spec"]["template"] == deployment["spec"]["template"]


def test_a_null_that_kubectl_apply_drops_is_reported_in_an_event(shared, make_endpoint, api, until):
    endpoint = make_endpoint()
    text = manifest(endpoint.name, {"runAsUser": None})
    api.kubectl("apply", "-f", "-", text=text)
    endpoint.until_event("PodTemplateNull")
    (event,) = endpoint.events("PodTemplateNull")
    assert "so spec.securityContext.runAsUser has no effect. Use $patch" in event["message"]
    pod = endpoint.child("Deployment", "-workers")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 1000
    server_side = make_endpoint()
    api.kubectl("apply", "--server-side", "-f", "-", text=manifest(server_side.name, {"runAsUser": None}))
    deployment = until(lambda: server_side.child("Deployment", "-workers"), "the workers' Deployment")
    assert "runAsUser" not in deployment["spec"]["template"]["spec"]["securityContext"]
    assert server_side.events("PodTemplateNull") == []

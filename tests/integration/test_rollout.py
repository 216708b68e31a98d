"""Upgrades of the operator, and the annotation by which a user takes them up; rollouts, and drains.

The Deployments, their ReplicaSets and the budgets are run by the real controllers.
"""


def images(endpoint):
    template = endpoint.child("Deployment", "-workers")["spec"]["template"]
    return template["spec"]["containers"][0]["image"]


def test_an_upgrade_changes_no_pod_until_it_is_asked_for(operate, space, api, namespace, until):
    first = operate(namespace).leads()
    endpoint = space(namespace).create()
    endpoint.serve()
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    first.stop()
    operate(namespace, worker_image="registry.example/worker:2").leads()
    until(lambda: endpoint.get()["status"]["revision"]["upgradeAvailable"], "the upgrade is told")
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert endpoint.get()["status"]["revision"]["image"] == "registry.example/worker:1"
    endpoint.patch(metadata={"annotations": {"serving.vllmendpoint.dev/rollout": "1"}})
    until(lambda: images(endpoint) == "registry.example/worker:2", lambda: images(endpoint))
    rolling = endpoint.until("UpToDate", "False", "RollingOut")
    assert rolling["message"]
    until(lambda: not endpoint.get()["status"]["revision"]["upgradeAvailable"], "nothing newer")
    assert len(api.all("ControllerRevision", namespace)) == 2


def test_a_rollout_asked_for_restarts_even_where_nothing_changed(shared, space, api, until):
    endpoint = space().create()
    endpoint.serve()
    endpoint.until("Ready", "True")
    old = endpoint.pods()[0]["metadata"]["uid"]
    revision = endpoint.get()["status"]["revision"]["name"]
    endpoint.patch(metadata={"annotations": {"serving.vllmendpoint.dev/rollout": "now"}})
    until(lambda: endpoint.get()["status"]["revision"]["name"] != revision, "a revision of its own")
    until(lambda: [p for p in endpoint.pods() if p["metadata"]["uid"] != old], "new pods")
    endpoint.until("Ready", "False")
    endpoint.serve()
    endpoint.until("Ready", "True")


def evict(api, pod):
    """True where it is granted; False where the budget refuses."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    try:
        api.call("POST", f"{api.path('Pod', 'shared', name)}/eviction", body)
    except LookupError as refused:
        if ": 429: " not in str(refused):
            raise
        return False
    return True


def test_a_drain_takes_one_replica_at_a_time_and_always_what_does_not_serve(shared, space, api, until):
    endpoint = space().create(replicas=2)
    endpoint.serve(2)
    endpoint.until("Ready", "True")

    def allowed():
        return ((endpoint.child("PodDisruptionBudget", "-workers") or {}).get("status") or {}).get(
            "disruptionsAllowed"
        )

    until(lambda: allowed() == 1, allowed)
    first, second = endpoint.pods()
    endpoint.play(first, ready=False)
    until(lambda: allowed() == 0, allowed)
    assert not evict(api, second), "the last that serves stays"
    assert evict(api, first), "one that does not serve protects nobody"
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=1")
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers") is None, "no budget for one")

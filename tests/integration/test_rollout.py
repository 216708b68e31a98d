"""Upgrades of the operator, and the annotation by which a user takes them up."""


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

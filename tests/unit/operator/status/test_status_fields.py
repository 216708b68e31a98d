"""Every field of the status can be told."""

from vllmendpoint_api import custom_resource_definition

HANDLERS = {
    "scriptDigest": "d",
    "ping": {"source": "Spec", "handler": "model:p"},
    "invocations": {"source": "Spec", "handler": "model:i"},
}


def leaves(node, path=()):
    properties = node.get("properties") or node.get("items", {}).get("properties")
    if not properties:
        return {".".join(path)}
    return {leaf for name, value in properties.items() for leaf in leaves(value, (*path, name))}


def told(value, path=()):
    """Paths under which something stands, lists by their items."""
    if isinstance(value, dict) and path != ("healthCheck", "payload"):
        return {leaf for name, inner in value.items() for leaf in told(inner, (*path, name))}
    if isinstance(value, list | tuple):
        return {leaf for item in value for leaf in told(item, path)}
    return set() if value in ("", None, 0) and value is not False else {".".join(path)}


def test_none_is_left_out(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint(replicas=40)
    said = {
        "healthCheck__ignored": [{"source": "Environment", "reason": "outranked"}],
        "handlers": HANDLERS,
        "verdict__reason": "UnexpectedAnswer",
        "verdict__message": "no match",
    }
    bad = make_worker("bad", "Failing", settings=endpoint, said=said, container={"restartCount": 1})
    good = [
        make_worker(f"w-{number:02}", settings=endpoint, said=said | {"verdict__reason": ""})
        for number in range(39)
    ]
    status = make_status(endpoint, bad, *good).wire() | {"operator": "written by the reconciler"}
    (version,) = custom_resource_definition()["spec"]["versions"]
    wanted = leaves(version["schema"]["openAPIV3Schema"]["properties"]["status"])
    assert wanted - told(status) == set()
    assert told(status) <= wanted


def test_what_is_in_force_goes_with_the_last_worker(make_endpoint, make_status, make_worker):
    before = make_status(make_endpoint(), make_worker("w"))
    assert before.health_check is not None
    assert before.handlers is not None
    after = make_status(make_endpoint(replicas=0, before=before))
    assert after.health_check is after.handlers is None


def test_the_image_of_a_revision_is_the_one_that_runs(make_endpoint, make_status):
    assert make_status(make_endpoint()).revision.image == "registry.example/worker:1"
    changed = {"spec": {"containers": [{"name": "main", "image": "other:1"}]}}
    assert make_status(make_endpoint(worker={"podTemplate": changed})).revision.image == "other:1"

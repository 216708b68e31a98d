"""The order of a rollout with prefill workers: a pair of one revision serves at all times."""

from dataclasses import replace

import pytest

from vllmendpoint_api import names
from vllmendpoint_operator.components import WAITING_SECONDS
from vllmendpoint_operator.status import endpoint_status

WORKERS, PREFILL = ("Deployment", "smollm-workers"), ("Deployment", "smollm-prefill")
ONE = {
    "replicas": 1,
    "prefill": {"replicas": 1},
    "rolling": {"maxUnavailable": 0, "maxSurge": 1},
}


def label(template):
    return template["metadata"]["labels"][names.LABEL_REVISION]


@pytest.fixture
def observe(make_endpoint, make_plan, make_observed, make_worker, make_prefill, child):
    """An endpoint of which every template has changed, and a state of its rollout.

    ``decode``, ``prefill``: one letter per pod. o: of the older revision; n: of the new one and ready;
    s: of the new one and starting; x: of the older one and not ready; t: of the older one and terminating.
    Without n and s, the Deployment has the older template.
    """

    def of(decode, prefill, /, rolling=None, **changed):
        strategy = {} if rolling is None else {"strategy": {"rollingUpdate": rolling}}
        spec = {"replicas": 2, "prefill": {"replicas": 2}, **strategy, **changed}
        older = make_plan(make_endpoint(**spec))
        endpoint = make_endpoint(**spec, engine={"args": ["--seed", "1"]})
        children = dict(make_observed(older).children)
        newer = make_plan(endpoint, make_observed(older))
        data = child(newer, "ControllerRevision", newer.revision.name)["data"]
        pods = []
        for key, make, letters, component in (
            (WORKERS, make_worker, decode, "worker"),
            (PREFILL, make_prefill, prefill, "prefill"),
        ):
            templates = {"o": children[key]["spec"]["template"], "n": data[component]}
            for index, letter in enumerate(letters):
                revision = label(templates["n" if letter in "ns" else "o"])
                stamp = {"labels": {names.LABEL_REVISION: revision}}
                pod = make(f"{component}-{index}", ready=letter in "not", settings=endpoint, **stamp)
                if letter == "t":
                    pod.obj["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
                pods.append(pod)
            if "n" in letters or "s" in letters:
                updated = sum(letter in "ns" for letter in letters)
                status = {
                    "observedGeneration": 1,
                    "replicas": sum(letter != "t" for letter in letters),
                    "updatedReplicas": updated,
                    "availableReplicas": letters.count("o"),
                }
                desired = {**children[key]["spec"], "template": templates["n"]}
                children[key] = {**children[key], "spec": desired, "status": status}
        return endpoint, make_observed(newer, children=children, pods=pods), data

    return of


@pytest.fixture
def step(observe, make_plan, child):
    """Whether the workers, and whether the prefill workers, get the new template, and whether these wait."""

    def of(decode, prefill, /, **changed):
        endpoint, observed, data = observe(decode, prefill, **changed)
        planned = make_plan(endpoint, observed)
        workers, prefill_workers = (child(planned, *key)["spec"] for key in (WORKERS, PREFILL))
        waits = prefill_workers["minReadySeconds"] == WAITING_SECONDS
        assert waits is (prefill_workers["progressDeadlineSeconds"] == 2**31 - 1)
        assert label(prefill_workers["template"]) == label(data["prefill"]), "these begin"
        return label(workers["template"]) == label(data["worker"]), waits

    return of


@pytest.mark.parametrize(
    ("decode", "prefill", "more", "expected"),
    [
        # The first prefill worker: the workers keep their template.
        ("oo", "oo", {}, (False, True)),
        ("oo", "ot", {}, (False, True)),
        ("oo", "os", {}, (False, True)),
        # It is ready: the workers follow, one after the other.
        ("oo", "on", {}, (True, True)),
        ("os", "on", {}, (True, True)),
        ("on", "on", {}, (True, True)),
        ("nn", "on", {}, (True, False)),
        ("nn", "nn", {}, (True, False)),
        ("nn", "sn", {}, (True, False)),
        # No older prefill worker is left that could wait.
        ("on", "nn", {}, (True, False)),
        ("on", "nt", {}, (True, False)),
        # One replica of each, with a surge: the older pair stays until the new one is complete.
        ("o", "o", ONE, (False, True)),
        ("o", "os", ONE, (False, True)),
        ("o", "on", ONE, (True, True)),
        ("os", "on", ONE, (True, True)),
        ("on", "on", ONE, (True, True)),
        ("n", "on", ONE, (True, False)),
        # Of many prefill workers, all but the last are replaced meanwhile.
        ("oos", "ooon", {"replicas": 3, "prefill": {"replicas": 4}}, (True, True)),
        ("oon", "ooon", {"replicas": 3, "prefill": {"replicas": 4}}, (True, False)),
        ("oon", "onnn", {"replicas": 3, "prefill": {"replicas": 4}}, (True, True)),
        # Both may be removed at a time.
        ("oon", "oonn", {"prefill": {"replicas": 4}, "rolling": {"maxUnavailable": "50%"}}, (True, True)),
        (
            "oon",
            "oonnn",
            {"prefill": {"replicas": 4}, "rolling": {"maxUnavailable": 1, "maxSurge": 1}},
            (True, True),
        ),
        # Nothing serves, so that nothing waits for anything but the order of the prefill workers.
        ("xx", "oo", {}, (True, True)),
        ("", "", {"replicas": 0}, (True, False)),
    ],
)
def test_a_pair_of_one_revision_remains(step, decode, prefill, more, expected):
    assert step(decode, prefill, **more) == expected


def test_nothing_waits_without_a_rollout(make_endpoint, make_plan, make_observed, make_worker, make_prefill):
    endpoint = make_endpoint(prefill={})
    planned = make_plan(endpoint)
    revision = label(planned.children[-2]["spec"]["template"])
    labels = {names.LABEL_REVISION: revision}
    pods = [make_worker(labels=labels, ready=False), make_prefill(labels=labels)]
    again = make_plan(endpoint, make_observed(planned, pods=pods))
    assert again.children == planned.children


def test_added_prefill_workers_start_before_the_workers_stop_to_prefill(
    make_endpoint, make_plan, make_observed, make_worker, make_prefill, child
):
    before = make_observed(make_plan(make_endpoint()), pods=[make_worker()])
    endpoint = make_endpoint(prefill={})
    first = make_plan(endpoint, before)
    assert child(first, *WORKERS)["spec"]["template"] == before.children[WORKERS]["spec"]["template"]
    prefill = child(first, *PREFILL)["spec"]
    assert prefill["minReadySeconds"] < WAITING_SECONDS
    assert [each["metadata"]["name"] for each in first.verify] == ["smollm-workers"], "before the first write"
    started = make_prefill(labels={names.LABEL_REVISION: label(prefill["template"])})
    second = make_plan(endpoint, make_observed(first, pods=[make_worker(), started]))
    assert "decode" in child(second, *WORKERS)["spec"]["template"]["spec"]["containers"][0]["args"]


def test_workers_that_keep_their_template_are_scaled(observe, make_plan, child):
    endpoint, observed, _ = observe("oo", "os")
    endpoint = replace(endpoint, spec=endpoint.spec.model_copy(update={"replicas": 5}))
    assert child(make_plan(endpoint, observed), *WORKERS)["spec"]["replicas"] == 5


WAITS = (
    "1 of 2 prefill replicas runs the current revision, and 1 prefill replica of an older revision remains. "
    "Its rollout continues with that of the replicas."
)
MESSAGES = {
    ("oo", "os"): (
        "0 of 2 replicas run the current revision, and 2 replicas of an older revision remain. The rollout "
        f"continues once a prefill replica of it is ready. {WAITS}"
    ),
    ("on", "on"): (
        "1 of 2 replicas runs the current revision, and 1 replica of an older revision remains. " + WAITS
    ),
}


@pytest.mark.parametrize(("decode", "prefill"), MESSAGES)
def test_the_status_reports_who_waits_for_whom(observe, make_plan, finding_of, decode, prefill):
    endpoint, observed, _ = observe(decode, prefill)
    planned = make_plan(endpoint, observed)
    children = dict(observed.children)
    for child in planned.children:
        key = (child["kind"], child["metadata"]["name"])
        if key == PREFILL:
            children[key] = {**children[key], "spec": child["spec"]}
    observed = replace(observed, children=children)
    found = endpoint_status(endpoint, observed, planned, None)
    assert finding_of(found, "UpToDate") == ("False", "RollingOut", MESSAGES[decode, prefill])
    assert found.updated_replicas == decode.count("n")
    assert finding_of(found, "Available")[0] == "True"


@pytest.fixture
def finding_of(condition):
    def find(status, kind):
        entry = condition(status, kind)
        return entry.status, entry.reason, entry.message

    return find

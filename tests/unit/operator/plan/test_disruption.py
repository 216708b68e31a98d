"""The PodDisruptionBudget: no drain evicts the last replica, and no drain is blocked forever."""

import pytest


def budget(planned):
    found = [child for child in planned.children if child["kind"] == "PodDisruptionBudget"]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("replicas", [0, 1])
def test_fewer_than_two_replicas_have_no_budget(make_endpoint, make_plan, replicas):
    assert budget(make_plan(make_endpoint(replicas=replicas))) is None


@pytest.mark.parametrize(
    ("replicas", "max_unavailable", "allowed"),
    [(2, 1, 1), (5, 2, 2), (4, "50%", 2), (5, "50%", 2), (3, "10%", 1), (3, 0, 1), (3, "100%", 2), (2, 7, 1)],
)
def test_max_unavailable_follows_the_strategy_and_is_at_least_one(
    make_endpoint, make_plan, replicas, max_unavailable, allowed
):
    rolling = {"maxUnavailable": max_unavailable, "maxSurge": 1}
    endpoint = make_endpoint(replicas=replicas, strategy={"rollingUpdate": rolling})
    found = budget(make_plan(endpoint))
    assert found["metadata"]["name"] == "smollm-workers"
    assert found["metadata"]["ownerReferences"][0]["controller"]
    assert found["spec"] == {
        "maxUnavailable": allowed,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": endpoint.selector("worker")},
    }


def test_the_budget_is_pruned_at_one_replica(make_endpoint, make_plan, make_observed):
    observed = make_observed(make_plan(make_endpoint(replicas=3)))
    one = make_plan(make_endpoint(replicas=1), observed)
    assert budget(one) is None
    assert [obj["kind"] for obj in one.prune] == ["PodDisruptionBudget"]
    assert make_plan(make_endpoint(replicas=3), observed).prune == ()

"""The claim for the cache is created, grows, and is kept while a pod may mount it."""

import pytest


@pytest.mark.parametrize(
    ("template", "spec"),
    [
        (
            {"size": "9Gi"},
            {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "9Gi"}}},
        ),
        (
            {"size": 1000, "storageClassName": "fast", "accessModes": ["ReadWriteMany"]},
            {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1000"}},
                "storageClassName": "fast",
            },
        ),
        (
            {"size": "9Gi", "storageClassName": ""},
            {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "9Gi"}},
                "storageClassName": "",
            },
        ),
    ],
    ids=["defaults", "all set", "no class at all"],
)
def test_a_claim_is_created_for_the_cache(make_endpoint, make_plan, child, template, spec):
    planned = make_plan(make_endpoint(cache={"volumeClaimTemplate": template}))
    assert child(planned, "PersistentVolumeClaim", "smollm-cache")["spec"] == spec


def test_a_larger_claim_restarts_nothing(make_endpoint, make_plan, make_observed):
    def sized(size):
        return make_endpoint(cache={"volumeClaimTemplate": {"size": size}})

    first = make_plan(sized("9Gi"))
    assert make_plan(sized("10Gi"), make_observed(first)).revision.name == first.revision.name
    assert make_plan(make_endpoint(), make_observed(first)).revision.name != first.revision.name


def test_a_claim_is_pruned_only_when_no_pod_can_mount_it(make_endpoint, make_plan, make_observed):
    first = make_plan(make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}}))
    mounted = make_plan(make_endpoint(), make_observed(first, claims_in_use=frozenset({"smollm-cache"})))
    assert not mounted.prune
    free = make_plan(make_endpoint(), make_observed(first))
    assert [(o["kind"], o["metadata"]["name"]) for o in free.prune] == [
        ("PersistentVolumeClaim", "smollm-cache")
    ]


@pytest.mark.parametrize(
    "spec",
    [
        {"cache": {"persistentVolumeClaim": {"claimName": "smollm-cache"}}},
        {"model": {"uri": "pvc://smollm-cache/toy"}},
    ],
    ids=["as the cache", "as the model"],
)
def test_a_claim_that_the_spec_refers_to_is_kept(make_endpoint, make_plan, make_observed, spec):
    """No pod mounts the claim, for instance because of ``replicas: 0``."""
    first = make_plan(make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}}))
    assert not make_plan(make_endpoint(replicas=0, **spec), make_observed(first)).prune

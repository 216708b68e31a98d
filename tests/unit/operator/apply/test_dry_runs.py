"""Deployments are verified by a dry run before the first write, and warnings are collected once."""

from dataclasses import replace

import pytest

from tests.unit.operator.applying import apply_plan
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import Rejected, TerminalError


def templated(make_endpoint, zone, **frontend):
    spec = {"spec": {"nodeSelector": {"zone": zone}}}
    return make_endpoint(worker={"podTemplate": spec}, frontend=frontend)


def observed_of(kube, make_observed, planned):
    children = {key: {"kind": key[0], **obj} for key, obj in kube.objects.items()}
    return replace(make_observed(planned), children=children)


async def test_a_pod_template_is_verified_before_the_first_write(
    kube, cache, make_observed, make_endpoint, make_plan
):
    endpoint = templated(make_endpoint, "a")
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes[0] == ("verify", "Deployment", "smollm-workers")
    assert [verb for verb, _, _ in kube.writes].count("verify") == 1, "the frontend has no podTemplate"
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint, observed_of(kube, make_observed, planned)))
    assert kube.writes == [], "an unchanged template is not verified again"

    other = templated(make_endpoint, "b")
    changed = make_plan(other, observed_of(kube, make_observed, planned))
    kube.rejections["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(
        TerminalError, match=r"rejected the Deployment smollm-workers: spec\.template\.spec: no"
    ) as error:
        await apply_plan(kube, cache, other, changed)
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert kube.writes == [("verify", "Deployment", "smollm-workers")], (
        "nothing is written, nothing is pinned"
    )


async def test_all_rejected_pod_templates_are_reported(kube, cache, make_endpoint, make_plan):
    endpoint = templated(make_endpoint, "a", podTemplate={"spec": {"nodeSelector": {"zone": "b"}}})
    kube.rejections["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert error.value.message == (
        "The API server rejected the Deployment smollm-workers: spec.template.spec: no. "
        "The API server rejected the Deployment smollm-frontend: spec.template.spec: no."
    )
    assert [verb for verb, _, _ in kube.writes] == ["verify", "verify"], "nothing is written"


async def test_warnings_of_the_api_server_are_collected_once(
    kube, cache, make_observed, make_endpoint, make_plan
):
    """The API server repeats the warnings of a dry run on creation, and those of a template on scaling."""
    kube.warnings = {("Deployment", "smollm-workers"): ["negative", "odd"], ("Service", "smollm"): ["odd"]}
    endpoint = templated(make_endpoint, "a")
    planned = make_plan(endpoint)
    done = await apply_plan(kube, cache, endpoint, planned)
    assert done.warnings == [
        "Deployment smollm-workers: negative",
        "Deployment smollm-workers: odd",
        "Service smollm: odd",
    ]
    scaled = make_endpoint(**endpoint.spec.wire() | {"replicas": 2})
    done = await apply_plan(kube, cache, scaled, make_plan(scaled, observed_of(kube, make_observed, planned)))
    assert done.writes
    assert done.warnings == []
    other = templated(make_endpoint, "b")
    done = await apply_plan(kube, cache, other, make_plan(other, observed_of(kube, make_observed, planned)))
    assert done.warnings == ["Deployment smollm-workers: negative", "Deployment smollm-workers: odd"]


@pytest.mark.parametrize(
    ("before", "after", "verified"),
    [
        ({}, {}, []),
        ({}, {"replicas": 3}, []),
        ({}, {"healthCheck": {"level": "Standard"}}, []),
        ({}, {"engine": {"args": ["--seed", "1"]}}, ["smollm-workers"]),
        ({}, {"worker": {"image": "x:2"}}, ["smollm-workers"]),
        ({}, {"frontend": {"image": "x:2"}}, ["smollm-frontend"]),
        ({}, {"worker": {"imagePullSecrets": [{"name": "s"}]}}, ["smollm-workers", "smollm-frontend"]),
        ({}, {"frontend": {"resources": {"limits": {"cpu": 1}}}}, ["smollm-frontend"]),
        ({"frontend": {"mode": "None"}}, {}, ["smollm-workers"]),
        (
            {"frontend": {"mode": "None"}},
            {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}},
            ["smollm-workers", "smollm-frontend"],
        ),
        (None, {}, []),
        (None, {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}}, ["smollm-frontend"]),
    ],
)
def test_which_deployments_are_verified(make_endpoint, make_plan, make_observed, before, after, verified):
    observed = None if before is None else make_observed(make_plan(make_endpoint(**before)))
    planned = make_plan(make_endpoint(**after), observed)
    assert [child["metadata"]["name"] for child in planned.verify] == verified

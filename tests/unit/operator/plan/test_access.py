"""ServiceAccounts and RoleBindings of the pods."""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError


def test_role_binding_names_the_static_role(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(), role_kind="Role", role_name="r")
    for name in ("smollm-workers", "smollm-frontend"):
        binding = child(planned, "RoleBinding", name)
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", "r")
        assert [s["name"] for s in binding["subjects"]] == [name]


def subjects(binding):
    return [subject["name"] for subject in binding["subjects"]]


def test_a_service_account_of_the_user_is_bound_and_none_is_created(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(worker={"serviceAccountName": "mine"}))
    accounts = [c["metadata"]["name"] for c in planned.children if c["kind"] == "ServiceAccount"]
    assert accounts == ["smollm-frontend"]
    assert subjects(child(planned, "RoleBinding", "smollm-workers")) == ["mine"]
    assert subjects(child(planned, "RoleBinding", "smollm-frontend")) == ["smollm-frontend"]
    pods = {
        name: child(planned, "Deployment", f"smollm-{name}")["spec"]["template"]["spec"]["serviceAccountName"]
        for name in ("workers", "frontend")
    }
    assert pods == {"workers": "mine", "frontend": "smollm-frontend"}


def test_older_workers_keep_their_account_until_they_are_gone(make_endpoint, make_plan, make_observed, child):
    before = make_plan(make_endpoint())
    named = make_endpoint(worker={"serviceAccountName": "mine"})
    rolling = make_plan(named, make_observed(before, accounts_in_use=frozenset({"smollm-workers", "mine"})))
    assert subjects(child(rolling, "RoleBinding", "smollm-workers")) == ["mine", "smollm-workers"]
    assert not rolling.prune
    done = make_plan(named, make_observed(before, accounts_in_use=frozenset({"mine"})))
    assert subjects(child(done, "RoleBinding", "smollm-workers")) == ["mine"]
    assert [(o["kind"], o["metadata"]["name"]) for o in done.prune] == [("ServiceAccount", "smollm-workers")]
    back = make_plan(make_endpoint(), make_observed(done, accounts_in_use=frozenset({"mine"})))
    assert subjects(child(back, "RoleBinding", "smollm-workers")) == ["smollm-workers", "mine"]


@pytest.mark.parametrize(
    ("where", "message"),
    [("worker", "Use worker.serviceAccountName instead."), ("frontend", "Remove it.")],
)
def test_a_service_account_in_a_pod_template_is_rejected(make_endpoint, make_plan, where, message):
    template = {"spec": {"serviceAccountName": "mine"}}
    with pytest.raises(
        PlanError, match=f"{where}.podTemplate: The operator sets spec.serviceAccountName"
    ) as error:
        make_plan(make_endpoint(**{where: {"podTemplate": template}}))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert message in error.value.message

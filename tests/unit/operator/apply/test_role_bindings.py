"""A RoleBinding is recreated when its role changes, because a roleRef is immutable."""

import pytest

from tests.unit.operator.applying import apply_plan
from vllmendpoint_operator.errors import Rejected, TerminalError


async def test_a_binding_to_another_role_is_recreated(kube, cache, make_endpoint, make_plan):
    """A roleRef is immutable. Nothing is deleted before the endpoint is known to exist."""
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    old = kube.objects["RoleBinding", "smollm-workers"]
    kube.writes.clear()
    renamed = make_plan(endpoint, role_name="another")
    kube.endpoint = None
    assert (await apply_plan(kube, cache, endpoint, renamed)).writes == 0
    assert kube.writes == []
    kube.endpoint = {"metadata": {"uid": "uid-1"}}
    assert (await apply_plan(kube, cache, endpoint, renamed)).writes == 4
    assert kube.writes == [
        (verb, "RoleBinding", name)
        for part in ("workers", "frontend")
        for verb, name in (
            ("verify", f"smollm-{part}-next"),
            ("delete", f"smollm-{part}"),
            ("apply", f"smollm-{part}"),
        )
    ]
    new = kube.objects["RoleBinding", "smollm-workers"]
    assert new["roleRef"]["name"] == "another"
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, renamed)
    assert kube.writes == []


async def test_a_binding_is_kept_if_the_other_role_may_not_be_bound(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    kube.writes.clear()
    kube.rejections["RoleBinding"] = Rejected(403, "may not bind")
    with pytest.raises(TerminalError, match="may not bind"):
        await apply_plan(kube, cache, endpoint, make_plan(endpoint, role_name="another"))
    assert kube.writes == [("verify", "RoleBinding", "smollm-workers-next")]


async def test_a_binding_with_other_subjects_is_updated(kube, cache, put, make_endpoint, make_plan):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    put({**kube.objects["RoleBinding", "smollm-workers"], "kind": "RoleBinding", "subjects": []})
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes == [("apply", "RoleBinding", "smollm-workers")]

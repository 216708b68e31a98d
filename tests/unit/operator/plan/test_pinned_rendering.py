"""Invariants 3 and 4: what changes the pod templates, and what never does."""

import json
from dataclasses import replace

import pytest

import vllmendpoint_operator.plan.revision as revision_module


@pytest.fixture
def templates(child):
    def read(planned):
        return [c["spec"]["template"] for c in planned.children if c["kind"] == "Deployment"]

    return read


def test_another_default_image_changes_no_template(make_endpoint, make_plan, make_observed, templates):
    first = make_plan(make_endpoint())
    assert not first.revision.upgrade_available
    second = make_plan(make_endpoint(), make_observed(first), worker_image="registry.example/worker:2")
    assert templates(second) == templates(first)
    assert second.revision.name == first.revision.name
    assert second.revision.image == "registry.example/worker:1"
    assert second.revision.upgrade_available


def test_another_default_image_of_frontends_rolls_them_with_the_next_change(
    make_endpoint, make_plan, make_observed, templates
):
    """Before ``frontend.image`` the frontends ran the worker's image."""
    earlier = make_plan(make_endpoint(), frontend_image="registry.example/worker:1")
    upgraded = make_plan(make_endpoint(), make_observed(earlier))
    assert templates(upgraded) == templates(earlier)
    assert upgraded.revision.upgrade_available
    rolled = make_plan(make_endpoint(rollout="1"), make_observed(upgraded))
    images = [template["spec"]["containers"][0]["image"] for template in templates(rolled)]
    assert images == ["registry.example/worker:1", "registry.example/frontend:1"]
    again = make_plan(make_endpoint(rollout="1"), make_observed(rolled))
    assert templates(again) == templates(rolled)


def test_a_changed_renderer_changes_no_template(
    make_endpoint, make_plan, make_observed, templates, monkeypatch
):
    first = make_plan(make_endpoint())
    old = revision_module.worker_template

    def newer(*args):
        rendered = old(*args)
        rendered["spec"]["terminationGracePeriodSeconds"] = 1
        return rendered

    monkeypatch.setattr(revision_module, "worker_template", newer)
    second = make_plan(make_endpoint(), make_observed(first))
    assert templates(second) == templates(first)
    assert second.revision.upgrade_available


def test_the_rollout_annotation_changes_the_template_and_restarts(
    make_endpoint, make_plan, make_observed, templates
):
    first = make_plan(make_endpoint())
    second = make_plan(
        make_endpoint(rollout="1"), make_observed(first), worker_image="registry.example/worker:2"
    )
    assert second.revision.image == "registry.example/worker:2"
    assert not second.revision.upgrade_available
    assert second.revision.name != first.revision.name
    third = make_plan(
        make_endpoint(rollout="2"), make_observed(second), worker_image="registry.example/worker:2"
    )
    assert templates(third)[0] != templates(second)[0], (
        "a requested restart restarts, although nothing else changed"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 5},
        {"healthCheck": {"level": "Comprehensive"}},
        {"handlers": {"ping": "model:f", "script": {"inline": "x = 1"}}},
        {"strategy": {"rollingUpdate": {"maxSurge": 1}}},
        {"frontend": {"replicas": 4}},
        {"paused": True},
    ],
)
def test_hot_changes_change_no_template(make_endpoint, make_plan, make_observed, templates, change):
    first = make_plan(make_endpoint())
    second = make_plan(
        make_endpoint(**change), make_observed(first), worker_image="registry.example/worker:2"
    )
    assert templates(second) == templates(first)
    assert second.revision.name == first.revision.name


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"uri": "hf://o/other"}},
        {"engine": {"args": ["--seed", "1"]}},
        {"engine": {"config": {"inline": {"seed": 1}}}},
        {"worker": {"image": "x:9"}},
        {"frontend": {"image": "x:9"}},
        {"worker": {"startupTimeoutSeconds": 60}},
        {"cache": {"emptyDir": {"sizeLimit": "1Gi"}}},
        {"frontend": {"resources": {"limits": {"cpu": 1}}}},
    ],
)
def test_cold_changes_change_the_template(make_endpoint, make_plan, make_observed, templates, change):
    first = make_plan(make_endpoint())
    second = make_plan(make_endpoint(**change), make_observed(first))
    assert templates(second) != templates(first)
    assert second.revision.name != first.revision.name


def test_the_digest_of_the_inputs_is_the_same_in_every_version(make_endpoint):
    """These literals must never change: an upgrade would restart every endpoint of that kind.

    A field that a later version adds must not show in them while it has its default.
    """
    plain = make_endpoint()
    rich = make_endpoint(
        model={"uri": "pvc://c/p", "name": "n", "type": "Chat"},
        engine={"args": ["--seed", "1"]},
        worker={"resources": {"limits": {"nvidia.com/gpu": 1}}, "env": [{"name": "A", "value": "b"}]},
        cache={"emptyDir": {}},
        frontend={"mode": "None"},
    )
    found = [
        revision_module.inputs_hash(plain, None, ""),
        revision_module.inputs_hash(rich, "config-1", ""),
        revision_module.inputs_hash(plain, None, "1"),
    ]
    assert found == ["b1ab5f5683", "9e576495c1", "2991d2d4ca"]


MOMENT = "2026-01-31T12:00:00Z"


@pytest.mark.parametrize("requested", [{"rollout": "1"}, {"restartedAt": MOMENT}])
@pytest.mark.parametrize("image", ["registry.example/worker:1", "registry.example/worker:2"])
def test_removing_a_request_requests_nothing(
    make_endpoint, make_plan, make_observed, templates, requested, image
):
    """`kubectl replace` with a manifest that never had the request, before or after an upgrade."""
    first = make_plan(make_endpoint(**requested))
    removed = make_plan(make_endpoint(), make_observed(first), worker_image=image)
    assert templates(removed) == templates(first)
    assert removed.revision.name == first.revision.name
    assert removed.children[0] == first.children[0], "the revision is not written again"
    again = make_plan(make_endpoint(**requested), make_observed(removed), worker_image=image)
    assert again.revision.name == first.revision.name, "the request was carried out already"


@pytest.mark.parametrize("requested", [{"rollout": "1"}, {"restartedAt": MOMENT}])
def test_a_request_that_was_removed_is_kept_by_later_revisions(
    make_endpoint, make_plan, make_observed, requested
):
    first = make_plan(make_endpoint(**requested))
    changed = make_plan(make_endpoint(engine={"args": ["--seed", "1"]}), make_observed(first))
    assert changed.revision.name != first.revision.name
    back = make_plan(make_endpoint(engine={"args": ["--seed", "1"]}, **requested), make_observed(changed))
    assert back.revision.name == changed.revision.name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"rollout": "1"}),
        ({"rollout": "2"}, {"rollout": "1"}),
        ({}, {"restartedAt": MOMENT}),
        ({"restartedAt": "2026-02-01T00:00:00Z"}, {"restartedAt": MOMENT}),
        ({"rollout": "1"}, {"restartedAt": MOMENT}),
        ({"restartedAt": MOMENT}, {"rollout": "1"}),
    ],
)
def test_any_other_value_restarts_the_workers_alone(
    make_endpoint, make_plan, make_observed, templates, before, after
):
    """An earlier time too: the client's clock may be slow."""
    first = make_plan(make_endpoint(**before))
    second = make_plan(make_endpoint(**after), make_observed(first))
    workers, frontend = zip(templates(first), templates(second), strict=True)
    assert workers[0] != workers[1]
    assert frontend[0] == frontend[1]


@pytest.mark.parametrize("spelled", ["2026-01-31T12:00:00.000Z", "2026-01-31T13:00:00+01:00"])
def test_the_same_time_in_another_notation_requests_nothing(make_endpoint, make_plan, make_observed, spelled):
    first = make_plan(make_endpoint(restartedAt=MOMENT))
    second = make_plan(make_endpoint(restartedAt=spelled), make_observed(first))
    assert second.revision.name == first.revision.name


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_without_utc_equivalent_requests_a_restart(
    make_endpoint, make_plan, make_observed, templates, moment
):
    first = make_plan(make_endpoint())
    second = make_plan(make_endpoint(restartedAt=moment), make_observed(first))
    assert templates(first)[0] != templates(second)[0]


def test_an_earlier_version_keeps_the_pods_of_a_restart_request(make_endpoint):
    """After a rollback the CRD drops ``restartedAt``; that version compares only the inputs."""
    inputs = revision_module.inputs_hash(make_endpoint(restartedAt=MOMENT), None, "")
    assert inputs == revision_module.inputs_hash(make_endpoint(), None, "")


def test_an_annotation_of_the_pod_template_requests_nothing(make_endpoint, make_plan, make_observed):
    """It has the name of a request in the template, but an upgrade must not take it for one."""
    annotated = {"metadata": {"annotations": {"serving.vllmendpoint.dev/rollout": "theirs"}}}
    endpoint = make_endpoint(worker={"podTemplate": annotated})
    first = make_plan(endpoint)
    second = make_plan(endpoint, make_observed(first), worker_image="registry.example/worker:2")
    assert second.revision.name == first.revision.name


def test_an_explicit_default_changes_nothing(make_endpoint, make_plan, make_observed):
    first = make_plan(make_endpoint())
    worker = {"sharedMemorySize": "8Gi", "resources": {}}
    second = make_plan(make_endpoint(worker=worker, frontend={"mode": "Managed"}), make_observed(first))
    assert second.revision.name == first.revision.name


OWN_PROBE = {"spec": {"containers": [{"name": "main", "startupProbe": {"failureThreshold": 1440}}]}}


def timeout(seconds):
    return {"worker": {"startupTimeoutSeconds": seconds}}


@pytest.mark.parametrize("stored", [{}, timeout(1800), timeout(7200), timeout(60)])
def test_the_former_default_of_the_startup_timeout_restarts_nothing(
    make_endpoint, make_plan, make_observed, templates, stored
):
    """Before, the default was 1800 s, and the digest left it out. The API server has stored it."""
    seconds = stored["worker"]["startupTimeoutSeconds"] if stored else 1800
    earlier = make_plan(make_endpoint(**timeout(seconds)))
    inputs = earlier.children[0]["metadata"]["annotations"]["serving.vllmendpoint.dev/inputs-hash"]
    former = make_endpoint(**timeout(seconds)) if seconds != 1800 else make_endpoint()
    assert inputs == revision_module.inputs_hash(former, None, "")
    upgraded = make_plan(make_endpoint(**stored), make_observed(earlier))
    assert templates(upgraded) == templates(earlier)
    assert upgraded.revision.name == earlier.revision.name


@pytest.mark.parametrize("template", [None, OWN_PROBE])
def test_a_startup_timeout_of_the_former_default_takes_effect(
    make_endpoint, make_plan, make_observed, templates, template
):
    worker = {} if template is None else {"podTemplate": template}
    first = make_plan(make_endpoint(worker=worker))
    endpoint = make_endpoint(worker={**worker, "startupTimeoutSeconds": 1800})
    second = make_plan(endpoint, make_observed(first))
    (main,) = templates(second)[0]["spec"]["containers"]
    assert main["startupProbe"]["failureThreshold"] == (360 if template is None else 1440)
    third = make_plan(endpoint, make_observed(second))
    assert third.revision == second.revision
    assert (third.revision.name == first.revision.name) is (template is not None)
    longer = make_plan(make_endpoint(worker={**worker, "startupTimeoutSeconds": 7200}), make_observed(second))
    assert templates(longer)[0]["spec"]["containers"][0]["startupProbe"]["failureThreshold"] == 1440


def test_returning_to_an_earlier_spec_is_a_newer_revision(make_endpoint, make_plan, make_observed, child):
    first = make_plan(make_endpoint())
    changed = make_plan(make_endpoint(engine={"args": ["--seed", "1"]}), make_observed(first))
    observed = make_observed(changed)
    both = replace(observed, children={**make_observed(first).children, **observed.children})
    back = make_plan(make_endpoint(), both)
    assert back.revision.name == first.revision.name
    assert child(back, "ControllerRevision", back.revision.name)["revision"] == 3


def test_a_stored_template_survives_json(make_endpoint, make_plan, make_observed):
    """The API server returns JSON; its types must not look like an available upgrade."""
    first = make_plan(
        make_endpoint(worker={"envFrom": [{"secretRef": {"name": "s"}}]}, engine={"args": ["--x"]})
    )
    observed = make_observed(first)
    stored = {key: json.loads(json.dumps(obj)) for key, obj in observed.children.items()}
    again = make_plan(
        make_endpoint(worker={"envFrom": [{"secretRef": {"name": "s"}}]}, engine={"args": ["--x"]}),
        replace(observed, children=stored),
    )
    assert not again.revision.upgrade_available


def config_of(number: int) -> dict:
    return {"config": {"inline": {"seed": number}}}


def test_an_old_config_map_is_kept_while_a_pod_mounts_it(make_endpoint, make_plan, make_observed):
    first = make_plan(make_endpoint(engine=config_of(1)))
    (old,) = [
        c["metadata"]["name"]
        for c in first.children
        if c["kind"] == "ConfigMap" and "-config-" in c["metadata"]["name"]
    ]
    second = make_endpoint(engine=config_of(2))
    mounted = make_plan(second, make_observed(first, settings_in_use=frozenset({old})))
    assert not mounted.prune
    free = make_plan(second, make_observed(first))
    assert [(o["kind"], o["metadata"]["name"]) for o in free.prune] == [("ConfigMap", old)]


def test_a_disabled_frontend_is_pruned(make_endpoint, make_plan, make_observed):
    observed = make_observed(make_plan(make_endpoint()))
    gone = {
        (o["kind"], o["metadata"]["name"])
        for o in make_plan(make_endpoint(frontend={"mode": "None"}), observed).prune
    }
    assert gone == {
        ("ServiceAccount", "smollm-frontend"),
        ("RoleBinding", "smollm-frontend"),
        ("NetworkPolicy", "smollm-frontend"),
        ("Service", "smollm"),
        ("Deployment", "smollm-frontend"),
    }


def test_three_revisions_are_kept_including_the_current_one(make_endpoint, make_plan, make_observed):
    children: dict = {}
    for number in range(6):
        endpoint = make_endpoint(engine={"args": ["--seed", str(number)]})
        planned = make_plan(endpoint, replace(make_observed(make_plan(endpoint)), children=children))
        children |= make_observed(planned).children
        for obj in planned.prune:
            del children[obj["kind"], obj["metadata"]["name"]]
    kept = sorted(obj["revision"] for (kind, _), obj in children.items() if kind == "ControllerRevision")
    assert kept == [4, 5, 6]


def test_pods_are_annotated_with_new_settings_once(
    make_endpoint, make_plan, make_observed, make_worker, make_frontend, make_pod
):
    endpoint = make_endpoint(healthCheck={"level": "Standard"})
    planned = make_plan(endpoint)
    key = "serving.vllmendpoint.dev/settings-hash"
    annotated = {"annotations": {key: planned.settings.hash}}
    pods = [
        make_worker("behind", report={"configuration__settingsHash": "old"}),
        make_worker("unread"),
        make_worker("current", settings=endpoint),
        make_worker("annotated", metadata=annotated, report={"configuration__settingsHash": "old"}),
        make_worker("going", metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"}),
    ]
    frontends = (
        make_frontend("f-1"),
        make_frontend("f-2", metadata=annotated),
        make_frontend("f-3", metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"}),
        make_pod("f-4"),  # an earlier release, which mounts no settings
    )

    def refreshed(pods):
        return make_plan(endpoint, make_observed(planned, pods=pods, frontends=frontends)).refresh

    assert refreshed(pods) == dict.fromkeys(("behind", "f-1"), planned.settings.hash)
    assert refreshed(pods[1:3]) == {}, "no worker has other settings, so neither has a frontend"

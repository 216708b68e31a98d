"""The frontend's Deployment: what its probes need, its drain and its rollout."""

import pytest

from tests.nested import walk

MAIN = "spec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("grace", "seconds"), [(0, 0), (1, 1), (5, 4), (30, 23), (120, 105), (300, 285), (None, 23), ("x", 105)]
)
def test_the_frontend_drains_no_longer_than_its_grace_period(make_endpoint, make_plan, child, grace, seconds):
    template = {"spec": {"terminationGracePeriodSeconds": grace}}
    planned = make_plan(make_endpoint(frontend={"podTemplate": template}))
    frontend = child(planned, "Deployment", "smollm-frontend")
    assert walk(frontend, f"{MAIN}.env.[name=VLLMENDPOINT_DRAIN_SECONDS].value") == str(seconds)


def test_the_frontend_has_what_its_probes_need(make_endpoint, make_plan, child):
    endpoint = make_endpoint(model={"uri": "hf://o/n", "name": "mine", "type": "Chat"})
    planned = make_plan(endpoint)
    pod = walk(child(planned, "Deployment", "smollm-frontend"), "spec.template.spec")
    main = walk(pod, "containers.[name=main]")
    assert [*main["command"], *main["args"]] == [
        *("python3", "-m", "vllmendpoint_worker.frontend"),
        *("--http-port", "8000"),
    ]
    env = {item["name"]: item.get("value") for item in main["env"]}
    expected = {
        "VLLMENDPOINT_MODEL_NAME": "mine",
        "VLLMENDPOINT_MODEL_TYPE": "Chat",
        "VLLMENDPOINT_SETTINGS_DIR": "/etc/vllmendpoint",
        "VLLMENDPOINT_REPORT_PORT": "9091",
        "DYN_MIGRATION_LIMIT": "3",
    }
    assert expected.items() <= env.items()
    assert walk(main, "ports.[name=report].containerPort") == 9091
    assert walk(main, "volumeMounts.[name=settings]") == {
        "name": "settings",
        "mountPath": "/etc/vllmendpoint",
        "readOnly": True,
    }
    items = [{"key": "settings.json", "path": "settings.json"}]
    assert walk(pod, "volumes.[name=settings].configMap") == {"name": "smollm-settings", "items": items}
    assert {kind: walk(main, f"{kind}Probe.httpGet") for kind in ("startup", "readiness", "liveness")} == {
        "startup": {"path": "/started", "port": "report", "scheme": "HTTP"},
        "readiness": {"path": "/ready", "port": "report", "scheme": "HTTP"},
        "liveness": {"path": "/live", "port": "report", "scheme": "HTTP"},
    }
    plain = make_plan(make_endpoint(frontend={"migrationLimit": 0}))
    env = walk(child(plain, "Deployment", "smollm-frontend"), f"{MAIN}.env")
    assert walk(env, "[name=DYN_MIGRATION_LIMIT].value") == "0"
    assert "VLLMENDPOINT_MODEL_TYPE" not in [item["name"] for item in env]


def test_frontends_have_as_much_time_as_the_workers_that_they_wait_for(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(worker={"startupTimeoutSeconds": 7200}))
    for part in ("workers", "frontend"):
        assert walk(child(planned, "Deployment", f"smollm-{part}"), "spec.progressDeadlineSeconds") == 7800


@pytest.mark.parametrize(("replicas", "unavailable"), [(0, "100%"), (1, None)])
def test_a_rollout_of_frontends_without_workers_does_not_wait_for_routes(
    make_endpoint, make_plan, child, replicas, unavailable
):
    frontend = child(make_plan(make_endpoint(replicas=replicas)), "Deployment", "smollm-frontend")
    strategy = frontend["spec"].get("strategy", {}).get("rollingUpdate", {})
    assert strategy.get("maxUnavailable") == unavailable


def test_a_pre_stop_hook_of_the_user_is_kept(make_endpoint, make_plan, child):
    hook = {"preStop": {"exec": {"command": ["true"]}}}
    pod = {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "lifecycle": hook}]}
    planned = make_plan(make_endpoint(frontend={"podTemplate": {"spec": pod}}))
    assert walk(child(planned, "Deployment", "smollm-frontend"), f"{MAIN}.lifecycle") == hook

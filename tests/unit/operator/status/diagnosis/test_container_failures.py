"""Messages about init, sidecar, other and ephemeral containers that do not start."""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

TIMEOUT = 600
FRONTEND = {"metadata": {"labels": {"app.kubernetes.io/component": "frontend"}}}
NATIVE = {"initContainers": [{"name": "fetch"}, {"name": "proxy", "restartPolicy": "Always"}]}
INITIALIZING = {
    "name": "main",
    "started": False,
    "ready": False,
    "state": {"waiting": {"reason": "PodInitializing"}},
}
RUNNING = {"running": {"startedAt": "2026-01-01T11:50:00Z"}}
LOADING = {"name": "main", "started": False, "ready": False, "state": RUNNING}
SERVING = {"name": "main", "started": True, "ready": True, "state": RUNNING}
DONE = {"name": "fetch", "ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}


def waits(reason, message="", **more):
    return {
        "ready": False,
        "started": False,
        "state": {"waiting": {"reason": reason, "message": message}},
    } | more


CRASHED = {"restartCount": 4, "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}
CREATION_FAILURES = {
    "its image": (
        waits("ErrImagePull", "404", image="p:1"),
        Reason.IMAGE_PULL_FAILED,
        (
            "cannot pull the image p:1 of {title}: 404. The registry does not have this image: check its "
            "name and"
        ),
    ),
    "its Secret": (
        waits("CreateContainerConfigError", 'secret "s" not found'),
        Reason.SECRET_NOT_FOUND,
        'cannot start its {title}: secret "s" not found. Create it, or correct the reference in {where}.',
    ),
    "its user": (
        waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        Reason.CONTAINER_CONFIG_ERROR,
        "cannot start its {title}: container has runAsNonRoot and image will run as root. Check {where}.",
    ),
    "a reason that is not known": (
        waits("SomethingNew"),
        Reason.CONTAINER_CONFIG_ERROR,
        "cannot start its {title}: SomethingNew. Check {where}.",
    ),
}
TERMINATIONS = {
    "it crashes": (
        waits("CrashLoopBackOff", **CRASHED),
        Reason.CRASH_LOOPING,
        (
            "w-1, the {title} terminated with exit code 3 (4 restarts). See `kubectl logs w-1 -c {name} "
            "--previous`."
        ),
    ),
    "it was killed for memory": (
        waits("CrashLoopBackOff", lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        Reason.OOM_KILLED,
        "w-1, the {title} ran out of memory and was killed",
    ),
    "it never ran": (
        {"state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}}},
        Reason.CRASH_LOOPING,
        "w-1, the {title} terminated with exit code 128 (0 restarts). Its last message was: no such file.",
    ),
}


def pod_status_with(role, name, status):
    """The container statuses of a pod in which this container has ``status``."""
    one = {"name": name, **status}
    if role == "init container":
        return {"initContainerStatuses": [one], "containerStatuses": [INITIALIZING], "spec": NATIVE}
    if role == "sidecar container":
        return {"initContainerStatuses": [DONE, one], "containerStatuses": [INITIALIZING], "spec": NATIVE}
    return {"containerStatuses": [LOADING, one]}


ROLES = {"init container": "fetch", "sidecar container": "proxy", "container": "log"}


@pytest.mark.parametrize("component", ["worker", "frontend"])
@pytest.mark.parametrize("failure", [*CREATION_FAILURES, *TERMINATIONS])
@pytest.mark.parametrize("role", ROLES)
def test_a_container_that_does_not_start_is_named_with_cause_and_remedy(make_pod, role, failure, component):
    status, reason, text = {**CREATION_FAILURES, **TERMINATIONS}[failure]
    name, labels = ROLES[role], FRONTEND if component == "frontend" else {}
    found = diagnose_pod(
        make_pod("w-1", ready=False, **pod_status_with(role, name, status), **labels), TIMEOUT
    )
    assert found.reason is reason
    expected = text.format(title=f"{role} {name}", name=name, where=f"{component}.podTemplate")
    assert expected in found.message
    assert found.message.lower().count("pod w-1") == 1, "the main container only waits for it"


@pytest.mark.parametrize("role", ["sidecar container", "container"])
def test_a_container_other_than_an_init_container_fails_even_with_exit_code_0(make_pod, role):
    succeeded = {"ready": False, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    found = diagnose_pod(
        make_pod("w-1", ready=False, **pod_status_with(role, ROLES[role], succeeded)), TIMEOUT
    )
    assert found.reason is Reason.CRASH_LOOPING
    assert f"In pod w-1, the {role} {ROLES[role]} terminated with exit code 0" in found.message


def test_a_sidecar_whose_startup_probe_has_not_succeeded_delays_the_pod(make_pod):
    proxy = {"name": "proxy", "ready": False, "started": False, "state": RUNNING}
    found = diagnose_pod(
        make_pod("w-1", ready=False, **pod_status_with("sidecar container", "proxy", proxy)), TIMEOUT
    )
    assert (found.reason, found.message) == (
        Reason.STARTING,
        (
            "Pod w-1 is starting: its sidecar container proxy is running, but its startup probe has not "
            "succeeded "
            "yet."
        ),
    )


def test_the_message_about_a_restarting_sidecar_has_no_stage_of_the_worker(make_worker):
    proxy = {"name": "proxy", "ready": False, "started": False, "state": RUNNING, **CRASHED}
    status = pod_status_with("sidecar container", "proxy", proxy) | {"containerStatuses": [LOADING]}
    pod = make_worker("w-1", "Starting", ready=False, report={"stage__name": "LoadingWeights"}, **status)
    assert diagnose_pod(pod, TIMEOUT).message == (
        "In pod w-1, the sidecar container proxy terminated with exit code 3 (4 restarts). "
        "See `kubectl logs w-1 -c proxy --previous`. It is restarting."
    )


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        (
            [{"name": "fetch", **waits("ContainerCreating")}, {"name": "proxy", **waits("PodInitializing")}],
            "its init container fetch is not running yet (ContainerCreating).",
        ),
        (
            [{"name": "fetch", "ready": False, "state": RUNNING}],
            "its init container fetch has not completed yet.",
        ),
        (
            [DONE, {"name": "proxy", **waits("ContainerCreating")}],
            "its sidecar container proxy is not running yet (ContainerCreating).",
        ),
        ([DONE, {"name": "proxy", "ready": True, "started": True, "state": RUNNING}], "(phase Pending)."),
    ],
)
def test_the_container_that_the_main_container_waits_for_is_named(make_pod, statuses, message):
    pod = make_pod(
        "w-1",
        ready=False,
        phase="Pending",
        initContainerStatuses=statuses,
        containerStatuses=[INITIALIZING],
        spec=NATIVE,
    )
    found = diagnose_pod(pod, TIMEOUT)
    assert found.reason is Reason.STARTING
    assert found.message.endswith(message)


@pytest.mark.parametrize("role", ["sidecar container", "container"])
def test_a_frontend_pod_names_the_container_that_is_not_ready(make_pod, role):
    """A frontend sends no reports, so its containers' statuses are the only evidence."""
    one = {"name": ROLES[role], "ready": False, "started": True, "state": RUNNING}
    status = pod_status_with(role, ROLES[role], one)
    status["containerStatuses"] = [SERVING, *[s for s in status["containerStatuses"] if s["name"] != "main"]]
    found = diagnose_pod(make_pod("f-1", ready=False, **status, **FRONTEND), TIMEOUT)
    assert found.reason is Reason.STARTING
    assert found.message == f"Pod f-1 is starting: its {role} {ROLES[role]} is not ready."


def test_all_failing_containers_are_named_the_most_severe_first(make_pod):
    statuses = [
        LOADING,
        {"name": "a", **TERMINATIONS["it crashes"][0]},
        {"name": "b", **CREATION_FAILURES["its image"][0]},
    ]
    found = diagnose_pod(make_pod("w-1", ready=False, containerStatuses=statuses), TIMEOUT)
    assert found.reason is Reason.IMAGE_PULL_FAILED
    assert found.message.startswith("Pod w-1 cannot pull the image p:1 of container b: 404.")
    assert " In pod w-1, the container a terminated with exit code 3" in found.message


DEBUGGER = {"name": "debugger"}


@pytest.mark.parametrize("failure", CREATION_FAILURES)
def test_an_ephemeral_container_is_named_but_is_not_the_reason(make_pod, failure):
    status, _, text = CREATION_FAILURES[failure]
    message = text.format(title="ephemeral container debugger", where="the options of kubectl debug")
    ephemeral = [{**DEBUGGER, **status}]
    loading = make_pod("w-1", ready=False, containerStatuses=[LOADING], ephemeralContainerStatuses=ephemeral)
    found = diagnose_pod(loading, TIMEOUT)
    assert found.reason is Reason.STARTING
    assert found.message.startswith("Pod w-1 is starting")
    assert f" Pod w-1 {message}" in found.message
    assert diagnose_pod(make_pod("w-1", ephemeralContainerStatuses=ephemeral), TIMEOUT) is None, (
        "the pod is ready"
    )


@pytest.mark.parametrize(
    ("state", "reported"),
    [
        (TERMINATIONS["it never ran"][0]["state"], True),
        ({"terminated": {"exitCode": 130, "reason": "Error"}}, False),
        ({"terminated": {"exitCode": 0, "reason": "Completed"}}, False),
        (RUNNING, False),
    ],
)
def test_an_ephemeral_container_is_reported_only_if_it_never_started(make_pod, state, reported):
    ephemeral = [{**DEBUGGER, "state": state}]
    pod = make_pod("w-1", ready=False, containerStatuses=[LOADING], ephemeralContainerStatuses=ephemeral)
    assert ("debugger" in diagnose_pod(pod, TIMEOUT).message) is reported

"""``Generating``: the verdicts of started replicas, and what becomes of one that does not generate."""

import pytest

from tests.unit.operator.status.cluster_states import crashed


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (
            ("Generating", "Generating", "Stalled"),
            {"Available": ("True", "Available"), "Generating": ("False", "EngineStalled")},
        ),
        (("Generating", "Generating", "Failing"), {"Generating": ("False", "ProbeFailed")}),
        (("Generating", "Failing", "Dead"), {"Generating": ("False", "EngineDead")}),
        (
            ("Generating", "Starting", "Generating"),
            {
                "Available": ("True", "Available"),
                "Generating": ("True", "Generating"),
                "Ready": ("True", "Ready"),
            },
        ),
        (("Starting", "Starting", "Starting"), {"Generating": ("Unknown", "NoWorkers")}),
        (
            ("Stalled", "Stalled", "Generating"),
            {"Available": ("False", "EngineStalled"), "Generating": ("False", "EngineStalled")},
        ),
        (
            ("Disabled", "Disabled", "Disabled"),
            {"Generating": ("Unknown", "ProbingDisabled"), "Ready": ("True", "Ready")},
        ),
        (
            ("Disabled", "Generating", "Generating"),
            {"Generating": ("Unknown", "ProbingDisabled"), "Ready": ("True", "Ready")},
        ),
    ],
)
def test_the_most_severe_verdict_of_three_replicas_decides(
    make_endpoint, make_status, make_workers, states, verdicts, expected
):
    endpoint = make_endpoint(replicas=3)
    found = states(make_status(endpoint, *make_workers(endpoint, *verdicts)))
    if expected["Generating"][0] == "False":
        expected = {"Ready": ("False", expected["Generating"][1]), **expected}
    assert {kind: found[kind] for kind in expected} == expected


def test_the_message_has_count_cause_effect_and_remedy(
    make_endpoint, make_status, make_workers, make_worker, condition
):
    endpoint = make_endpoint(replicas=3)
    report = {"verdict__message": "The engine has scheduled no token for 12 s."}
    stalled = make_worker("w-bad", "Stalled", settings=endpoint, report=report)
    found = make_status(endpoint, *make_workers(endpoint, "Generating", "Generating"), stalled)
    assert condition(found, "Generating").message == (
        "1 of 3 replicas is not generating: the engine in pod w-bad is stalled. "
        "The engine has scheduled no token for 12 s. "
        "The pod receives no traffic and restarts after 600 s (healthCheck.restartAfterSeconds). "
        "To replace it now, delete it."
    )
    assert condition(found, "Ready").message == condition(found, "Generating").message
    assert condition(found, "Stalled").status == "False", "the spec has no terminal error"


@pytest.mark.parametrize(
    ("verdict", "check", "message"),
    [
        (
            "Stalled",
            {"mode": "Observe", "restartAfterSeconds": 60},
            (
                "the engine in pod w is stalled. The cause. Because healthCheck.mode is Observe, the pod "
                "still receives traffic and restarts after 60 s (healthCheck.restartAfterSeconds). "
                "To replace it now, delete it."
            ),
        ),
        (
            "Stalled",
            {"restartAfterSeconds": 0},
            (
                "the engine in pod w is stalled. The cause. The pod receives no traffic. It does not restart "
                "because healthCheck.restartAfterSeconds is 0. Delete it."
            ),
        ),
        (
            "Failing",
            {},
            (
                "the health probe in pod w fails. The cause. The pod receives no traffic. "
                "Check healthCheck.payload against the model, and the log of the pod."
            ),
        ),
        (
            "Dead",
            {},
            (
                "the engine in pod w is dead. The cause. The pod receives no traffic and restarts. "
                "See its log for the cause."
            ),
        ),
    ],
    ids=["observed", "never restarted", "failing", "dead"],
)
def test_the_message_states_the_effect_on_traffic_and_the_restart(
    make_endpoint, make_status, make_worker, message_of, verdict, check, message
):
    endpoint = make_endpoint(healthCheck=check)
    report = {"verdict__message": "The cause."}
    found = make_status(endpoint, make_worker("w", verdict, settings=endpoint, report=report))
    assert message_of(found, "Generating") == f"1 of 1 replica is not generating: {message}"


def test_several_replicas_that_do_not_generate_are_counted_in_the_plural(
    make_endpoint, make_status, make_workers, message_of
):
    endpoint = make_endpoint(replicas=3)
    found = make_status(endpoint, *make_workers(endpoint, "Stalled", "Dead", "Generating"))
    assert message_of(found, "Generating").startswith("2 of 3 replicas are not generating: ")


def test_unexpected_answers_are_not_generating(make_endpoint, make_status, make_worker, states, message_of):
    endpoint = make_endpoint()
    report = {"verdict__reason": "UnexpectedAnswer", "verdict__message": "No match."}
    found = make_status(endpoint, make_worker("w", "Failing", settings=endpoint, report=report))
    assert states(found)["Generating"] == ("False", "UnexpectedAnswer")
    assert "the health probe in pod w gets unexpected answers. No match." in message_of(found, "Generating")


def test_disabled_probing_is_counted(make_endpoint, make_status, make_workers, message_of):
    endpoint = make_endpoint(replicas=3)
    found = make_status(endpoint, *make_workers(endpoint, "Disabled", "Generating", "Generating"))
    assert message_of(found, "Generating") == (
        "Whether 1 of 3 replicas is generating is not known, because healthCheck.mode, "
        "DYN_HEALTH_CHECK_ENABLED or DYN_HEALTH_CHECK_PAYLOAD_DISABLED disables probing."
    )


def test_a_replica_that_cannot_start_is_reported_while_the_others_suffice(
    make_endpoint, make_status, make_pod, make_worker, finding, message_of
):
    endpoint = make_endpoint(replicas=2)
    good = make_worker("w-1", settings=endpoint)
    broken = make_pod("w-2", ready=False, container=crashed("ValueError: no"))
    found = make_status(endpoint, good, broken)
    assert finding(found)[0] == "True"
    assert message_of(found).startswith(
        "1 of 2 replicas is generating. 1 replica is not ready. Pod w-2 terminated with exit code 1"
    )
    assert message_of(found, "Generating").startswith(
        "1 of 1 started replica is generating. 1 more has not started. Pod w-2 terminated with"
    )
    found = make_status(endpoint, good, make_worker("w-2", "Starting", settings=endpoint))
    assert message_of(found, "Generating") == "1 of 1 started replica is generating."


def test_a_ready_pod_without_a_report_does_not_count_as_started(
    make_endpoint, make_status, make_worker, make_pod, message_of
):
    endpoint = make_endpoint(replicas=2)
    found = make_status(endpoint, make_worker("w-1", settings=endpoint), make_pod("w-2"))
    assert message_of(found, "Generating") == "1 of 1 started replica is generating."

"""``ConfigurationResolved``: the settings that the workers report, and configurations that they reject."""

import pytest

from vllmendpoint_operator.reports.state import StreamState

PROBLEM = {
    "reason": "InvalidPayload",
    "source": "Spec",
    "field": "payload.temprature",
    "message": "unknown field.",
}


@pytest.mark.parametrize(
    ("report", "expected", "sentences"),
    [
        (
            {"configuration__settingsHash": "old"},
            ("Unknown", "Pending"),
            ["1 of 1 worker has not applied the current settings yet (pod w-1)."],
        ),
        (
            {"configuration__state": "Refused", "configuration__problems": [PROBLEM]},
            ("False", "InvalidPayload"),
            [
                "1 of 1 worker (pod w-1) rejected the configuration from Spec: unknown field. ",
                "Pod w-1 keeps its last valid settings.",
            ],
        ),
        (
            {
                "configuration__state": "Refused",
                "configuration__problems": [PROBLEM] * 3,
                "healthCheck": None,
            },
            ("False", "InvalidPayload"),
            ["Pod w-1 serves no requests until its configuration is valid.", "It reports 2 more problems."],
        ),
        (
            {"configuration__state": "Refused"},
            ("False", "InvalidSettings"),
            ["1 of 1 worker (pod w-1) rejected the configuration. See `kubectl logs w-1`."],
        ),
        (
            {
                "configuration__state": "Refused",
                "configuration__problems": [PROBLEM],
                "configuration__settingsHash": "old",
            },
            ("Unknown", "Pending"),
            ["has not applied the current settings yet"],
        ),
        (
            {
                "configuration__state": "Refused",
                "configuration__problems": [PROBLEM],
                "configuration__settingsHash": "",
            },
            ("False", "InvalidPayload"),
            [],
        ),
        (
            {
                "configuration__state": "Refused",
                "configuration__problems": [{**PROBLEM, "reason": "Nonsense"}],
            },
            ("False", "InvalidSettings"),
            [],
        ),
        (
            {
                "configuration__state": "Refused",
                "configuration__problems": [{**PROBLEM, "reason": "ProbingDisabled"}],
            },
            ("False", "InvalidSettings"),
            [],
        ),
    ],
)
def test_the_report_of_a_worker_decides(
    make_endpoint, make_status, make_worker, states, message_of, report, expected, sentences
):
    endpoint = make_endpoint()
    found = make_status(endpoint, make_worker("w-1", settings=endpoint, report=report))
    assert states(found)["ConfigurationResolved"] == expected
    assert states(found)["Ready"] == ("False", expected[1])
    for text in sentences:
        assert text in message_of(found, "ConfigurationResolved")
    assert (states(found)["Stalled"][0] == "True") is (expected[0] == "False")


def test_the_settings_of_an_unreachable_worker_are_unknown(
    make_endpoint, make_status, make_worker, make_pod, states, message_of
):
    """A NetworkPolicy may block the operator, but not the kubelet."""
    endpoint = make_endpoint(replicas=2)
    unreachable = make_pod("w-1", StreamState(grace_expired=True, error="refused"))
    found = make_status(endpoint, unreachable, make_worker("w-2", settings=endpoint))
    assert states(found)["ConfigurationResolved"] == ("Unknown", "WorkerUnreachable")
    assert "1 of 2 workers is unreachable (pod w-1), so the settings in use are unknown." in (
        message_of(found, "ConfigurationResolved")
    )
    assert states(found)["Ready"] == ("False", "WorkerUnreachable")
    assert states(found)["Reconciling"][0] == "False"
    lost = make_worker("w-1", settings=endpoint, connected=False)
    found = make_status(endpoint, lost, make_worker("w-2", settings=endpoint))
    assert states(found)["ConfigurationResolved"] == ("Unknown", "WorkerUnreachable")


def test_a_warning_of_a_worker_is_in_the_message(make_endpoint, make_status, make_worker, states, message_of):
    endpoint = make_endpoint()
    report = {"configuration__warnings": ["this version does not know the setting healthCheck.x"]}
    found = make_status(endpoint, make_worker("w-1", settings=endpoint, report=report))
    assert states(found)["ConfigurationResolved"] == ("True", "Resolved")
    assert message_of(found, "ConfigurationResolved").endswith(
        "Pod w-1 warns: this version does not know the setting healthCheck.x."
    )


def test_finished_pods_do_not_count_as_workers(make_endpoint, make_status, make_worker, make_pod, message_of):
    endpoint = make_endpoint(replicas=2)
    finished = make_pod("w-0", ready=False, phase="Failed")
    unreachable = make_pod("w-1", StreamState(grace_expired=True, error="refused"))
    found = make_status(endpoint, finished, unreachable, make_worker("w-2", settings=endpoint))
    assert message_of(found, "ConfigurationResolved").startswith("1 of 2 workers")

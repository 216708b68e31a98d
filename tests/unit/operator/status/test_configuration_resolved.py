"""``ConfigurationResolved``: what the workers say of the settings, and what comes of it."""

import pytest

from vllmendpoint_operator.reports.state import StreamState


def told(status):
    return {entry.type: (entry.status, entry.reason) for entry in status.conditions}


PROBLEM = {
    "reason": "InvalidPayload",
    "source": "Spec",
    "field": "payload.temprature",
    "message": "unknown field.",
}


@pytest.mark.parametrize(
    ("said", "expected", "parts"),
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
def test_configuration(make_endpoint, make_status, make_worker, condition, said, expected, parts):
    endpoint = make_endpoint()
    found = make_status(endpoint, make_worker("w-1", settings=endpoint, said=said))
    assert told(found)["ConfigurationResolved"] == expected
    assert told(found)["Ready"] == ("False", expected[1])
    for part in parts:
        assert part in condition(found, "ConfigurationResolved").message
    assert (told(found)["Stalled"][0] == "True") is (expected[0] == "False")


def test_one_that_cannot_be_asked(make_endpoint, make_status, make_worker, make_pod, condition):
    """A NetworkPolicy in the way: the kubelet finds it ready, and nobody knows what it runs."""
    endpoint = make_endpoint(replicas=2)
    never = make_pod("w-1", StreamState(grace_expired=True, error="refused"))
    found = make_status(endpoint, never, make_worker("w-2", settings=endpoint))
    assert told(found)["ConfigurationResolved"] == ("Unknown", "WorkerUnreachable")
    assert "1 of 2 workers is unreachable (pod w-1), so the settings in use are unknown." in (
        condition(found, "ConfigurationResolved").message
    )
    assert told(found)["Ready"] == ("False", "WorkerUnreachable")
    assert told(found)["Reconciling"][0] == "False"
    lost = make_worker("w-1", settings=endpoint, connected=False)
    found = make_status(endpoint, lost, make_worker("w-2", settings=endpoint))
    assert told(found)["ConfigurationResolved"] == ("Unknown", "WorkerUnreachable")


def test_settings_that_an_older_worker_does_not_know(make_endpoint, make_status, make_worker, condition):
    endpoint = make_endpoint()
    said = {"configuration__warnings": ["this version does not know the setting healthCheck.x"]}
    found = make_status(endpoint, make_worker("w-1", settings=endpoint, said=said))
    assert told(found)["ConfigurationResolved"] == ("True", "Resolved")
    assert condition(found, "ConfigurationResolved").message.endswith(
        "Pod w-1 warns: this version does not know the setting healthCheck.x."
    )


def test_records_and_those_that_end_are_none_of_the_workers(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint(replicas=2)
    gone = make_pod("w-0", ready=False, phase="Failed")
    never = make_pod("w-1", StreamState(grace_expired=True, error="refused"))
    found = make_status(endpoint, gone, never, make_worker("w-2", settings=endpoint))
    assert condition(found, "ConfigurationResolved").message.startswith("1 of 2 workers")

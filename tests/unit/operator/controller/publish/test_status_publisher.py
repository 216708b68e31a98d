"""Which changes of a status are written without delay, and how many of them."""

import pytest

from vllmendpoint_api import VLLMEndpointStatus
from vllmendpoint_operator.controller.publish.event_recorder import EventRecorder
from vllmendpoint_operator.controller.publish.status_publisher import StatusPublisher
from vllmendpoint_operator.controller.publish.status_write_limiter import (
    BURST,
    WRITE_INTERVAL_SECONDS,
    is_urgent,
)
from vllmendpoint_operator.metrics import Metrics

FALSE, TRUE, UNKNOWN = "False", "True", "Unknown"
STEADY = {
    "Available": (TRUE, "Available"),
    "Generating": (TRUE, "Generating"),
    "UpToDate": (TRUE, "UpToDate"),
    "Ready": (TRUE, "Ready"),
    "Reconciling": (FALSE, "Settled"),
    "Stalled": (FALSE, "Settled"),
}
STARTING = {
    **STEADY,
    "Available": (FALSE, "Starting"),
    "Generating": (UNKNOWN, "NoWorkers"),
    "UpToDate": (FALSE, "RollingOut"),
    "Ready": (FALSE, "Starting"),
    "Reconciling": (TRUE, "Starting"),
}


def status(conditions, generation=1, message="m", **more):
    return VLLMEndpointStatus(
        observed_generation=generation,
        conditions=[
            {
                "type": condition,
                "status": value,
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": generation,
            }
            for condition, (value, reason) in conditions.items()
        ],
        **more,
    )


CASES = {
    "first status": (None, status(STARTING), True),
    "new generation": (status(STEADY), status(STEADY, generation=2), True),
    "no change": (status(STEADY), status(STEADY), False),
    "wording": (status(STARTING), status(STARTING, message="other"), False),
    "counts": (status(STEADY), status(STEADY, ready_replicas=2), False),
    "becomes ready": (status(STARTING), status(STEADY), True),
    "is no longer ready": (status(STEADY), status({**STEADY, "Ready": (FALSE, "Starting")}), True),
    "step of a start": (status(STARTING), status({**STARTING, "Available": (TRUE, "Available")}), False),
    "one worker generates": (
        status(STARTING),
        status({**STARTING, "Generating": (TRUE, "Generating")}),
        False,
    ),
    "error": (status(STARTING), status({**STARTING, "Available": (FALSE, "ImagePullFailed")}), True),
    "another error": (
        status({**STARTING, "Available": (FALSE, "ImagePullFailed")}),
        status({**STARTING, "Available": (FALSE, "OOMKilled")}),
        True,
    ),
    "recovery": (
        status({**STARTING, "Available": (FALSE, "ImagePullFailed")}),
        status({**STARTING, "Available": (TRUE, "Available")}),
        True,
    ),
    "a part becomes unknown": (
        status({**STARTING, "Generating": (TRUE, "Generating")}),
        status({**STARTING, "Generating": (UNKNOWN, "WorkerUnreachable")}),
        True,
    ),
    "the user must act": (status(STARTING), status({**STARTING, "Stalled": (TRUE, "InvalidSpec")}), True),
    "end of reconciling": (status(STARTING), status({**STARTING, "Reconciling": (FALSE, "Settled")}), False),
}


@pytest.mark.parametrize("case", CASES)
def test_changes_that_users_wait_for_are_urgent(case):
    before, after, expected = CASES[case]
    assert is_urgent(before, after) is expected


class Writer:
    """Records the statuses that it writes."""

    def __init__(self):
        self.written = []

    async def write(self, obj, status):
        self.written.append(status)


class Api:
    """Accepts every Event."""

    async def create(self, kind, body):
        pass


@pytest.fixture
def publish(make_endpoint):
    """``await publish(old, new, now)`` returns the delay; ``publish.written`` are the written statuses."""
    writer, times = Writer(), []
    publisher = StatusPublisher(
        writer=writer,
        recorder=EventRecorder(Api(), lambda endpoint: True, "test"),
        metrics=Metrics(),
        may_write=lambda endpoint: True,
        operator="ops/vllm",
        clock=lambda: times[-1],
    )

    async def publish_at(old, new, now):
        times.append(now)
        return await publisher.publish({}, make_endpoint(before=old), new)

    publish_at.written = writer.written
    return publish_at


async def test_a_change_that_is_not_urgent_waits_and_then_the_newest_status_is_written(publish):
    first, second, third = (status(STARTING, message=text) for text in "abc")
    assert await publish(None, first, 100.0) is None
    assert await publish(first, second, 101.0) == pytest.approx(WRITE_INTERVAL_SECONDS - 1)
    assert len(publish.written) == 1
    assert await publish(first, third, 100.0 + WRITE_INTERVAL_SECONDS) is None
    assert [item["conditions"][0]["message"] for item in publish.written] == ["a", "c"]


async def test_an_urgent_change_does_not_wait(publish):
    first, ready = status(STARTING), status(STEADY, health_check=None)
    await publish(None, first, 100.0)
    disabled = {**STEADY, "Generating": (UNKNOWN, "ProbingDisabled")}
    assert await publish(first, status(disabled), 100.1) is None
    assert len(publish.written) == 2
    assert await publish(status(disabled), ready, 100.2) is not None, "from Unknown to True is not urgent"


async def test_no_change_waits_if_there_was_no_recent_write(publish):
    first = status(STEADY)
    assert await publish(first, status(STEADY, ready_replicas=2), 1.0) is None
    assert len(publish.written) == 1


async def test_a_flapping_status_is_written_at_a_limited_rate(publish):
    """Ready changes ten times a second for a minute."""
    up, down = status(STEADY), status({**STEADY, "Ready": (FALSE, "EngineStalled")})
    current, delays = None, []
    for tenth in range(600):
        new = up if current is down else down
        delay = await publish(current, new, 100.0 + tenth / 10)
        if delay is None:
            current = new
        else:
            delays.append(delay)
    assert len(publish.written) == pytest.approx(BURST + 60 / WRITE_INTERVAL_SECONDS, abs=2)
    assert all(0 < delay <= WRITE_INTERVAL_SECONDS for delay in delays)
    assert await publish(current, up if current is down else down, 1000.0) is None, (
        "the burst is available again"
    )

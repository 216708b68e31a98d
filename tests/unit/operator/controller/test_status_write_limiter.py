"""Which changes of a status are written at once, and which wait for the next ones; how many."""

import pytest

from vllmendpoint_api import VLLMEndpointStatus
from vllmendpoint_operator.controller.reconcile import Reconciler
from vllmendpoint_operator.controller.status_write_limiter import WRITE_INTERVAL_SECONDS, is_urgent

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
                "type": kind,
                "status": said,
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": generation,
            }
            for kind, (said, reason) in conditions.items()
        ],
        **more,
    )


CASES = {
    "the first visit": (None, status(STARTING), True),
    "another spec": (status(STEADY), status(STEADY, generation=2), True),
    "nothing": (status(STEADY), status(STEADY), False),
    "wording": (status(STARTING), status(STARTING, message="other"), False),
    "counts": (status(STEADY), status(STEADY, ready_replicas=2), False),
    "it is ready": (status(STARTING), status(STEADY), True),
    "it is no longer ready": (status(STEADY), status({**STEADY, "Ready": (FALSE, "Starting")}), True),
    "a step of a start": (status(STARTING), status({**STARTING, "Available": (TRUE, "Available")}), False),
    "one worker generates": (
        status(STARTING),
        status({**STARTING, "Generating": (TRUE, "Generating")}),
        False,
    ),
    "a cause": (status(STARTING), status({**STARTING, "Available": (FALSE, "ImagePullFailed")}), True),
    "another cause": (
        status({**STARTING, "Available": (FALSE, "ImagePullFailed")}),
        status({**STARTING, "Available": (FALSE, "OOMKilled")}),
        True,
    ),
    "the cause is gone": (
        status({**STARTING, "Available": (FALSE, "ImagePullFailed")}),
        status({**STARTING, "Available": (TRUE, "Available")}),
        True,
    ),
    "a part is not known any more": (
        status({**STARTING, "Generating": (TRUE, "Generating")}),
        status({**STARTING, "Generating": (UNKNOWN, "WorkerUnreachable")}),
        True,
    ),
    "the user has to act": (status(STARTING), status({**STARTING, "Stalled": (TRUE, "InvalidSpec")}), True),
    "work is over": (status(STARTING), status({**STARTING, "Reconciling": (FALSE, "Settled")}), False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_told_at_once(case):
    before, now, told = CASES[case]
    assert is_urgent(before, now) is told


class Writes:
    """Stands in for all that a write of a status needs."""

    def __init__(self):
        self.written = []

    async def apply(self, kind, body, **options):
        self.written.append(body["status"])
        return {"metadata": {"namespace": "team-a", "name": "smollm", "resourceVersion": "9", "uid": "uid-1"}}

    async def create(self, kind, body):
        pass

    def set_endpoint(self, *_):
        pass

    def upsert(self, _):
        return True

    def is_active(self, *_):
        return True

    def managing_operator(self, _):
        return ""


@pytest.fixture
def write(make_endpoint, monkeypatch):
    """``await write(before, now, at)`` gives the seconds to wait; ``write.done`` are the statuses written."""
    fake, clock = Writes(), [0.0]
    monkeypatch.setattr("vllmendpoint_operator.controller.reconcile.monotonic", lambda: clock[0])
    reconciler = Reconciler(
        kube=fake,
        cache=None,
        observer=None,
        endpoints=fake,
        options=None,
        metrics=fake,
        reporting_instance="test",
        operator="ops/vllm",
    )
    metadata = {"namespace": "team-a", "name": "smollm", "uid": "uid-1", "resourceVersion": "8"}

    async def once(before, now, at):
        clock[0] = at
        return await reconciler._write_status({"metadata": metadata}, make_endpoint(before=before), now)

    once.done = fake.written
    return once


async def test_a_step_waits_for_the_rest_of_its_time_and_the_newest_is_written(write):
    first, second, third = (status(STARTING, message=text) for text in "abc")
    assert await write(None, first, 100.0) is None
    assert await write(first, second, 101.0) == pytest.approx(WRITE_INTERVAL_SECONDS - 1)
    assert len(write.done) == 1
    assert await write(first, third, 100.0 + WRITE_INTERVAL_SECONDS) is None
    assert [item["conditions"][0]["message"] for item in write.done] == ["a", "c"]


async def test_what_presses_does_not_wait(write):
    first, ready = status(STARTING), status(STEADY, health_check=None)
    await write(None, first, 100.0)
    calm = {**STEADY, "Generating": (UNKNOWN, "ProbingDisabled")}
    assert await write(first, status(calm), 100.1) is None
    assert len(write.done) == 2
    assert await write(status(calm), ready, 100.2) is not None, "one more that generates is a step"


async def test_where_nothing_was_written_for_long_a_step_does_not_wait(write):
    first = status(STEADY)
    assert await write(first, status(STEADY, ready_replicas=2), 1.0) is None
    assert len(write.done) == 1


async def test_one_that_goes_to_and_fro_is_written_at_once_a_few_times_only(write):
    """Each flip is a transition; a minute of them, ten a second."""
    up, down = status(STEADY), status({**STEADY, "Ready": (FALSE, "EngineStalled")})
    before, waits = None, []
    for tenth in range(600):
        now = up if before is down else down
        wait = await write(before, now, 100.0 + tenth / 10)
        if wait is None:
            before = now
        else:
            waits.append(wait)
    assert len(write.done) == pytest.approx(10 + 60 / WRITE_INTERVAL_SECONDS, abs=2)
    assert all(0 < wait <= WRITE_INTERVAL_SECONDS for wait in waits)
    assert await write(before, up if before is down else down, 1000.0) is None, "calm again: at once"

"""Report streams of frontends: the same rules as for workers, with the model of a frontend's report."""

import json

import pytest

from tests.unit.operator.reports.stream_worker import OWNER, SINCE, TARGET, WIRE, changed, until
from vllmendpoint_operator.reports.state import ReportTarget
from vllmendpoint_operator.reports.streams import parse_frontend

FRONTEND = ReportTarget("u", "127.0.0.1", OWNER, is_frontend=True)
ROUTE = {
    "instanceId": "7",
    "namespace": "n",
    "state": "Answered",
    "since": SINCE,
    "lastAnswer": SINCE,
}
REPORT = {
    "workerVersion": "1",
    "podUid": "u",
    "time": SINCE,
    "ready": True,
    "stage": {"name": "Serving", "since": SINCE},
    "answering": True,
    "accepted": [{"namespace": "n", "role": "aggregated", "workers": 1}],
    "routes": [ROUTE],
}


@pytest.fixture
async def frontend_streams(streams):
    """The stream to ``worker``, which is a frontend."""
    streams.sync_targets(OWNER, [FRONTEND])
    return streams


async def test_the_report_of_a_frontend_is_in_the_state_of_its_stream(worker, frontend_streams):
    await worker.lines.put(REPORT)
    await until(lambda: frontend_streams.state(OWNER, "u").connected)
    state = frontend_streams.state(OWNER, "u")
    assert state.report is None
    assert state.frontend.routes[0].instance_id == "7"


async def test_the_component_of_the_pod_decides_which_report_is_expected(worker, frontend_streams):
    """A frontend must not affect the workers' status, and a worker must not report routes."""
    worker.greeting = json.dumps(WIRE).encode() + b"\n"
    await worker.lines.put(None)
    await until(lambda: frontend_streams.state(OWNER, "u").frontend is not None)
    assert not frontend_streams.state(OWNER, "u").frontend.routes
    frontend_streams.sync_targets(OWNER, [TARGET])
    worker.greeting = json.dumps(REPORT).encode() + b"\n"
    await worker.lines.put(None)
    await until(lambda: "malformed report" in frontend_streams.state(OWNER, "u").error)
    assert frontend_streams.state(OWNER, "u").report is None


async def test_the_times_of_answers_do_not_cause_a_reconcile(worker, frontend_streams):
    await worker.lines.put(REPORT)
    await until(lambda: frontend_streams.state(OWNER, "u").connected)
    later = "2026-01-01T11:50:09Z"
    await worker.lines.put({**REPORT, "routes": [{**ROUTE, "lastAnswer": later}], "time": later})
    await until(
        lambda: frontend_streams.state(OWNER, "u").frontend.routes[0].last_answer.isoformat() != SINCE
    )
    assert len(frontend_streams.changes) == 1


async def test_readiness_and_the_states_of_routes_are_urgent(worker, frontend_streams):
    failing = {**REPORT, "routes": [{**ROUTE, "state": "Failing", "message": "503"}]}
    for wire in (
        REPORT,
        {**REPORT, "models": ["m"]},
        failing,
        {**failing, "routes": [{**failing["routes"][0], "message": "504"}]},
        {**failing, "ready": False},
        {**failing, "ready": False, "answering": False},
        {**failing, "ready": False, "answering": False, "routes": []},
    ):
        count = len(frontend_streams.changes)
        await worker.lines.put(wire)
        await until(lambda count=count: len(frontend_streams.changes) > count)
    urgent = [urgent for _, urgent in frontend_streams.changes]
    assert urgent == [True, False, True, False, True, True, True]


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (changed("podUid", "another", REPORT), "the report is of another pod"),
        (changed("routes", [{**ROUTE, "state": "Splendid"}], REPORT), "routes.0.state: enum"),
        (changed("routes", [{**ROUTE, "instanceId": "7; x"}], REPORT), "routes.0.instanceId"),
        (changed("routes", [ROUTE] * 257, REPORT), "routes: too_long"),
        (changed("message", "x" * 2049, REPORT), "message: string_too_long"),
        (changed("accepted", [{"namespace": "n", "role": "r", "workers": -1}], REPORT), "accepted.0.workers"),
    ],
)
def test_a_malformed_report_of_a_frontend_is_an_error_that_does_not_quote_it(wire, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        parse_frontend(json.dumps(wire).encode(), "u")
    assert "Splendid" not in str(caught.value)


def test_control_characters_in_the_report_of_a_frontend_are_removed():
    wire = changed("routes", [{**ROUTE, "state": "Failing", "message": "a\x1b[31m\nb"}], REPORT)
    assert parse_frontend(json.dumps(wire).encode(), "u").routes[0].message == "a [31m b"

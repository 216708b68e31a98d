"""The frontend's report and readiness, also through the report server."""

import json
import urllib.error
import urllib.request
from dataclasses import replace

from vllmendpoint_api import FrontendReport, RouteState, Stage
from vllmendpoint_worker.frontend.discovery import Discovery, Instance
from vllmendpoint_worker.frontend.probing.routes import Route
from vllmendpoint_worker.frontend.state import FrontendState
from vllmendpoint_worker.serving.report_server import ReportServer

ROUTES = tuple(
    Route(Instance("ns", 2**64 - number), 0.0, 0.0, state=state, last_answer=1.0)
    for number, state in enumerate(RouteState, start=1)
)


def serving() -> FrontendState:
    state = FrontendState(worker_version="1.2", pod_uid="uid")
    state.enter_stage(Stage.SERVING)
    discovery = Discovery(tuple(route.instance for route in ROUTES), ("m",), {"ns": {"aggregated": 2}})
    state.update(started=True, answering=True, reachable=True, message="", discovery=discovery, routes=ROUTES)
    return state


def test_the_report_contains_the_routes_in_order_of_urgency() -> None:
    report = serving().report()
    assert report.ready
    assert [route.state for route in report.routes] == [
        RouteState.FAILING,
        RouteState.NOT_ACCEPTED,
        RouteState.PENDING,
        RouteState.ANSWERED,
    ]
    assert report.routes[0].instance_id == str(2**64 - 4)
    assert [row.wire() for row in report.accepted] == [
        {"namespace": "ns", "role": "aggregated", "workers": 2}
    ]


def test_readiness_requires_the_stage_the_server_and_a_route() -> None:
    state = serving()
    assert state.readiness() == (True, "")
    for change in ({"answering": False}, {"reachable": False}):
        broken = serving()
        broken.update(message="Why.", **change)
        assert broken.readiness() == (False, "Why.")
    state.enter_stage(Stage.STOPPING)
    state.enter_stage(Stage.SERVING)
    assert state.readiness() == (False, "The frontend is shutting down.")


def test_subscribers_learn_changes_but_not_each_probe() -> None:
    state, calls = serving(), []
    state.subscribe(lambda: calls.append(1))
    state.update(routes=tuple(replace(route, last_answer=2.0, failures=1) for route in ROUTES))
    assert calls == []
    state.update(routes=tuple(replace(route, state=RouteState.FAILING) for route in ROUTES))
    assert calls == [1]


def test_a_moment_has_the_same_time_in_each_report() -> None:
    """The wall time of a monotonic moment differs by microseconds at each calculation."""
    state = serving()
    first, second = state.report(), state.report()
    assert first.routes == second.routes
    state.update(routes=tuple(replace(route, since=1.0) for route in ROUTES))
    assert state.report().routes[0].since == first.routes[0].last_answer


def test_many_routes_and_long_words_fit_into_the_report() -> None:
    state = serving()
    routes = tuple(Route(Instance("n" * 300, number), 0.0, 0.0, message="x" * 3000) for number in range(300))
    accepted = {f"{number}": {"r" * 200: 1} for number in range(100)}
    state.update(routes=routes, discovery=Discovery((), ("m" * 200,) * 80, accepted))
    report = state.report()
    assert (len(report.routes), len(report.accepted), len(report.models)) == (256, 64, 64)


def test_the_report_server_serves_a_frontend() -> None:
    state = serving()
    server = ReportServer(state, "127.0.0.1", 0)
    server.start()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    try:
        assert get("/ready") == (200, "ready\n")
        assert get("/started")[0] == get("/live")[0] == 200
        assert FrontendReport.model_validate(json.loads(get("/status")[1])).pod_uid == "uid"
        state.enter_stage(Stage.STOPPING)
        assert get("/ready") == (503, "The frontend is shutting down.\n")
    finally:
        server.stop()

"""Our frontend in front of two of our workers with real engines: probes, a stalled engine, a shutdown."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from vllmendpoint_api import RouteState, Verdict

from .conftest import QUICK, SEPARATE, WorkerProcess, stopped
from .frontend_process import PREFIX, FrontendProcess

pytestmark = pytest.mark.timeout(400)


class Served(NamedTuple):
    frontend: FrontendProcess
    workers: list[WorkerProcess]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, make_worker: Callable[..., WorkerProcess]
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("engines")
    environ = {"DYN_FILE_KV": str(folder / "discovery")}
    workers = []
    for number in (1, 2):
        namespace = {"DYN_NAMESPACE": f"{PREFIX}r{number}", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        worker = make_worker(environ | namespace, SEPARATE)
        worker.settings(QUICK)
        worker.start()
        worker.until_ready()
        workers.append(worker)
    frontend = FrontendProcess(folder, QUICK)
    try:
        frontend.start()
        yield Served(frontend, workers)
    finally:
        frontend.stop()


def states(frontend: FrontendProcess) -> dict[str, RouteState]:
    return {route.instance_id: RouteState(route.state) for route in frontend.report().routes}


def test_both_workers_answer_with_the_tokens_of_their_own_probes(served: Served) -> None:
    ids = [worker.report().instance_id for worker in served.workers]
    expected = dict.fromkeys(ids, RouteState.ANSWERED)
    served.frontend.until(lambda _: states(served.frontend) == expected, 60.0)
    assert served.frontend.report().ready


def test_the_route_to_a_stalled_engine_is_failing_with_the_workers_message(served: Served) -> None:
    worker, other = served.workers
    stalled = worker.report().instance_id
    with stopped(worker.engine_core()):
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 60.0)
        served.frontend.until(lambda _: states(served.frontend).get(stalled) is not RouteState.ANSWERED, 30.0)
        print("the route to the stalled engine:", [str(route) for route in served.frontend.report().routes])
        assert states(served.frontend)[other.report().instance_id] is RouteState.ANSWERED
        assert served.frontend.report().ready
    served.frontend.until(lambda _: states(served.frontend).get(stalled) is RouteState.ANSWERED, 60.0)


def test_a_worker_that_shuts_down_has_no_route(served: Served) -> None:
    gone = served.workers[1].report().instance_id
    served.workers[1].process.terminate()
    served.frontend.until(lambda _: gone not in states(served.frontend), 30.0)
    assert served.frontend.report().ready

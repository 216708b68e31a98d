"""Probes of frontends cost the engine no tokens, whatever the number of frontends; and their CPU.

The engine is idle and probed every PERIOD seconds. Probes of frontends take the place of the worker's own.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.conftest import WorkerProcess
from tests.worker.frontend_process import PREFIX, FrontendProcess
from vllmendpoint_api import RouteState

pytestmark = pytest.mark.timeout(900)
PERIOD = 2
SECONDS = 60.0
_TOKENS = re.compile(r"^vllm:(?:prompt|generation)_tokens_total\{.*\} (\S+)$", re.MULTILINE)
_ANSWERED = re.compile(r'^vllmendpoint_route_probes_total\{outcome="answered"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def discovery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("discovery")


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess], discovery: Path) -> WorkerProcess:
    worker = make_worker({"DYN_FILE_KV": str(discovery), "DYN_NAMESPACE": f"{PREFIX}r"})
    worker.settings({"periodSeconds": PERIOD})
    worker.start()
    worker.until_ready()
    return worker


@pytest.fixture
def start_frontends(
    discovery: Path, worker: WorkerProcess, tmp_path: Path
) -> Iterator[Callable[..., list[FrontendProcess]]]:
    del worker
    started: list[FrontendProcess] = []

    def start(count: int, **health_check: object) -> list[FrontendProcess]:
        for number in range(count):
            folder = tmp_path / f"{len(started)}-{number}"
            folder.mkdir()
            settings = {"periodSeconds": PERIOD, **health_check}
            frontend = FrontendProcess(folder, settings, DYN_FILE_KV=str(discovery))
            started.append(frontend)
            frontend.start()
            frontend.until(lambda report: report.ready, 60.0)
        return started[-count:] if count else []

    yield start
    for frontend in started:
        frontend.stop()


def tokens(worker: WorkerProcess) -> float:
    found = _TOKENS.findall(worker.request("system", "/metrics")[1].decode())
    assert found
    return sum(map(float, found))


def answered(frontends: list[FrontendProcess]) -> float:
    return sum(float(_ANSWERED.findall(f.get("/metrics")[1].decode())[0]) for f in frontends)


def cpu_seconds(frontend: FrontendProcess) -> float:
    fields = Path(f"/proc/{frontend.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_any_number_of_frontends_costs_no_more_tokens(
    worker: WorkerProcess, start_frontends: Callable[..., list[FrontendProcess]]
) -> None:
    used = {}
    for count in (0, 1, 3):
        frontends = start_frontends(count)
        assert all(r.state == RouteState.ANSWERED for f in frontends for r in f.report().routes)
        before, probes = tokens(worker), answered(frontends)
        time.sleep(SECONDS)
        used[count], sent = tokens(worker) - before, answered(frontends) - probes
        print(
            f"\n{count} frontends: {used[count]:.0f} tokens in {SECONDS:g} s, {sent:.0f} probes of frontends"
        )
        assert sent >= 0.8 * count * SECONDS / PERIOD
        for frontend in frontends:
            frontend.stop()
    one_probe = used[0] / (SECONDS / PERIOD)
    assert used[0] > 0
    assert max(used[1], used[3]) <= 1.1 * used[0] + one_probe


def test_probing_costs_a_frontend_little_cpu(
    start_frontends: Callable[..., list[FrontendProcess]],
) -> None:
    """Two frontends at the same time, one of which does not probe."""
    (probing,), (silent,) = start_frontends(1), start_frontends(1, mode="Disabled")
    before = [cpu_seconds(probing), cpu_seconds(silent)]
    time.sleep(SECONDS)
    cost, base = (
        (cpu_seconds(frontend) - was) / SECONDS
        for frontend, was in zip((probing, silent), before, strict=True)
    )
    print(f"\nCPU of a frontend: {cost:.4f} cores with probes every {PERIOD} s, {base:.4f} without")
    assert cost - base < 0.02

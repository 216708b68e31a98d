"""``/invocations`` of the worker compared with vLLM's server: same engine settings, same model, same machine.

Both engines are loaded, and one at a time receives requests. Blocks of requests alternate, and two adjacent
blocks are a pair. The confidence interval of the median ratio is a bootstrap over the pairs, so that drift of
the machine affects both servers, and a disturbance of one block counts once. "Within 5 %" refers to the upper
end of the interval, so the test fails with too few pairs or on a busy machine."""

import contextlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.free_port import free_port
from tests.worker.conftest import ENGINE_ARGUMENTS, LOOPBACK, START_SECONDS, WorkerProcess, wait

pytestmark = pytest.mark.timeout(1800)
FLOAT32 = ["--dtype", "float32"]
"""In bfloat16, vLLM's server crashes with an illegal instruction at its first request on CPUs with AMX."""
PAIRS = 160
MAX_OVERHEAD = 0.05
BODY = {"model": "toy", "prompt": "hello", "max_tokens": 32, "temperature": 0.0, "ignore_eos": True}
Block = Callable[[int], float]
"""Sends one block of requests to a port and returns a measurement, of which less is better."""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[int]:
    """The port of vLLM's server, without the access log, which the worker does not have either."""
    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("DYN_", "VLLM", "SAGEMAKER"))
    }
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    serve = ["-m", "vllm.entrypoints.cli.main", "serve", str(toy_model), *ENGINE_ARGUMENTS, *FLOAT32]
    more = ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    with (
        (folder / "vllm.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, *serve, *more], env=kept | LOOPBACK, stdout=log, stderr=log, cwd=folder
        ) as process,
    ):
        try:
            wait(lambda: serves(port) or process.poll() is not None, START_SECONDS)
            assert process.poll() is None, (folder / "vllm.log").read_text()[-2000:]
            yield port
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def ours(make_worker: Callable[..., WorkerProcess]) -> int:
    worker = make_worker(arguments=FLOAT32)
    worker.settings({})
    worker.start()
    worker.until_ready()
    return worker.ports["http"]


def serves(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return request_seconds(port, 1)[0] > 0
    return False


def request_seconds(port: int, count: int) -> list[float]:
    """Seconds of each of ``count`` sequential requests on one connection."""
    seconds = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.request("POST", "/invocations", json.dumps(BODY), {"content-type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            seconds.append(time.perf_counter() - began)
            assert answer.status == 200, body
            assert json.loads(body)["usage"]["completion_tokens"] == BODY["max_tokens"]
    return seconds


def latency(port: int) -> float:
    """Median seconds of a request, one user."""
    return statistics.median(request_seconds(port, 5))


def seconds_for_eight(port: int) -> float:
    """Seconds of eight users for four requests each: the inverse of throughput."""
    users = [threading.Thread(target=request_seconds, args=(port, 4)) for _ in range(8)]
    began = time.perf_counter()
    for user in users:
        user.start()
    for user in users:
        user.join()
    return time.perf_counter() - began


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median of the ratios, and its 95 % confidence interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(5000))
    return statistics.median(ratios), medians[124], medians[4875]


@pytest.mark.parametrize("block", [latency, seconds_for_eight], ids=["latency-1", "throughput-8"])
def test_invocations_take_at_most_5_percent_longer_than_in_vllms_server(
    ours: int, vllm: int, block: Block
) -> None:
    for port in (ours, vllm, ours, vllm):
        block(port)
    pairs = []
    for number in range(PAIRS):
        if number % 2:
            pairs.append((block(ours), block(vllm)))
        else:
            theirs = block(vllm)
            pairs.append((block(ours), theirs))
    ratio, low, high = interval([mine / theirs for mine, theirs in pairs])
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"\n{block.__doc__}\n  ours {1000 * mine:.1f} ms, vLLM's {1000 * theirs:.1f} ms, medians of {PAIRS} "
        f"blocks; ours / vLLM's {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    )
    assert high < 1 + MAX_OVERHEAD, "not shown to be within 5 %"

"""The cost of HAProxy before Dynamo's HTTP server: time of a response, CPU time per token, memory."""

import asyncio
import http.client
import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.frontend_process import FrontendProcess, PlainWorker
from tests.worker.plain_worker import MODEL

PAIRS = 400
STREAMS = 300
TOKENS = 100
PADDING = 20_000
"""Bytes of a prompt, so that buffers are used."""


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[FrontendProcess]:
    folder = tmp_path_factory.mktemp("proxy")
    worker = PlainWorker(folder, "worker", toy_model, "team_r1")
    frontend = FrontendProcess(folder, {"periodSeconds": 60})
    try:
        worker.start()
        frontend.start()
        frontend.until(lambda report: report.ready, 60.0)
        yield frontend
    finally:
        frontend.stop()
        worker.stop()


def dynamo_port(frontend: FrontendProcess) -> int:
    match = re.search(r"Dynamo's HTTP server: port=(\d+)", frontend.log())
    assert match is not None
    return int(match[1])


def haproxy(frontend: FrontendProcess) -> Path:
    children = Path(f"/proc/{frontend.pid}/task/{frontend.pid}/children").read_text().split()
    (found,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "haproxy\n"]
    return Path("/proc") / found


def cpu_seconds(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(process: Path) -> float:
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_the_time_of_a_response(frontend: FrontendProcess) -> None:
    """``GET /v1/models``, through HAProxy and directly in turn, on kept connections."""
    seconds: dict[int, list[float]] = {frontend.port: [], dynamo_port(frontend): []}
    connections = {port: http.client.HTTPConnection("127.0.0.1", port, timeout=20) for port in seconds}
    for _ in range(PAIRS):
        for port, connection in connections.items():
            began = time.perf_counter()
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
            seconds[port].append(time.perf_counter() - began)
    for connection in connections.values():
        connection.close()
    through, direct = (1e3 * statistics.median(values) for values in seconds.values())
    print(f"\nmedian of {PAIRS}: {through:.3f} ms through HAProxy, {direct:.3f} ms directly")
    assert through < direct + 5.0


async def stream(port: int) -> int:
    """The number of events of one streamed answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {"model": MODEL, "prompt": "hi", "max_tokens": TOKENS, "stream": True, "user": "x" * PADDING}
    )
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body.encode())
    )
    text = await reader.read(-1)
    writer.close()
    return text.count(b"data: {")


def test_the_cost_of_streams(frontend: FrontendProcess) -> None:
    proxy, dynamo = haproxy(frontend), Path(f"/proc/{frontend.pid}")
    before = memory_mib(proxy)
    began = cpu_seconds(proxy), cpu_seconds(dynamo)
    peak: list[float] = []

    async def streams() -> list[int]:
        running = asyncio.gather(*(stream(frontend.port) for _ in range(STREAMS)))
        while not running.done():
            peak.append(memory_mib(proxy))
            await asyncio.sleep(0.5)
        return await running

    counts = asyncio.run(streams())
    assert counts == [TOKENS] * STREAMS
    used = cpu_seconds(proxy) - began[0], cpu_seconds(dynamo) - began[1]
    per_token = [1e6 * seconds / (STREAMS * TOKENS) for seconds in used]
    print(
        f"\n{STREAMS} simultaneous streams, {TOKENS} tokens each: CPU time per token {per_token[0]:.1f} us "
        f"in HAProxy, {per_token[1]:.1f} us in Dynamo; memory of HAProxy {before:.1f} MiB idle, "
        f"{max(peak):.1f} MiB at most"
    )
    assert used[0] < used[1]

"""Memory and CPU of 1,000 report streams, compared with bare connections that only count lines."""

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllmendpoint_operator.reports.state import ReportTarget
from vllmendpoint_operator.reports.streams import ReportStreams

STREAMS = 1_000
HEARTBEATS = 10
MAX_ADDITIONAL_MEGABYTES = 24
"""17 measured. With a protocol of our own instead of aiohttp, it was 7."""
MAX_CPU_RATIO = 6
"""3 measured."""
REPORT = json.loads((Path(__file__).parents[1] / "integration/report.json").read_text()) | {"podUid": "u"}


@pytest.mark.timeout(120)
def test_a_thousand_streams_cost_little_more_than_their_connections() -> None:
    bare, streams = cost("bare"), cost("streams")
    print(f"\n{STREAMS} connections: {bare}; {STREAMS} report streams: {streams}")
    assert streams["megabytes"] - bare["megabytes"] < MAX_ADDITIONAL_MEGABYTES
    assert streams["cpu_seconds"] / bare["cpu_seconds"] < MAX_CPU_RATIO


def cost(variant: str) -> dict[str, float]:
    """Memory growth and CPU of a process that reads HEARTBEATS reports from each of STREAMS servers."""
    command = [sys.executable, "-m", "tests.bench.test_report_streams"]
    with subprocess.Popen([*command, "serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            output = subprocess.run([*command, variant, port], check=True, capture_output=True, text=True)
        finally:
            server.terminate()
    found: dict[str, float] = json.loads(output.stdout)
    return found


async def serve() -> None:
    """Print the port, wait for STREAMS connections, send HEARTBEATS equal reports and a change to each."""
    connected: list[asyncio.StreamWriter] = []
    complete = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connected.append(writer)
        if len(connected) == STREAMS:
            complete.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=STREAMS)
    print(server.sockets[0].getsockname()[1], flush=True)
    await complete.wait()
    changed = REPORT | {"verdict": REPORT["verdict"] | {"state": "Stalled"}}
    for report in [*[REPORT] * HEARTBEATS, changed]:
        line = json.dumps(report).encode() + b"\n"
        for writer in connected:
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        await asyncio.sleep(0.2)
    await asyncio.Event().wait()


class LineCounter(asyncio.Protocol):
    lines = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET / HTTP/1.1\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        LineCounter.lines += data.count(b"}\n")


async def read_bare(port: int) -> None:
    for _ in range(STREAMS):
        await asyncio.get_running_loop().create_connection(LineCounter, "127.0.0.1", port)
    while LineCounter.lines < STREAMS * (HEARTBEATS + 1):
        await asyncio.sleep(0.05)


async def read_streams(port: int) -> None:
    changes = 0

    def on_change(owner: tuple[str, str], urgent: bool) -> None:
        nonlocal changes
        changes += 1

    streams = await open_streams.enter_async_context(ReportStreams(on_change, port=port))
    for number in range(STREAMS):
        owner = ("ns", f"e-{number}")
        streams.sync_targets(owner, [ReportTarget("u", "127.0.0.1", owner)])
    while changes < 2 * STREAMS:  # the first report and the change, not the heartbeats
        await asyncio.sleep(0.05)


open_streams = contextlib.AsyncExitStack()


async def measure(variant: str, port: int) -> None:
    """Print the growth of memory and the CPU time, while the connections are open."""
    megabytes, seconds = resident_megabytes(), time.process_time()
    async with open_streams:
        await {"bare": read_bare, "streams": read_streams}[variant](port)
        used = {
            "megabytes": round(resident_megabytes() - megabytes, 1),
            "cpu_seconds": round(time.process_time() - seconds, 2),
        }
        print(json.dumps(used))


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "serve" else measure(sys.argv[1], int(sys.argv[2])))

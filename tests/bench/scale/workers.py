"""The report ports of all pods, in one process: a listener on all addresses of the pod range.

A worker generates, and a frontend has a route to each worker of its endpoint that was answered at the time of
the report, as with real pods.

``python -m tests.bench.scale.workers --kubeconfig FILE --settings-hash H``. It watches pods to find the pod
of an address. A control server listens on 127.0.0.1:9099:

``GET /streams``             number of open streams, and of streams opened so far
``POST /verdict/POD/V``      set the verdict of the worker POD to V
"""

import argparse
import asyncio
import contextlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vllmendpoint_api import names

from .control_plane import Api

__all__ = ["CONTROL_PORT"]

CONTROL_PORT: Final = 9099
HEARTBEAT_SECONDS: Final = 5.0
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"


class SimulatedWorkers:
    def __init__(self, settings_hash: str) -> None:
        folder = Path(__file__).parents[2] / "integration"
        report = json.loads((folder / "report.json").read_text())
        self._frontend_report = json.loads((folder / "frontend_report.json").read_text())
        report["configuration"]["settingsHash"] = settings_hash
        self._report = report
        self._pods: dict[str, dict[str, str]] = {}
        """Name, UID, component and endpoint of a pod by address."""
        self._workers: dict[str, list[str]] = {}
        """Instance IDs of the workers of an endpoint."""
        self._verdicts: dict[str, str] = {}
        self._changed: dict[str, asyncio.Event] = {}
        """Set when the verdict of a pod changes; by pod name."""
        self._pod_added = asyncio.Event()
        self.open = self.opened = 0

    def add_pod(self, pod: dict[str, str], address: str) -> None:
        if address not in self._pods and pod["component"] == "worker":
            self._workers.setdefault(pod["endpoint"], []).append(_instance(pod))
            for other in self._pods.values():
                if (other["component"], other["endpoint"]) == ("frontend", pod["endpoint"]):
                    self._wake(other["name"])
        self._pods[address] = pod
        self._pod_added.set()
        self._pod_added = asyncio.Event()

    def set_verdict(self, pod: str, verdict: str) -> None:
        self._verdicts[pod] = verdict
        self._wake(pod)

    def _wake(self, pod: str) -> None:
        if pod in self._changed:
            self._changed[pod].set()

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self.open, self.opened = self.open + 1, self.opened + 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            while address not in self._pods:
                await self._pod_added.wait()
            pod = self._pods[address]
            changed = self._changed[pod["name"]] = asyncio.Event()
            writer.write(_HEAD)
            while not writer.is_closing():
                changed.clear()
                writer.write(self._line(pod))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def _line(self, pod: dict[str, str]) -> bytes:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if pod["component"] == "frontend":
            since = self._frontend_report["stage"]["since"]
            routes = [
                {
                    "instanceId": instance,
                    "namespace": "n",
                    "state": "Answered",
                    "since": since,
                    "lastAnswer": now,
                }
                for instance in self._workers.get(pod["endpoint"], [])
            ]
            return _encoded({**self._frontend_report, "podUid": pod["uid"], "time": now, "routes": routes})
        state = self._verdicts.get(pod["name"], "Generating")
        verdict = {"state": state, "since": self._report["verdict"]["since"], "lastProofOfLife": now}
        identity = {"podUid": pod["uid"], "instanceId": _instance(pod)}
        return _encoded({**self._report, **identity, "time": now, "verdict": verdict})

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        if method == "POST":
            _, _, pod, verdict = path.split("/")
            self.set_verdict(pod, verdict)
        body = json.dumps({"open": self.open, "opened": self.opened}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


def _instance(pod: dict[str, str]) -> str:
    """A number of 64 bits, as Dynamo's instance IDs."""
    return str(int(pod["uid"].replace("-", "")[:16], 16))


def _encoded(report: dict[str, Any]) -> bytes:
    return json.dumps(report, separators=(",", ":")).encode() + b"\n"


def _watch_pods(api: Api, workers: SimulatedWorkers, loop: asyncio.AbstractEventLoop) -> None:
    for event in api.watch("/api/v1/pods"):
        pod = event["object"]
        address = pod.get("status", {}).get("podIP")
        labels = pod["metadata"].get("labels", {})
        component = labels.get(names.LABEL_COMPONENT)
        if address and component in ("worker", "frontend"):
            identity = {key: pod["metadata"][key] for key in ("name", "uid")} | {
                "component": component,
                "endpoint": f"{pod['metadata']['namespace']}/{labels[names.LABEL_INSTANCE]}",
            }
            loop.call_soon_threadsafe(workers.add_pod, identity, address)


async def _serve(kubeconfig: Path, settings_hash: str) -> None:
    workers = SimulatedWorkers(settings_hash)
    loop = asyncio.get_running_loop()
    arguments = (Api(kubeconfig), workers, loop)
    threading.Thread(target=_watch_pods, args=arguments, daemon=True).start()
    reports = await asyncio.start_server(workers.stream, "0.0.0.0", names.REPORT_PORT, backlog=8192)
    control = await asyncio.start_server(workers.control, "127.0.0.1", CONTROL_PORT)
    print("ready", flush=True)
    async with reports, control:
        await asyncio.gather(reports.serve_forever(), control.serve_forever())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", type=Path)
    parser.add_argument("--settings-hash")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.kubeconfig, arguments.settings_hash))


if __name__ == "__main__":
    main()

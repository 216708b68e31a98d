"""The measured scenarios, one method each. A method prints nothing and returns its figures by name."""

import concurrent.futures
import json
import statistics
import sys
import time
import urllib.request
from typing import Final

from .control_plane import GROUP, ControlPlane
from .machine import Process, until
from .subjects import SYSTEM, Subject, body, settings_hash
from .timeline import ConditionWatch, Requests, percentile, requests
from .workers import CONTROL_PORT

__all__ = ["Bench", "Figures"]

Figures = dict[str, float]
NAMESPACES: Final = [f"team-{number}" for number in range(10)]


class Bench:
    """One operator on one control plane, initially without endpoints."""

    def __init__(self, plane: ControlPlane, subject: Subject, count: int, *, frontend: bool) -> None:
        self.plane, self.subject, self.count, self.frontend = plane, subject, count, frontend
        self.idle_cpu = 0.1 + count / 20_000
        """CPU seconds per second that count as idle: every worker sends a heartbeat every 5 s."""
        plane.namespaces([SYSTEM, *NAMESPACES])
        workers = plane.start(
            "workers",
            *(sys.executable, "-m", "tests.bench.scale.workers"),
            f"--kubeconfig={plane.kubeconfig}",
            f"--settings-hash={settings_hash()}",
        )
        until(lambda: workers.has_logged("ready"), "the simulated workers listen")
        self.watch = ConditionWatch(plane.api)
        self.operator = self._start()

    def _start(self, number: int = 0) -> Process:
        process = self.subject.start(self.plane, frontend=self.frontend, number=number)
        self.subject.until_working(process, number)
        return process

    def _audit_offset(self) -> int:
        return self.plane.audit.stat().st_size

    def _requests(self, offset: int) -> Requests:
        time.sleep(1)  # the log is written with a delay
        return requests(self.plane.audit, self.subject.agents, offset)

    def without_endpoints(self) -> Figures:
        self.operator.until_idle()
        self.base_memory, _ = self.operator.memory()
        return {"base RSS MB": self.base_memory}

    def burst(self, seconds: float) -> Figures:
        """Create all endpoints simultaneously, until every one is ready."""
        offset, cpu, began = self._audit_offset(), self.operator.cpu(), time.time()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            created = list(pool.map(self._create, range(self.count)))
        created_at = time.time()
        until(lambda: len(self.watch.ready) >= self.count, self._progress, seconds, 0.2)
        until(lambda: time.time() - self.watch.changed > 2, "no status changes any more", 60, 0.2)
        now, peak = self.operator.memory()
        used = self.operator.cpu() - cpu
        found = self._requests(offset)
        written = [max(moments) - began for moments in found.child_writes.values()]
        ready = [moment - began for moment in self.watch.ready.values()]
        self.burst_requests = found
        return {
            "created s": created_at - began,
            "children each": sum(map(len, found.child_writes.values())) / len(created),
            "child p50 s": percentile(written, 0.5),
            "child p99 s": percentile(written, 0.99),
            "ready p50 s": percentile(ready, 0.5),
            "ready p99 s": percentile(ready, 0.99),
            "settled s": max(*ready, found.last_write - began),
            "writes each": (found.writes - found.events) / self.count,
            "Events each": found.events / self.count,
            "reads each": found.reads / self.count,
            "CPU ms each": 1000 * used / self.count,
            "CPU ms a write": 1000 * used / found.writes,
            "RSS MB": now,
            "peak RSS MB": peak,
            "RSS MB per 1000": (now - self.base_memory) * 1000 / self.count,
        }

    def _create(self, number: int) -> str:
        namespace, name = NAMESPACES[number % len(NAMESPACES)], f"e-{number:05d}"
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{namespace}/vllmendpoints"
        self.plane.api.call("POST", path, body(namespace, name, frontend=self.frontend))
        return name

    def _progress(self) -> str:
        return f"{len(self.watch.ready)} of {self.count} are ready"

    def rest(self, seconds: float) -> Figures:
        """No changes; every worker sends its heartbeats."""
        self.operator.until_idle(max_cpu=self.idle_cpu)
        offset, cpu, began = self._audit_offset(), self.operator.cpu(), time.monotonic()
        time.sleep(seconds)
        used, passed = self.operator.cpu() - cpu, time.monotonic() - began
        found = self._requests(offset)
        now, _ = self.operator.memory()
        return {
            "rest writes": found.writes,
            "rest reads": found.reads,
            "rest CPU s a minute": used * 60 / passed,
            "rest RSS MB": now,
            "rest RSS MB per 1000": (now - self.base_memory) * 1000 / self.count,
        }

    def stop(self) -> Figures:
        return {"stop s": self.operator.stop()}

    def restart(self, times: int = 3) -> Figures:
        """From the start of the process until it is idle and has reconciled every endpoint. The median of
        several restarts, because the API server collects garbage in some. Memory, writes and reads are of the
        last one."""
        listed, idle, cpu = [], [], []
        for number in range(times):
            if number:
                self.operator.stop()
            offset = self._audit_offset()
            self.operator = self._start()
            listed.append(time.monotonic() - self.operator.started)
            idle.append(self.operator.until_idle(max_cpu=self.idle_cpu))
            cpu.append(self.operator.cpu())
            until(lambda: self.subject.reconciles() >= self.count, "every endpoint was reconciled", 60, 1)
        found = self._requests(offset)
        now, peak = self.operator.memory()
        return {
            "restart listed s": statistics.median(listed),
            "restart idle s": statistics.median(idle),
            "restart idle max s": max(idle),
            "restart CPU s": statistics.median(cpu),
            "restart writes": found.writes,
            "restart reads": found.reads,
            "restart RSS MB": now,
            "restart peak RSS MB": peak,
            "restart RSS MB per 1000": (now - self.base_memory) * 1000 / self.count,
        }

    def stalls(self, times: int = 10) -> Figures:
        """One worker stalls: until its endpoint reports it, and after it recovers, until the endpoint is
        Ready."""
        pods = self.plane.api.call("GET", "/api/v1/pods?labelSelector=app.kubernetes.io/component=worker")
        stalled, recovered = [], []
        for number in range(times):
            pod = pods["items"][number * len(pods["items"]) // times]["metadata"]
            endpoint = pod["labels"]["app.kubernetes.io/instance"]
            stalled.append(self._set_verdict(pod["name"], "Stalled", endpoint, "False"))
            recovered.append(self._set_verdict(pod["name"], "Generating", endpoint, "True"))
        return {
            "stall p50 s": statistics.median(stalled),
            "stall max s": max(stalled),
            "recovery max s": max(recovered),
        }

    def _set_verdict(self, pod: str, verdict: str, endpoint: str, ready: str) -> float:
        """Seconds until the Ready condition of the endpoint has the status ``ready``."""
        began = time.monotonic()
        _control("POST", f"/verdict/{pod}/{verdict}")

        def is_reported() -> bool:
            return self.watch.conditions[endpoint].get("Ready", ("", ""))[0] == ready

        until(is_reported, f"{endpoint} reports {verdict}", 30, 0.005)
        return time.monotonic() - began

    def failover(self) -> Figures:
        """The leader stops while a second operator waits: seconds until all streams are open again, and
        writes."""
        standby = self.subject.start(self.plane, frontend=self.frontend, number=1)
        until(lambda: standby.has_logged("waiting for the lease"), "the second operator waits")
        time.sleep(2)
        offset, opened, cpu = self._audit_offset(), _control()["opened"], standby.cpu()
        stopped = self.operator.stop()
        began = time.monotonic()
        streams = self.count * (2 if self.frontend else 1)
        until(lambda: _control()["opened"] >= opened + streams, "all streams are open again", 60)
        connected = time.monotonic() - began
        standby.until_idle(max_cpu=self.idle_cpu)
        used = standby.cpu() - cpu
        self.operator = standby
        return {
            "failover stop s": stopped,
            "failover streams s": connected,
            "failover CPU s": used,
            "failover writes": self._requests(offset).writes,
        }


def _control(method: str = "GET", path: str = "/streams") -> dict[str, int]:
    request = urllib.request.Request(f"http://127.0.0.1:{CONTROL_PORT}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, int] = json.load(answer)
    return found

"""What is measured, one function a question. Each prints nothing and returns its figures by name."""

import concurrent.futures
import json
import statistics
import sys
import time
import urllib.request
from typing import Final

from .machine import Process, until
from .plane import GROUP, Plane
from .subjects import SYSTEM, Subject, body, settings_hash
from .timeline import Requests, Watch, percentile, requests
from .workers import CONTROL_PORT

__all__ = ["Bench", "Figures"]

Figures = dict[str, float]
NAMESPACES: Final = [f"team-{number}" for number in range(10)]


class Bench:
    """One operator on one control plane, empty at first."""

    def __init__(self, plane: Plane, subject: Subject, count: int, *, frontend: bool) -> None:
        self.plane, self.subject, self.count, self.frontend = plane, subject, count, frontend
        self.calm = 0.1 + count / 20_000
        """CPU seconds in a second that count as quiet: every worker sends a heartbeat every 5 s."""
        plane.namespaces([SYSTEM, *NAMESPACES])
        workers = plane.start(
            "workers",
            *(sys.executable, "-m", "tests.bench.scale.workers"),
            f"--kubeconfig={plane.kubeconfig}",
            f"--settings-hash={settings_hash()}",
        )
        until(lambda: workers.said("ready"), "the simulated workers listen")
        self.watch = Watch(plane.api)
        self.operator = self._start()

    def _start(self, number: int = 0) -> Process:
        process = self.subject.start(self.plane, frontend=self.frontend, number=number)
        self.subject.working(process, number)
        return process

    def _mark(self) -> int:
        return self.plane.audit.stat().st_size

    def _requests(self, mark: int) -> Requests:
        time.sleep(1)  # the log is written behind
        return requests(self.plane.audit, self.subject.agents, mark)

    def base(self) -> Figures:
        """Without any endpoint."""
        self.operator.quiet()
        self.base_memory, _ = self.operator.memory()
        return {"base RSS MB": self.base_memory}

    def burst(self, seconds: float) -> Figures:
        """All endpoints at once, until every one is ready."""
        mark, cpu, began = self._mark(), self.operator.cpu(), time.time()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            created = list(pool.map(self._create, range(self.count)))
        created_at = time.time()
        until(lambda: len(self.watch.ready) >= self.count, self._progress, seconds, 0.2)
        until(lambda: time.time() - self.watch.changed > 2, "no status changes any more", 60, 0.2)
        now, peak = self.operator.memory()
        used = self.operator.cpu() - cpu
        found = self._requests(mark)
        made = [max(moments) - began for moments in found.made.values()]
        ready = [moment - began for moment in self.watch.ready.values()]
        self.last = found
        return {
            "created s": created_at - began,
            "children each": sum(map(len, found.made.values())) / len(created),
            "child p50 s": percentile(made, 0.5),
            "child p99 s": percentile(made, 0.99),
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
        """Nothing happens, but that every worker sends its heartbeats."""
        self.operator.quiet(most=self.calm)
        mark, cpu, began = self._mark(), self.operator.cpu(), time.monotonic()
        time.sleep(seconds)
        used, passed = self.operator.cpu() - cpu, time.monotonic() - began
        found = self._requests(mark)
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
        """From the process's start until it uses no CPU any more, with every endpoint looked at: the median,
        since in some the API server collects its garbage. Memory, writes and reads are the last one's.
        """
        listed, quiet, cpu = [], [], []
        for number in range(times):
            if number:
                self.operator.stop()
            mark = self._mark()
            self.operator = self._start()
            listed.append(time.monotonic() - self.operator.started)
            quiet.append(self.operator.quiet(most=self.calm))
            cpu.append(self.operator.cpu())
            until(lambda: self.subject.reconciles() >= self.count, "every endpoint was looked at", 60, 1)
        found = self._requests(mark)
        now, peak = self.operator.memory()
        return {
            "restart listed s": statistics.median(listed),
            "restart quiet s": statistics.median(quiet),
            "restart quiet most s": max(quiet),
            "restart CPU s": statistics.median(cpu),
            "restart writes": found.writes,
            "restart reads": found.reads,
            "restart RSS MB": now,
            "restart peak RSS MB": peak,
            "restart RSS MB per 1000": (now - self.base_memory) * 1000 / self.count,
        }

    def stalls(self, times: int = 10) -> Figures:
        """One of all workers stalls: until its endpoint says so, and until it is mended."""
        pods = self.plane.api.call("GET", "/api/v1/pods?labelSelector=app.kubernetes.io/component=worker")
        noticed, mended = [], []
        for number in range(times):
            pod = pods["items"][number * len(pods["items"]) // times]["metadata"]
            endpoint = pod["labels"]["app.kubernetes.io/instance"]
            noticed.append(self._say(pod["name"], "Stalled", endpoint, "False"))
            mended.append(self._say(pod["name"], "Generating", endpoint, "True"))
        return {
            "stall noticed p50 s": statistics.median(noticed),
            "stall noticed most s": max(noticed),
            "mended noticed most s": max(mended),
        }

    def _say(self, pod: str, verdict: str, endpoint: str, wanted: str) -> float:
        began = time.monotonic()
        _control("POST", f"/say/{pod}/{verdict}")

        def told() -> bool:
            return self.watch.conditions[endpoint].get("Ready", ("", ""))[0] == wanted

        until(told, f"{endpoint} is told to be {verdict}", 30, 0.005)
        return time.monotonic() - began

    def failover(self) -> Figures:
        """A second one waits, the first is asked to end: until all streams stand again; what is written."""
        standby = self.subject.start(self.plane, frontend=self.frontend, number=1)
        until(lambda: standby.said("waiting for the lease"), "the second one waits")
        time.sleep(2)
        mark, opened, cpu = self._mark(), _control()["opened"], standby.cpu()
        stopped = self.operator.stop()
        began = time.monotonic()
        until(lambda: _control()["opened"] >= opened + self.count, "all streams stand again", 60)
        connected = time.monotonic() - began
        standby.quiet(most=self.calm)
        used = standby.cpu() - cpu
        self.operator = standby
        return {
            "failover stop s": stopped,
            "failover streams s": connected,
            "failover CPU s": used,
            "failover writes": self._requests(mark).writes,
        }


def _control(method: str = "GET", path: str = "/streams") -> dict[str, int]:
    request = urllib.request.Request(f"http://127.0.0.1:{CONTROL_PORT}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, int] = json.load(answer)
    return found

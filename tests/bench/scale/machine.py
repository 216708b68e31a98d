"""Resources of the machine: a network namespace for the benchmark, and processes with their cost from
/proc."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["POD_RANGE", "Process", "enter_network_namespace", "until"]

POD_RANGE: Final = "10.244.0.0/16"
"""Inside the namespace, the whole range is local: one listener is the report port of every pod. An
EndpointSlice rejects loopback addresses."""
_INSIDE: Final = "VLLMENDPOINT_BENCH_NETWORK"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def enter_network_namespace(module: str, arguments: Sequence[str]) -> None:
    """Run ``python -m module arguments`` again in a new network namespace; returns only inside of it."""
    if _INSIDE in os.environ:
        for command in ("link set lo up", f"route add local {POD_RANGE} dev lo"):
            subprocess.run(["ip", *command.split()], check=True)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", module, *arguments])


def until(check: Callable[[], Any], what: object, seconds: float = 60.0, every: float = 0.05) -> Any:
    """Poll until ``check`` returns a true value, and return it. ``what``: a text or a function for the
    error."""
    end = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what() if callable(what) else what}")
        time.sleep(every)
    return found


class Process:
    """A child process with its log file, CPU seconds and memory."""

    def __init__(self, command: Sequence[str | Path], log: Path, **environment: str) -> None:
        self.log = log
        self._name = str(command[0])
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **environment},
            )
        self.pid = self._process.pid
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def has_logged(self, text: str) -> bool:
        if not self.running:
            raise RuntimeError(f"{self._name} ended: {self.log.read_text()[-2000:]}")
        return text in self.log.read_text()

    def cpu(self) -> float:
        """CPU seconds used since the start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> tuple[float, float]:
        """Resident MB: current and peak."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
        )
        now, peak = (int(status[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
        return now, peak

    def until_idle(self, seconds: float = 300.0, window: float = 1.0, max_cpu: float = 0.1) -> float:
        """Wait for a window of ``window`` seconds with at most ``max_cpu`` CPU seconds. Returns the start of
        the window, in seconds since the start of the process."""
        samples = [(time.monotonic(), self.cpu())]

        def idle_since() -> float | None:
            now = (time.monotonic(), self.cpu())
            samples.append(now)
            before = [sample for sample in samples if sample[0] <= now[0] - window]
            if before and now[1] - before[-1][1] <= max_cpu:
                return before[-1][0]
            return None

        return float(until(idle_since, "the process is idle", seconds)) - self.started

    def stop(self, seconds: float = 30.0) -> float:
        """Send SIGTERM; returns the seconds until the process ended."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        took = time.monotonic() - began
        self.kill()
        return took

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

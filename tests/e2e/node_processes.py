"""Processes in a test's pods, as this machine sees them: it runs the local cluster's containers.

PID 1 of a container ignores SIGKILL and SIGSTOP that are sent from inside of the container.
"""

import os
import signal
from pathlib import Path

__all__ = ["python_process", "signal_python"]

PROC = Path("/proc")


def python_process(namespace: str, pod: str, *modules: str) -> int:
    """PID of the process of this pod that runs one of these modules with ``python3 -m``.

    The pod's environment identifies it: the variables POD_NAMESPACE and POD_NAME. Raises AssertionError
    without such a process.
    """
    identity = {f"POD_NAMESPACE={namespace}".encode(), f"POD_NAME={pod}".encode()}
    for folder in PROC.glob("[0-9]*"):
        try:
            environment = set((folder / "environ").read_bytes().split(b"\0"))
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if identity <= environment and _runs(command, modules):
            return int(folder.name)
    raise AssertionError(f"no process of pod {namespace}/{pod} runs {' or '.join(modules)}")


def _runs(command: list[bytes], modules: tuple[str, ...]) -> bool:
    match [part.decode(errors="replace") for part in command]:
        case [program, "-m", module, *_]:
            return Path(program).name.startswith("python") and module in modules
    return False


def signal_python(number: signal.Signals, namespace: str, pod: str, *modules: str) -> None:
    """Send a signal to the process that ``python_process`` finds."""
    process = python_process(namespace, pod, *modules)
    descriptor = os.pidfd_open(process)
    try:
        # The PID may have been reused before the descriptor was opened, but not afterwards.
        assert python_process(namespace, pod, *modules) == process
        signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)

"""A process of a pod is found by the pod's namespace, its name and its module, and only this process."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.e2e.node_processes import python_process, signal_python


@contextmanager
def running(*command, namespace="ns", pod="worker-1"):
    environment = os.environ | {"POD_NAMESPACE": namespace, "POD_NAME": pod}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def module(**pod):
    return running(sys.executable, "-m", "code", "-q", **pod)


def test_the_process_of_the_pod_is_found():
    with module() as process:
        assert python_process("ns", "worker-1", "other", "code") == process.pid


@pytest.mark.parametrize(
    ("pod", "modules"),
    [
        ({"namespace": "another"}, ["code"]),
        ({"pod": "worker-10"}, ["code"]),
        ({}, ["cod"]),
        ({}, ["other"]),
    ],
)
def test_a_process_of_another_pod_or_module_is_not_found(pod, modules):
    with module(**pod), pytest.raises(AssertionError, match="no process of pod ns/worker-1"):
        python_process("ns", "worker-1", *modules)


def test_a_parent_that_only_passes_the_module_on_is_not_found():
    """As tini, whose arguments contain those of the worker."""
    with running("sh", "-c", "read line", "python3", "-m", "code"), pytest.raises(AssertionError):
        python_process("ns", "worker-1", "code")


def test_the_signal_reaches_the_process():
    with module() as process:
        signal_python(signal.SIGKILL, "ns", "worker-1", "code")
        assert process.wait(10) == -signal.SIGKILL

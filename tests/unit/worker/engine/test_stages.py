"""Stages from a real child process over a real Unix socket."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vllmendpoint_api import Stage
from vllmendpoint_worker.engine.stages import ENV_STAGE_SOCKET, StageReceiver, stage_of

CHILD = """
import logging, sys
from vllmendpoint_worker.engine.stages import install
install(); install()
log = logging.getLogger("vllm.worker"); logging.getLogger("vllm").setLevel(logging.INFO)
log.info("Starting to load model %s...", "x")
log.info("nothing of interest")
log.info("GPU KV cache size: %s tokens", "1")
"""


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("Initializing a V1 LLM engine (v%s) with config: %s", Stage.STARTING_ENGINE),
        ("Starting to load model %s...", Stage.LOADING_WEIGHTS),
        ("torch.compile takes %.2f s in total", Stage.COMPILING),
        ("CPU KV cache size: 65,536 tokens, Maximum concurrency", Stage.ALLOCATING_CACHE),
        ("Using max model len 512", None),
    ],
)
def test_log_lines_of_vllm_map_to_stages(line: str, stage: Stage | None) -> None:
    assert stage_of(line) is stage


def test_a_child_process_sends_its_stages() -> None:
    seen: list[Stage] = []
    receiver = StageReceiver(seen.append)
    receiver.start()
    try:
        environ = {ENV_STAGE_SOCKET: receiver.address, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", CHILD], env=environ, check=True, timeout=30)
        deadline = time.monotonic() + 5
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        receiver.stop()
    assert seen == [Stage.LOADING_WEIGHTS, Stage.ALLOCATING_CACHE]
    assert not Path(receiver.address.partition(":")[2]).exists()


def test_the_plugin_does_nothing_outside_a_worker() -> None:
    subprocess.run(
        [sys.executable, "-c", CHILD], env={"PYTHONPATH": ":".join(sys.path)}, check=True, timeout=30
    )


def test_a_child_process_exits_with_its_parent(tmp_path: Path) -> None:
    child = (
        "from vllmendpoint_worker.engine.stages import install; install()\n"
        "import time; print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(60)"
    )
    environ = {ENV_STAGE_SOCKET: f"1:{tmp_path}/none", "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", parent], env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        deadline = time.monotonic() + 20
        while not ended(pid):
            assert time.monotonic() < deadline, "the child process did not exit with its parent"
            time.sleep(0.02)


def test_a_child_process_exits_if_its_parent_has_already_exited(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import multiprocessing, os, pathlib, time\n"
        "from vllmendpoint_worker.engine.stages import install\n"
        "def child():\n"
        "    pathlib.Path('up').write_text(str(os.getpid()))\n"
        "    while os.getppid() == multiprocessing.parent_process().pid:\n"
        "        time.sleep(0.01)\n"
        "    install()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=child).start()\n"
        "    time.sleep(60)\n"
    )
    environ = {ENV_STAGE_SOCKET: f"1:{tmp_path}/none", "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "late.py"], env=environ, cwd=tmp_path) as process:
        up = tmp_path / "up"
        wait(lambda: up.exists() and up.read_text())
        process.kill()
    pid = int(up.read_text())
    wait(lambda: ended(pid))


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)

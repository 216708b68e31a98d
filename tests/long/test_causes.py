"""The cause of a worker's termination in one sentence, from a real engine and from a failing hub."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.e2e.conftest import Cluster, eventually, manifest
from tests.worker.conftest import START_SECONDS, WorkerProcess


def last_message(worker: WorkerProcess) -> str:
    """The worker's last log line, which in a pod is the termination message."""
    return worker.log_lines()[-1].partition(": ")[2]


def test_the_last_message_states_that_the_cache_is_too_small(tmp_path: Path, toy_model: Path) -> None:
    """The engine core raises the error in a separate process."""
    worker = WorkerProcess(tmp_path, toy_model, arguments=["--kv-cache-memory-bytes", "524288"])
    worker.start()
    try:
        assert worker.exit_code(START_SECONDS) == 1
        message = last_message(worker)
        assert message.startswith("The engine failed: ValueError: To serve at least one request"), (
            worker.log()
        )
        assert "max seq len (1024)" in message
        assert "max_model_len" in message, "the remedy"
    finally:
        worker.stop()


def test_the_condition_states_that_the_cache_is_too_small(cluster: Cluster) -> None:
    args = ["--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", "524288"]
    cluster.apply(manifest("no-room", engine={"args": args}, frontend={"mode": "None"}))
    found = eventually(
        lambda: cluster.condition("no-room", "Available"), lambda c: c["reason"] == "CrashLooping", 240
    )
    for part in (
        "exit code 1",
        "Its last message was: The engine failed: ValueError: To serve at least one",
        "(1024)",
    ):
        assert part in found["message"]
    assert cluster.condition("no-room", "Ready")["status"] == "False"


@contextmanager
def failing_hub(status: int) -> Iterator[str]:
    """The URL of a hub that responds to every request with ``status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_last_message_states_that_the_model_is_gated(tmp_path: Path) -> None:
    with failing_hub(403) as url:
        environ = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_s3cret"}
        worker = WorkerProcess(tmp_path, Path("team/gated"), environ | {"HF_HUB_OFFLINE": "0"})
        worker.start()
        try:
            assert worker.exit_code(START_SECONDS) == 1
            message = last_message(worker)
            assert message.startswith(
                "ModelDownloadFailed: the model 'team/gated' cannot be downloaded: http://"
            )
            assert "answered 403 Forbidden. The model is gated or private" in message
            assert "s3cret" not in worker.log()
        finally:
            worker.stop()

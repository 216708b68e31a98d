"""What ended a worker, told in one sentence: a real engine, and a hub on loopback that refuses."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.e2e.conftest import Cluster, eventually, manifest
from tests.worker.conftest import START_SECONDS, WorkerProcess


def last_words(worker: WorkerProcess) -> str:
    """What goes to the termination message, where there is one: the worker's last line."""
    return worker.log_lines()[-1].partition(": ")[2]


def test_a_cache_too_small_for_the_context(tmp_path: Path, toy_model: Path) -> None:
    """The engine core raises it, in a process of its own."""
    worker = WorkerProcess(tmp_path, toy_model, arguments=["--kv-cache-memory-bytes", "524288"])
    worker.start()
    try:
        assert worker.exit_code(START_SECONDS) == 1
        said = last_words(worker)
        assert said.startswith("The engine failed: ValueError: To serve at least one request"), worker.log()
        assert "max seq len (1024)" in said
        assert "max_model_len" in said, "what to do"
    finally:
        worker.stop()


def test_it_is_in_the_status(cluster: Cluster) -> None:
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
def hub(status: int) -> Iterator[str]:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_gated_model(tmp_path: Path) -> None:
    with hub(403) as url:
        environ = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_s3cret"}
        worker = WorkerProcess(tmp_path, Path("team/gated"), environ | {"HF_HUB_OFFLINE": "0"})
        worker.start()
        try:
            assert worker.exit_code(START_SECONDS) == 1
            said = last_words(worker)
            assert said.startswith(
                "ModelDownloadFailed: the model 'team/gated' cannot be downloaded: http://"
            )
            assert "answered 403 Forbidden. The model is gated or private" in said
            assert "s3cret" not in worker.log()
        finally:
            worker.stop()

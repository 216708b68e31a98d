"""The Quick Start of the guide, up to a container that serves; and ``model.artifactsUri``.

S3 is a real server (hack/s3). A fake SageMaker API accepts ``CreateModel``, and the test does what SageMaker
does: it copies the model data to ``/opt/ml/model`` and runs ``serve`` with only the environment of
``PrimaryContainer``. The container runs in its own network and mount namespace, because the ports are fixed.
"""

import concurrent.futures
import contextlib
import ctypes
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import SECRET_KEY, client, object_store
from tests.worker.conftest import ROOT, START_SECONDS, WorkerProcess
from vllmendpoint_api import ConfigurationState, HandlerSource, Stage

pytestmark = pytest.mark.timeout(300)
GUIDE = ROOT / "tests" / "guide"
MODEL_DATA = Path("/opt/ml/model")
CLONE_NEWNET = 0x40000000
Make = Callable[..., WorkerProcess]

# An engine for two cores without a GPU, configured with SageMaker's variables.
SMALL_ENGINE = {
    "SM_VLLM_ENFORCE_EAGER": "true",
    "SM_VLLM_MAX_MODEL_LEN": "1024",
    "SM_VLLM_MAX_NUM_SEQS": "8",
    "SM_VLLM_KV_CACHE_MEMORY_BYTES": "67108864",
    "SM_VLLM_DISTRIBUTED_EXECUTOR_BACKEND": "uni",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
IMAGE = {  # the environment of the Dockerfile
    "HOME": "/tmp", "USER": "worker", "PYTHONUNBUFFERED": "1", "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1", "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"],
}  # fmt: skip
CONTAINER = """
ip link set lo up
ip link add eth0 type veth peer name outside
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip link set outside up
mount --bind "$1" /opt/ml/model
shift
exec "$@"
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a client."""
    with object_store(tmp_path_factory.mktemp("s3")) as environ:
        yield environ


@pytest.fixture
def sagemaker() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of an API that accepts CreateModel, and the requests that it received."""
    requests: list[dict[str, Any]] = []

    class Api(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append({"target": self.headers["x-amz-target"], **body})
            answer = json.dumps({"ModelArn": f"arn:aws:sagemaker:::model/{body['ModelName']}"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = http.server.HTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture
def mount_point() -> Iterator[None]:
    """Creates /opt/ml/model as a mount point, and afterwards removes the folders that it created."""
    made = [path for path in (MODEL_DATA, *MODEL_DATA.parents) if not path.exists()]
    MODEL_DATA.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            path.rmdir()


class Container(WorkerProcess):
    """The worker in its own namespaces, with the ports of the guide."""

    def __init__(self, folder: Path, model_data: Path, environ: dict[str, str]) -> None:
        super().__init__(folder, Path("unused"))
        self.environ = IMAGE | environ
        self.ports = {"http": 8080, "system": 8082, "report": 9091}
        self._model_data = model_data

    def start(self) -> None:
        namespaces = [
            "unshare",
            "--net",
            "--mount",
            "--",
            "sh",
            "-ec",
            CONTAINER,
            "sh",
            str(self._model_data),
        ]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*namespaces, sys.executable, "-m", "vllmendpoint_worker", "serve"],
                env=self.environ, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        self.started_at = time.monotonic()

    def request(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """Send the request from a thread in the container's network namespace."""

        def inside() -> tuple[int, bytes]:
            with Path(f"/proc/{self.pid}/ns/net").open() as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
            return super(Container, self).request(*args, **kwargs)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(inside).result()


def test_the_quick_start_of_the_guide_starts_a_container_that_serves(
    s3: dict[str, str],
    sagemaker: tuple[str, list[dict[str, Any]]],
    toy_model: Path,
    mount_point: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Steps 1 to 3 of the guide, with its code.
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", sagemaker[0])
    monkeypatch.chdir(tmp_path)
    client(s3).create_bucket(Bucket="my-bucket")
    (tmp_path / "model.py").write_text((GUIDE / "quick_start.py").read_text())
    names: dict[str, Any] = {"account_id": "123456789012", "region": "us-east-1"}
    for step in ("upload.py", "create_model.py"):
        exec((GUIDE / step).read_text(), names)
    (request,) = sagemaker[1]
    assert request["target"] == "SageMaker.CreateModel"
    primary = request["PrimaryContainer"]
    assert set(primary["Environment"]) == {
        "SM_VLLM_MODEL",
        "HUGGING_FACE_HUB_TOKEN",
        "CUSTOM_SCRIPT_FILENAME",
    }

    # The part of SageMaker: the data of S3DataSource in /opt/ml/model, the environment, `serve`.
    source = primary["ModelDataSource"]["S3DataSource"]
    bucket, _, prefix = source["S3Uri"].removeprefix("s3://").partition("/")
    data = tmp_path / "model-data"
    data.mkdir()
    for found in client(s3).list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        client(s3).download_file(bucket, found["Key"], str(data / found["Key"].removeprefix(prefix)))
    environment = primary["Environment"] | {"SM_VLLM_MODEL": str(toy_model)} | SMALL_ENGINE
    container = Container(tmp_path, data, environment)
    try:
        container.start()
        container.until(lambda report: report.ready, START_SECONDS)

        assert json.loads(container.request("http", "/ping")[1]) == {"status": "healthy", "custom": True}
        status, body = container.request("http", "/invocations", {"prompt": "x"})
        assert (status, json.loads(body)) == (200, {"predictions": ["custom response"]})
        report = container.report()
        assert (report.handlers.ping.source, report.handlers.invocations.source) == (
            HandlerSource.DECORATOR,
            HandlerSource.DECORATOR,
        )
        assert report.stage.name == Stage.SERVING
        (model,) = json.loads(container.request("http", "/v1/models")[1])["data"]
        assert (model["id"], model["max_model_len"]) == (str(toy_model), 1024)
        completion = {"model": str(toy_model), "prompt": "a", "max_tokens": 3, "temperature": 0}
        assert container.request("http", "/v1/completions", completion)[0] == 200
        health = until_healthy(container)
        assert json.loads(health)["status"] == "ready"  # the guide's localhost:8082/health
        # Any child but the engine core, whose process title overwrites its environment.
        environs = [Path(f"/proc/{child.pid}/environ").read_bytes() for child in container.children()]
        assert any(b"HF_TOKEN=hf_your_token_here" in each.split(b"\0") for each in environs)
        assert "hf_your_token_here" not in container.log()
        assert "kubernetes" not in container.log().lower()

        os.kill(container.pid, signal.SIGTERM)
        assert container.exit_code(60.0) == 0
    finally:
        container.stop()


def until_healthy(container: WorkerProcess) -> bytes:
    """The body of Dynamo's /health once it returns 200; Dynamo's canary checks every second."""
    deadline = time.monotonic() + 30.0
    while (answer := container.request("system", "/health"))[0] != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer[1]


def test_missing_artifacts_are_reported_and_downloaded_once_they_exist(
    s3: dict[str, str], make_worker: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    worker = make_worker(
        s3 | {"VLLMENDPOINT_ARTIFACTS_URI": "s3://not-yet/my-model/", "SAGEMAKER_MODEL_PATH": str(folder)}
    )
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 20.0)
    report = worker.report()
    (problem,) = report.configuration.problems
    assert (problem.reason, problem.source, problem.field) == (
        "ArtifactsNotFetched",
        "Spec",
        "model.artifactsUri",
    )
    assert "a bucket that does not exist" in problem.message
    assert (report.started, report.ready, report.stage.name) == (True, False, Stage.REJECTED)
    assert worker.status("report", "/started") == 200
    assert worker.status("report", "/ready") == 503

    # The message for a bucket without the data is different.
    client(s3).create_bucket(Bucket="not-yet")
    worker.until(lambda report: "names a prefix without objects" in problem_messages(report), 90.0)
    # Once the data exists, the worker continues and loads the script, which is invalid.
    client(s3).put_object(Bucket="not-yet", Key="my-model/weights/part-1", Body=os.urandom(40_000_000))
    client(s3).put_object(Bucket="not-yet", Key="my-model/model.py", Body=b"def f(:\n")
    worker.until(lambda report: (folder / "model.py").exists(), 90.0)
    assert (folder / "weights" / "part-1").stat().st_size == 40_000_000
    worker.until(lambda report: "model.py line 1" in problem_messages(report), 120.0)
    assert "ArtifactsNotFetched" not in {each.reason for each in worker.report().configuration.problems}
    assert worker.status("report", "/ready") == 503
    for secret in (SECRET_KEY, "key-of-the-test"):
        assert secret not in worker.log() + worker.request("report", "/status")[1].decode()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0


def problem_messages(report: Any) -> str:
    return " ".join(problem.message for problem in report.configuration.problems)


def test_conflicting_options_are_rejected_with_the_names_of_the_parser(make_worker: Make) -> None:
    worker = make_worker({"SM_VLLM_TENSOR_PARALLEL_SIZE": "2"}, ["-tp", "1"])
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 120.0)
    assert problem_messages(worker.report()) == (
        "SM_VLLM_TENSOR_PARALLEL_SIZE differs from engine.args (-tp). Remove one of them, or make them equal."
    )
    with contextlib.suppress(OSError):
        os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0

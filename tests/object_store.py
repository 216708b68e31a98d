"""A real S3 server (hack/s3) on this machine."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from tests.project_cache import BIN

__all__ = ["SECRET_KEY", "client", "object_store"]

ROOT = Path(__file__).parents[1]
SECRET_KEY = "hunter2-of-the-store"


@contextmanager
def object_store(folder: Path, address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Yields the environment variables for boto3. ``folder``: an empty folder for the data."""
    subprocess.run([ROOT / "hack" / "tools.sh", "s3"], timeout=600, check=True)
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    for part in ("buckets", "metadata"):
        (folder / part).mkdir()
    environ = {
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
    }
    program: list[str | Path] = [BIN / "versitygw", "--quiet", "--port", f"{address}:{port}"]
    server = subprocess.Popen(
        [*program, "posix", "--sidecar", folder / "metadata", folder / "buckets"],
        env={"ROOT_ACCESS_KEY": environ["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": SECRET_KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_listening(address, port)
        yield environ
    finally:
        server.terminate()
        server.wait(20)


def client(environ: dict[str, str]) -> Any:
    session = boto3.session.Session(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"])
    return session.client("s3", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name="us-east-1")


def _wait_until_listening(address: str, port: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((address, port), 1.0).close()
        except OSError:
            assert time.monotonic() < end, "the S3 server does not listen"
            time.sleep(0.05)

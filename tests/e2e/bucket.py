"""An S3 store that pods reach: a real server (hack/s3) on this machine."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from .conftest import CACHE, ROOT

__all__ = ["SECRET_KEY", "bucket"]

SECRET_KEY = "hunter2-of-the-bucket"


@contextmanager
def bucket(address: str, folder: Path, name: str, objects: dict[str, str]) -> Iterator[dict[str, str]]:
    """A bucket with objects in it, key -> text. Gives the environment with which it is read."""
    subprocess.run([ROOT / "hack/tools.sh", "s3"], timeout=600, check=True)
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    for part in ("buckets", "metadata"):
        (folder / part).mkdir()
    environment = {
        "AWS_ACCESS_KEY_ID": "key-of-the-bucket",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
    }
    program: list[str | Path] = [CACHE / "bin/versitygw", "--quiet", "--port", f"{address}:{port}"]
    server = subprocess.Popen(
        [*program, "posix", "--sidecar", folder / "metadata", folder / "buckets"],
        env={"ROOT_ACCESS_KEY": environment["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": SECRET_KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _listening(address, port)
        client = boto3.session.Session(environment["AWS_ACCESS_KEY_ID"], SECRET_KEY).client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1"
        )
        client.create_bucket(Bucket=name)
        for key, text in objects.items():
            client.put_object(Bucket=name, Key=key, Body=text.encode())
        client.close()
        yield environment
    finally:
        server.terminate()
        server.wait(20)


def _listening(address: str, port: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((address, port), 1.0).close()
        except OSError:
            assert time.monotonic() < end, "the S3 server does not listen"
            time.sleep(0.05)

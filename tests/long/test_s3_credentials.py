"""Credentials of the pod's service account instead of keys in the environment, with a real S3 server."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.object_store import client, object_store
from vllmendpoint_worker.model_data.s3 import Location, S3Store

TOKEN = "token-of-the-service-account"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dict[str, str]]:
    with object_store(tmp_path) as environ:
        with closing(client(environ)) as writer:
            writer.create_bucket(Bucket="data")
            writer.put_object(Bucket="data", Key="my-model/model.py", Body=b"x = 1\n")
        yield environ


@pytest.fixture
def agent(store: dict[str, str]) -> Iterator[str]:
    """URL of an agent like EKS Pod Identity's, which returns keys to clients with the projected token."""
    keys = {
        "AccessKeyId": store["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": store["AWS_SECRET_ACCESS_KEY"],
        "Token": "",
        "Expiration": "2126-01-01T00:00:00Z",
    }

    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorized = self.headers["Authorization"] == TOKEN
            self.send_response(200 if authorized else 403)
            self.end_headers()
            self.wfile.write(json.dumps(keys if authorized else {}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/credentials"
        server.shutdown()
        thread.join(10)


def test_pod_identity_provides_the_credentials(
    store: dict[str, str], agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, store[name])
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    where = Location.parse("s3://data/my-model/")
    fetcher = S3Store()
    (found,) = fetcher.objects(where)
    fetcher.download(where, found, tmp_path / "model.py", lambda count: None)
    assert (tmp_path / "model.py").read_bytes() == b"x = 1\n"

"""Dynamo's download uses the settings that docs/tasks describes: token, mirror, private CA, proxy."""

import datetime
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FETCH = (
    "import asyncio\n"
    "from dynamo._core import fetch_model\n"
    "async def main():\n"
    "    await fetch_model('o/n', True)\n"
    "asyncio.run(main())\n"
)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A CA, and a server's certificate with its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private CA")])
    now = datetime.datetime.now(datetime.UTC)

    def signed(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *more: tuple[x509.ExtensionType, bool]):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca, server = folder / "ca.crt", folder / "server.pem"
    ca.write_bytes(signed(name, ca_key, (x509.BasicConstraints(ca=True, path_length=None), True)))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("hub.example")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")])
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server.write_bytes(private + signed(subject, key, (names, False)))
    return ca, server


class Hub(ThreadingHTTPServer):
    """A hub that rejects and records every request, and a proxy whose tunnels all lead to the hub."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        requests = self.requests = list[tuple[str, str | None]]()
        self.tunnels: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append((self.path, self.headers.get("Authorization")))
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.ca, server = certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.proxy = socket.create_server(("127.0.0.1", 0))
        for run in (self.serve_forever, self._accept_tunnels):
            threading.Thread(target=run, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Ignores clients that do not know the CA and close the connection."""

    def _accept_tunnels(self) -> None:
        while True:
            try:
                client, _ = self.proxy.accept()
            except OSError:
                return
            self.tunnels.append(client.recv(65_536).split(b"\r\n")[0].decode())
            server = socket.create_connection(self.server_address[:2])
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with source:
            try:
                while data := source.recv(65_536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as running:
        yield running
        running.shutdown()
        running.proxy.close()


def fetch(folder: Path, **env: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and k[:3] != "HF_"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        env={**inherited, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "the-token", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


REQUEST = ("/api/models/o/n/revision/main", "Bearer the-token")


def test_the_token_is_sent_to_a_mirror_with_a_private_ca(hub: Hub, tmp_path: Path) -> None:
    mirror = f"https://localhost:{hub.server_address[1]}"
    output = fetch(tmp_path, HF_ENDPOINT=mirror, SSL_CERT_FILE=str(hub.ca))
    assert hub.requests == [REQUEST]
    assert "403 Forbidden" in output
    hub.requests.clear()
    assert "403" not in fetch(tmp_path, HF_ENDPOINT=mirror)
    assert hub.requests == [], "without the CA the token is not sent"


def test_the_proxy_is_used_except_for_hosts_in_no_proxy(hub: Hub, tmp_path: Path) -> None:
    proxy = f"http://127.0.0.1:{hub.proxy.getsockname()[1]}"
    through = {"SSL_CERT_FILE": str(hub.ca), "HTTPS_PROXY": proxy}
    fetch(tmp_path, HF_ENDPOINT="https://hub.example", **through)
    assert hub.tunnels == ["CONNECT hub.example:443 HTTP/1.1"]
    assert hub.requests == [REQUEST]
    direct = f"https://localhost:{hub.server_address[1]}"
    fetch(tmp_path, HF_ENDPOINT=direct, NO_PROXY="localhost", **through)
    assert len(hub.tunnels) == 1
    assert hub.requests == [REQUEST, REQUEST]

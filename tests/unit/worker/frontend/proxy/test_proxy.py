"""The configuration and the process of HAProxy."""

import subprocess
from pathlib import Path

import pytest

from tests.project_cache import BIN
from vllmendpoint_worker.errors import FrontendError
from vllmendpoint_worker.frontend.proxy import process
from vllmendpoint_worker.frontend.proxy.configuration import Listener, configuration
from vllmendpoint_worker.frontend.proxy.process import Proxy, tls_files

SERVER = ("127.0.0.1", 40000)


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("0.0.0.0", "bind 0.0.0.0:8000"),
        ("::", "bind ipv6@[::]:8000 v4v6"),
        ("[::]", "bind ipv6@[::]:8000 v4v6"),
        ("::1", "bind ipv6@[::1]:8000"),
        ("", "bind *:8000"),
        (" localhost ", "bind localhost:8000"),
    ],
)
def test_haproxy_accepts_each_host_that_dynamo_accepts(host: str, bind: str, tmp_path: Path) -> None:
    text = configuration(Listener(host, 8000), SERVER, tmp_path, 105.0)
    assert f"  {bind}\n" in text
    check(text, tmp_path)


def test_the_address_of_the_server_can_be_ipv6(tmp_path: Path) -> None:
    text = configuration(Listener("::", 8000), ("::1", 40000), tmp_path, 105.0)
    assert "  server dynamo ipv6@[::1]:40000\n" in text
    check(text, tmp_path)


@pytest.mark.parametrize("host", ["a b", "a\nbind :1", "a#b", "a}"])
def test_other_text_is_not_a_host(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an address or a name"):
        configuration(Listener(host, 8000), SERVER, tmp_path, 105.0)


def check(text: str, folder: Path) -> None:
    """HAProxy itself accepts the configuration, without a warning."""
    file = folder / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run(
        [BIN / "haproxy", "-c", "-dW", "-f", file], check=False, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["certificate", "key", "client CA"])
def test_a_tls_file_that_cannot_be_read_is_named(missing: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "client CA")}
    for name, file in files.items():
        if name != missing:
            file.write_text(name)
    with pytest.raises(FrontendError, match=f"cannot be read: .*{missing}.pem: No such file"):
        tls_files(tmp_path, files["certificate"], files["key"], files["client CA"])


def test_only_the_owner_can_read_the_copy_of_the_key(tmp_path: Path) -> None:
    for name in ("certificate", "key"):
        (tmp_path / name).write_text(name)
    combined, client_ca = tls_files(tmp_path, tmp_path / "certificate", tmp_path / "key", None)
    assert combined.read_text() == "certificate\nkey"
    assert combined.stat().st_mode & 0o777 == 0o600
    assert client_ca is None


def test_a_missing_haproxy_is_an_error_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(process, "_SYSTEM_FOLDERS", "")
    started = Proxy(lambda status: None)
    try:
        with pytest.raises(FrontendError, match="install the package 'haproxy'"):
            started.start(Listener("", 8000), SERVER, 1.0)
    finally:
        started.folder.rmdir()

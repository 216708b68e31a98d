"""Runs HAProxy between clients and Dynamo's HTTP server, in a process of its own.

HAProxy repeats requests for which Dynamo found no worker, and ends clients' connections after the next
response while the frontend drains. Dynamo's HTTP server can do neither (docs/decisions/0042).
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vllmendpoint_worker.errors import FrontendError
from vllmendpoint_worker.process.shutdown import PROCESS_GROUPS

from .configuration import Listener, configuration

__all__ = ["Proxy", "free_port", "tls_files"]

_STATISTICS_SECONDS: Final = 1.0
_SYSTEM_FOLDERS: Final = ":/usr/local/sbin:/usr/sbin"
"""Debian installs HAProxy in a folder that is not in every image's ``PATH``."""


class Proxy:
    """Owns the process of HAProxy and its folder. ``on_exit`` receives the exit status if the process ends
    without :meth:`stop`; it runs on a thread.
    """

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def start(self, listener: Listener, server: tuple[str, int], drain_seconds: float) -> None:
        """Start HAProxy. Raises FrontendError if it is not installed or the listener's host is not valid."""
        program = shutil.which("haproxy", path=os.environ.get("PATH", "") + _SYSTEM_FOLDERS)
        if program is None:
            raise FrontendError(
                "HAProxy is not in this image. "
                "Use the project's frontend image, or install the package 'haproxy'."
            )
        file = self.folder / "haproxy.cfg"
        try:
            file.write_text(configuration(listener, server, self.folder, drain_seconds))
        except ValueError as error:
            raise FrontendError(
                f"--http-host (DYN_HTTP_HOST): {error}. Remove it to listen on all addresses of the pod."
            ) from error
        # If this process ends abnormally, the kernel ends HAProxy.
        command = ["setpriv", "--pdeathsig", "KILL", program, "-db", "-f", str(file)]
        self._process = subprocess.Popen(command, start_new_session=True)  # noqa: S603
        PROCESS_GROUPS.add(self._process.pid)
        threading.Thread(target=self._watch, args=(self._process,), name="haproxy", daemon=True).start()

    def drain(self) -> None:
        """From now on, each response closes its connection."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Close all connections and end HAProxy."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()

    def retries(self) -> int | None:
        """HAProxy's count of retries since the start; 2.6 counts the repetition of a request twice. None if
        HAProxy does not respond.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_STATISTICS_SECONDS)
                connection.connect(str(self.folder / "stats.sock"))
                connection.sendall(b"show stat\n")
                with connection.makefile() as lines:
                    return _retries(lines.read())
        except OSError:
            return None

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        PROCESS_GROUPS.discard(process.pid)
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self._stopping:
            self._on_exit(status)


def _retries(statistics: str) -> int | None:
    """The field ``wretr`` of the backend ``dynamo``. ``statistics``: CSV of the command ``show stat``."""
    for row in csv.DictReader(statistics.removeprefix("# ").splitlines()):
        if (row["pxname"], row["svname"]) == ("dynamo", "BACKEND"):
            return int(row["wretr"])
    return None


def free_port(host: str) -> int:
    """A port of ``host`` that no process uses now. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def tls_files(folder: Path, certificate: Path, key: Path, client_ca: Path | None) -> tuple[Path, Path | None]:
    """Copy Dynamo's TLS files to ``folder`` as HAProxy reads them: certificate and key in one file.

    Raises FrontendError if a file cannot be read.
    """
    try:
        combined = folder / "server.pem"
        combined.touch(mode=0o600)
        combined.write_bytes(certificate.read_bytes().rstrip() + b"\n" + key.read_bytes())
        if client_ca is None:
            return combined, None
        return combined, Path(shutil.copyfile(client_ca, folder / "client-ca.pem"))
    except OSError as error:
        raise FrontendError(
            "A TLS file of the frontend (--tls-cert-path, --tls-key-path, --tls-client-ca-cert-path) "
            f"cannot be read: {error.filename}: {error.strerror}. "
            "Mount a Secret there with frontend.podTemplate."
        ) from error

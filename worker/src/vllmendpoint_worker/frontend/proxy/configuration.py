"""The configuration of HAProxy, which clients reach before Dynamo's HTTP server. Pure.

Each setting refers to HAProxy's configuration manual by its keyword.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllmendpoint_worker.frontend.probing.probe import WORKER_HEADER

__all__ = ["RETRIES", "RETRY_BYTES", "Listener", "configuration"]

RETRIES: Final = 3
"""Repetitions of a request that Dynamo answers with 503, or that it does not answer. Each time Dynamo selects
a worker again.
"""

RETRY_BYTES: Final = 128 * 1024
"""Size of a buffer. A request is repeated only if it fits into one together with its headers. HAProxy copies
a whole buffer for each request and keeps the copy until the response begins, so a larger one costs time and
memory.
"""

MAX_FILES: Final = 32768
"""Open files, two for each client. HAProxy reserves memory for each, and the limit of a container can be a
billion.
"""

_HOST: Final = re.compile(r"[0-9A-Za-z.:_-]*")
_TEMPLATE: Final = """\
global
  nbthread 2
  # A port that is in use is an error.
  noreuseport
  fd-hard-limit {max_files}
  tune.bufsize {buffer}
  ssl-default-bind-options ssl-min-ver TLSv1.2
  stats socket {folder}/stats.sock mode 600 level operator
  # After SIGUSR1, HAProxy still accepts connections for this long, because nodes may not know yet that the
  # pod has left the Service. 'stopping' is true in this time.
  grace {drain}s

defaults
  mode http
  timeout connect 250ms
  timeout http-request 60s
  timeout http-keep-alive 1h
  # A client may wait long for the first token. Dynamo limits requests, not HAProxy.
  timeout client 24h
  timeout server 24h
  timeout tunnel 24h
  # Dynamo learns that a client has left, and aborts its request.
  option abortonclose
  # Each token is sent immediately.
  option http-no-delay
  option idle-close-on-response

frontend clients
  bind {bind}
{access}  http-after-response set-header Connection close if {{ stopping }}
  # A request for one worker cannot go to another one, and the prober is to see each failure.
  use_backend without-retries if !METH_POST or {{ req.hdr({worker_header}) -m found }}
  default_backend dynamo

backend dynamo
  option http-buffer-request
  retries {retries}
  retry-on conn-failure empty-response 503
  server dynamo {server}

backend without-retries
  server dynamo {server}
"""

_CERTIFICATE_REQUIRED: Final = "  http-request deny if !{ ssl_c_used } !{ src 127.0.0.1 ::1 }\n"


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients connect. ``certificate``: PEM file with the certificate and its key; ``client_ca``: PEM
    file of the authorities whose client certificates are required, except from this pod's own address, which
    the frontend's probes have. Both None: plain HTTP.
    """

    host: str
    port: int
    certificate: Path | None = None
    client_ca: Path | None = None


def configuration(listener: Listener, server: tuple[str, int], folder: Path, drain_seconds: float) -> str:
    """``server``: address and port of Dynamo's HTTP server; ``folder``: for the socket of the statistics.

    Raises ValueError if the host is not an address or a name.
    """
    return _TEMPLATE.format(
        max_files=MAX_FILES,
        buffer=RETRY_BYTES,
        folder=folder,
        drain=max(1, round(drain_seconds)),
        bind=_bind(listener),
        access=_CERTIFICATE_REQUIRED if listener.client_ca else "",
        retries=RETRIES,
        worker_header=WORKER_HEADER,
        server=_address(*server),
    )


def _bind(listener: Listener) -> str:
    host = listener.host.strip().removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{listener.host!r} is not an address or a name")
    words = [_address(host, listener.port)]
    if host == "::":
        words.append("v4v6")
    if listener.certificate is not None:
        words.append(f"ssl crt {listener.certificate} alpn h2,http/1.1")
    if listener.client_ca is not None:
        words.append(f"verify optional ca-file {listener.client_ca}")
    return " ".join(words)


def _address(host: str, port: int) -> str:
    return f"ipv6@[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"

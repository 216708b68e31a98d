"""Runs Dynamo's frontend, and is the only module of this package that imports ``dynamo``.

``dynamo.frontend`` has no extension point for the shutdown and for the address of its HTTP server. It looks
up ``graceful_shutdown`` in its module when a signal arrives and ``parse_args`` when it starts, so :func:`run`
replaces these functions. ``tests/worker/test_frontend_process.py`` fails if an upgrade changes this.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from dynamo.frontend import __main__ as dynamo_command
from dynamo.frontend import main as dynamo_frontend

from .discovery import Scope

__all__ = ["Settings", "parse_settings", "preload_allocator", "run"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. ``client_ca``: of the authorities whose client certificates are required."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Where clients reach the frontend, and the namespaces that it serves. ``http``: whether its API is HTTP
    (not gRPC or a terminal).
    """

    host: str
    port: int
    tls: TlsFiles | None
    scope: Scope
    kv_events: bool
    """Whether the router selects workers by the KV events that it receives from them."""
    http: bool


def preload_allocator() -> None:
    """Dynamo's ``DYN_FRONTEND_JEMALLOC``: if it is set, the process executes itself again with jemalloc."""
    dynamo_command._maybe_preload_jemalloc()


def parse_settings() -> Settings:
    """Parse ``sys.argv`` and the environment as Dynamo does. Exits the process if an argument is invalid."""
    config, _, _ = dynamo_frontend.parse_args()
    scope = Scope(config.namespace or "", config.namespace_prefix or "")
    kv_events = config.router_mode == "kv" and bool(config.use_kv_events)
    http = not (config.kserve_grpc_server or config.interactive)
    return Settings(config.http_host, config.http_port, _tls_files(config), scope, kv_events, http)


def _tls_files(config: Any) -> TlsFiles | None:
    if not config.tls_cert_path:
        return None
    client_ca = Path(config.tls_client_ca_cert_path) if config.tls_client_ca_cert_path else None
    return TlsFiles(Path(config.tls_cert_path), Path(config.tls_key_path or config.tls_cert_path), client_ca)


def run(on_signal: Callable[[], Awaitable[None]], address: tuple[str, int] | None) -> None:
    """Run Dynamo's frontend until it has shut down.

    ``on_signal`` runs on the event loop for each SIGTERM and SIGINT; Dynamo's shutdown follows when the first
    call returns. ``address``: where the HTTP server listens, without TLS; None: as the user has set.
    """
    parse_args = dynamo_frontend.parse_args

    def parse_args_for_proxy() -> Any:
        config, *flags = parse_args()
        if address is not None:
            config.http_host, config.http_port = address
            config.tls_cert_path = config.tls_key_path = config.tls_client_ca_cert_path = None
        return config, *flags

    async def shut_down(runtime: Any) -> None:
        await on_signal()
        runtime.shutdown()

    async def serve() -> None:
        dynamo_frontend.graceful_shutdown = shut_down
        dynamo_frontend.parse_args = parse_args_for_proxy
        await dynamo_frontend.async_main()

    dynamo_frontend._raise_fd_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())

"""Runs Dynamo's frontend, and is the only module of this package that imports ``dynamo``.

``dynamo.frontend`` does not have an extension point for the shutdown. Its signal handler looks up
``graceful_shutdown`` in the module when a signal arrives, so :func:`run` replaces that function.
``tests/worker/test_frontend_process.py`` fails if an upgrade changes this.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from dynamo.frontend import __main__ as dynamo_command
from dynamo.frontend import main as dynamo_frontend

from .discovery import Scope

__all__ = ["Settings", "parse_settings", "preload_allocator", "run"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where Dynamo's HTTP server listens, and the namespaces that it serves."""

    host: str
    port: int
    tls: bool
    scope: Scope
    kv_events: bool
    """Whether the router selects workers by the KV events that it receives from them."""


def preload_allocator() -> None:
    """Dynamo's ``DYN_FRONTEND_JEMALLOC``: if it is set, the process executes itself again with jemalloc."""
    dynamo_command._maybe_preload_jemalloc()


def parse_settings() -> Settings:
    """Parse ``sys.argv`` and the environment as Dynamo does. Exits the process if an argument is invalid."""
    config, _, _ = dynamo_frontend.parse_args()
    scope = Scope(config.namespace or "", config.namespace_prefix or "")
    kv_events = config.router_mode == "kv" and bool(config.use_kv_events)
    return Settings(config.http_host, config.http_port, bool(config.tls_cert_path), scope, kv_events)


def run(on_signal: Callable[[], Awaitable[None]]) -> None:
    """Run Dynamo's frontend until it has shut down.

    ``on_signal`` runs on the event loop for each SIGTERM and SIGINT; Dynamo's shutdown follows when the first
    call returns.
    """

    async def shut_down(runtime: Any) -> None:
        await on_signal()
        runtime.shutdown()

    async def serve() -> None:
        dynamo_frontend.graceful_shutdown = shut_down
        await dynamo_frontend.async_main()

    dynamo_frontend._raise_fd_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())

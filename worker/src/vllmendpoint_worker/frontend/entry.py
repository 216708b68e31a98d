"""Starts the report port, the prober, HAProxy and Dynamo's frontend, and exits after a drain.

Clients reach HAProxy, a process of its own, which forwards to Dynamo's HTTP server on the loopback interface.
The prober does so too, so that it proves what clients experience.

Dynamo runs on the main thread. The report server and the prober each have a thread with an event loop of its
own, so that they work while the main loop is blocked. The process exits with ``os._exit``, because Dynamo's
runtime sometimes aborts when the interpreter exits.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vllmendpoint_api import Stage, names
from vllmendpoint_worker.errors import FrontendError, ProbeUnavailableError
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.dynamo_log import FRONTEND_FILTER, log_filter
from vllmendpoint_worker.process.launch import (
    installed_version,
    log_to_stderr,
    remove_empty_dynamo_variables,
)
from vllmendpoint_worker.process.listening import frontend_hosts, loopback, network
from vllmendpoint_worker.process.shutdown import EXIT_FAILURE, terminate
from vllmendpoint_worker.serving.report_server import start_report_server

from .drain import drain, drain_seconds
from .http_client import HttpClient
from .probing.prober import UNRESPONSIVE_SECONDS, RouteProber
from .proxy.configuration import Listener
from .proxy.process import Proxy, free_port, tls_files
from .settings import SettingsFile, declared_model_type
from .state import FrontendState

if TYPE_CHECKING:
    from . import _dynamo

__all__ = ["start"]

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 10.0
"""Longest shutdown of Dynamo's runtime after the drain."""


def start() -> NoReturn:
    """Run the frontend and exit: with 0 after a signal, else with another code."""
    log_to_stderr()
    state = FrontendState(worker_version=installed_version(), pod_uid=os.environ.get("POD_UID", ""))
    _exit_on_signals(state)
    server = start_report_server(state)
    remove_empty_dynamo_variables(os.environ)
    pod = network()
    os.environ.update(log_filter(os.environ, FRONTEND_FILTER) | frontend_hosts(os.environ, pod))

    from . import _dynamo  # noqa: PLC0415  (after the report port answers)

    _dynamo.preload_allocator()
    dynamo = _dynamo.parse_settings()
    client = HttpClient(loopback(dynamo.host, pod), dynamo.port, tls=dynamo.tls is not None)
    prober = _ProberThread(_prober(client, state, dynamo, os.environ))
    server.metrics = prober.prober.metrics.text
    server.probe = prober.probe
    seconds = drain_seconds(os.environ)
    proxy = Proxy(_exit_without_proxy) if dynamo.http else None
    try:
        address = _start_proxy(proxy, dynamo, pod.loopback, seconds) if proxy else None
        if proxy:
            prober.prober.metrics.add_retries(proxy.retries)
        prober.start()
        _dynamo.run(_Shutdown(client, state, proxy, seconds).on_signal, address)
    except FrontendError as error:
        terminate(EXIT_FAILURE, str(error))
    except Exception as error:
        logger.exception("Dynamo's frontend failed")
        terminate(EXIT_FAILURE, f"Dynamo's frontend failed: {type(error).__name__}: {error}")
    if state.stage is Stage.STOPPING:
        logger.info("The frontend has shut down")
        terminate(0)
    terminate(EXIT_FAILURE, "Dynamo's frontend has ended without a signal.")


def _prober(
    client: HttpClient, state: FrontendState, dynamo: "_dynamo.Settings", environ: Mapping[str, str]
) -> RouteProber:
    return RouteProber(
        client,
        state,
        SettingsFile(environ),
        scope=dynamo.scope,
        model=environ.get(names.ENV_MODEL_NAME, "").strip(),
        model_type=declared_model_type(environ),
        kv_events=dynamo.kv_events,
        on_unresponsive=_exit_unresponsive,
    )


def _start_proxy(proxy: Proxy, dynamo: "_dynamo.Settings", loopback: str, seconds: float) -> tuple[str, int]:
    """The address at which Dynamo's HTTP server is to listen for HAProxy."""
    address = (loopback, free_port(loopback))
    certificate, client_ca = None, None
    if dynamo.tls is not None:
        certificate, client_ca = tls_files(
            proxy.folder, dynamo.tls.certificate, dynamo.tls.key, dynamo.tls.client_ca
        )
    proxy.start(Listener(dynamo.host, dynamo.port, certificate, client_ca), address, seconds)
    logger.info("HAProxy forwards port %d to Dynamo's HTTP server: port=%d", dynamo.port, address[1])
    return address


def _exit_without_proxy(status: int) -> None:
    terminate(EXIT_FAILURE, f"HAProxy has ended with exit status {status}. Its messages are in the log.")


def _exit_unresponsive() -> NoReturn:
    terminate(
        EXIT_FAILURE, f"The frontend's HTTP server has not responded for {UNRESPONSIVE_SECONDS:g} seconds."
    )


def _exit_on_signals(state: FrontendState) -> None:
    """Until Dynamo's frontend handles signals, SIGTERM and SIGINT end the process: it serves no requests."""

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        logger.info("A signal ends the start: signal=%d", number)
        state.enter_stage(Stage.STOPPING)
        terminate(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


class _ProberThread:
    """Runs ``prober`` on a thread. If the prober fails, the process exits, because the report would no longer
    be true.
    """

    def __init__(self, prober: RouteProber) -> None:
        self.prober = prober
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="route-prober", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def probe(self) -> "Future[dict[str, Any]]":
        """Probe all routes. Raises ProbeUnavailableError before the thread runs."""
        if self._loop is None:
            raise ProbeUnavailableError("the frontend is starting")
        return asyncio.run_coroutine_threadsafe(self.prober.probe_all(), self._loop)

    def _run(self) -> None:
        try:
            asyncio.run(self._probe_forever())
        except Exception as error:
            logger.exception("The prober failed")
            terminate(EXIT_FAILURE, f"The frontend's prober failed: {type(error).__name__}.")

    async def _probe_forever(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.prober.run()


class _Shutdown:
    """Drains the requests after the first signal. The second signal ends the process."""

    def __init__(self, client: HttpClient, state: FrontendState, proxy: Proxy | None, seconds: float) -> None:
        self._client = client
        self._proxy = proxy
        self._state = state
        self._seconds = seconds

    async def on_signal(self) -> None:
        """Return when the frontend is drained."""
        if self._state.stage is Stage.STOPPING:
            logger.warning("A second signal ends the process")
            terminate(0)
        logger.info("A signal stops the frontend: drain_seconds=%g", self._seconds)
        self._state.enter_stage(Stage.STOPPING)
        deadline = threading.Timer(self._seconds + SHUTDOWN_SECONDS, terminate, (0,))
        deadline.daemon = True
        deadline.start()
        if self._proxy is not None:
            self._proxy.drain()
        unfinished = await drain(self._client, self._seconds, Clock())
        if unfinished:
            logger.warning("Requests are still in flight after the drain: count=%d", unfinished)
        if self._proxy is not None:
            self._proxy.stop()

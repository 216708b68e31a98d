"""Parses the settings, builds the objects of one replica of the operator and runs them."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from .controller.controller import Controller
from .controller.election import LeaderElection
from .controller.standby import Standby
from .errors import MissingCredentials, RestartRequired
from .http_server import serve
from .kube.client import Kube
from .kube.configuration import Configuration, load_configuration
from .logs import configure
from .metrics import Metrics
from .settings import Settings
from .source.credentials import connection_info
from .source.kopf_source import KopfSource

__all__ = ["main", "run"]

log = logging.getLogger(__name__)

_RECURSION_LIMIT: Final = 12_000
"""The API server accepts JSON of 10,000 levels, which must not end the process. A stack of 8 MB has room for
twice as many."""
_GC_THRESHOLD: Final = 10_000
"""New containers before a garbage collection. With Python's default of 700, collections take a fifth of the
CPU time of a start with 1,000 endpoints."""


def main() -> int:
    """Run one replica. Return the exit code: 0 after a signal, 1 if the process must be restarted.

    A restart is required if there are no credentials, if the lease is lost, or if the API server has a
    certificate of another authority. The log names the cause.
    """
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    # Lists create tens of thousands of objects. Do not scan the imported modules at each collection.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 50, 50)
    sys.setrecursionlimit(_RECURSION_LIMIT)
    code = 0
    try:
        asyncio.run(run(settings))
    except* (RestartRequired, MissingCredentials) as group:
        log.error("the operator exits", extra={"error": str(_first_error(group))})
        code = 1
    return code


async def run(settings: Settings) -> None:
    """Serve metrics and health, and operate. Returns after SIGTERM or SIGINT."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    metrics, readiness = Metrics(), _Readiness()
    serving = serve(
        metrics,
        readiness,
        address=settings.bind_address,
        metrics_port=settings.metrics_port,
        health_port=settings.health_port,
    )
    async with serving:
        try:
            configuration = await load_configuration(settings.kubeconfig)
            async with Kube(configuration, on_request=metrics.count_request) as kube:
                await _operate(kube, configuration, settings, metrics, readiness)
        except asyncio.CancelledError:
            log.info("the operator exits after a signal")


class _Readiness:
    """Whether this replica reconciles, or could do so while another one leads."""

    def __init__(self) -> None:
        self.check: Callable[[], bool] = lambda: False

    def __call__(self) -> bool:
        return self.check()


async def _operate(
    kube: Kube, configuration: Configuration, settings: Settings, metrics: Metrics, readiness: _Readiness
) -> None:
    """Wait for the lease, then reconcile for as long as it is held."""
    standby = Standby(kube, metrics, settings.watched_namespaces)
    election = LeaderElection(
        kube,
        namespace=settings.namespace,
        name=settings.lease_name,
        identity=settings.holder_identity,
        duration=settings.lease_seconds,
        while_waiting=standby.fill_caches,
    )
    readiness.check = lambda: standby.ready and election.lease_reachable
    async with election:
        kube.fence = election.remaining_seconds
        controller = Controller(kube, settings, metrics)
        source = KopfSource(
            kube,
            controller,
            controller.namespaces,
            login=partial(connection_info, configuration),
            identity=settings.holder_identity,
            check_interval=settings.resync_seconds,
        )
        readiness.check = lambda: controller.ready
        metrics.leader.set_function(lambda: float(controller.ready))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(election.renew(), name="lease")
            tasks.create_task(controller.run(), name="controller")
            tasks.create_task(source.run(), name="source")


def _first_error(error: BaseException) -> BaseException:
    """The first error that is not itself a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

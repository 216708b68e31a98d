"""kopf wiring: the VLLMEndpoint watch, start and stop. The only file that imports kopf; decides nothing."""

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import kopf
import yaml

from .cache.caches import Cache
from .controller.controller import Controller
from .controller.election import LeaderElection
from .controller.watched_namespaces import WatchedNamespaces
from .errors import KubeError, NoLogin, NotFound, NotStreamed, StartAnew
from .kube.client import Kube
from .kube.kinds import ENDPOINT
from .logs import configure
from .metrics import Metrics, serve
from .settings import Settings

__all__ = ["main", "run"]

log = logging.getLogger(__name__)

_RECURSION_LIMIT: Final = 12_000
"""Levels of JSON: the API server takes 10,000 of them in one object, and it must not end us. A stack of 8 MB
has room for twice as many."""
_GC_THRESHOLD: Final = 10_000
"""Containers made between two looks for garbage; 700 would cost a fifth of a start with 1,000 endpoints."""

_LIST_PAGE_SIZE: Final = 50
"""Objects in a part of kopf's list, 20 KB each in memory, which the allocator keeps."""
_RESTART_SECONDS: Final = 1.0
"""Between an end of kopf's and its next start."""


def main() -> int:
    """Exit codes: 0 asked to end, 1 no login, the lease was lost, the API server has another certificate
    authority now, or something failed (start again).
    """
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    # Lists make objects by the ten thousand, and what was imported is not to be walked for each few of them.
    gc.freeze()
    sys.setrecursionlimit(_RECURSION_LIMIT)
    gc.set_threshold(_GC_THRESHOLD, 50, 50)
    code = 0
    try:
        asyncio.run(run(settings))
    except* (StartAnew, NoLogin) as lost:
        log.error("%s", _first_error(lost))
        code = 1
    return code


def _first_error(error: BaseException) -> BaseException:
    """What happened, out of the groups that it came up in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def run(settings: Settings) -> None:
    """Lead, and operate while leading; returns on SIGTERM or SIGINT."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    metrics = Metrics()
    controller: Controller | None = None
    standby: WatchedNamespaces | None = None
    election: LeaderElection | None = None

    def is_ready() -> bool:
        """Leading; or one that could lead, since a rollout replaces a pod that works by one that is ready."""
        if controller is not None:
            return controller.ready
        return standby is not None and standby.ready and election is not None and election.lease_reachable

    @contextlib.asynccontextmanager
    async def stand_by() -> AsyncIterator[None]:
        """Hold the caches of a leader. It lists again when it leads: until then another one wrote."""
        nonlocal standby
        cache = Cache(kube, settings.watched_namespaces, changed=lambda *_: None, referenced=lambda *_: None)
        standby = WatchedNamespaces(kube, cache, metrics, settings.watched_namespaces)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(standby.run(), name="standby")
            yield
            waiting.cancel()

    runners = await serve(
        metrics,
        is_ready,
        address=settings.bind_address,
        metrics_port=settings.metrics_port,
        health_port=settings.health_port,
    )
    try:
        async with Kube(partial(login, settings), observe=metrics.request) as kube:
            election = LeaderElection(
                kube,
                namespace=settings.namespace,
                name=settings.lease_name,
                identity=settings.holder_identity,
                duration=settings.lease_seconds,
                while_waiting=stand_by,
            )
            async with election:
                kube.fence = election.remaining_seconds
                controller = Controller(kube, settings, metrics)
                metrics.leader.set_function(lambda: float(is_ready()))
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(election.renew(), name="lease")
                    tasks.create_task(controller.run(), name="operator")
                    tasks.create_task(_watch(kube, settings, controller, controller.namespaces), name="kopf")
    except asyncio.CancelledError:
        log.info("asked to end")
    finally:
        for runner in runners:
            await runner.cleanup()


def login(settings: Settings) -> kopf.ConnectionInfo:
    """A kubeconfig's user, or the pod's service account. Raises NoLogin."""
    options = kopf.OperatorSettings()
    try:
        if settings.kubeconfig:
            os.environ["KUBECONFIG"] = settings.kubeconfig  # where kopf looks
            found = kopf.login_with_kubeconfig(settings=options)
        else:
            found = kopf.login_with_service_account(settings=options)
    except (OSError, ValueError, KeyError, kopf.LoginError, yaml.YAMLError) as error:
        raise NoLogin(f"{settings.kubeconfig or 'the service account'}: {error}") from error
    if found is None:
        raise NoLogin("this is no pod with a service account's token: name a kubeconfig file by --kubeconfig")
    if not settings.kubeconfig:
        # By its address, as client-go does: this works without the cluster's DNS.
        return dataclasses.replace(found, server=_in_cluster_url() or found.server)
    if not found.as_http_headers() and not (found.certificate_path or found.certificate_data):
        raise NoLogin(
            f"{settings.kubeconfig}: its user has neither token, nor password, nor certificate; exec and "
            "auth-provider are not supported: `kubectl create token` makes a token"
        )
    return found


def _in_cluster_url() -> str | None:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host and port else None


async def _watch(
    kube: Kube, settings: Settings, controller: Controller, namespaces: WatchedNamespaces
) -> None:
    """kopf as the informer of VLLMEndpoints: it only feeds the queue.

    kopf ends on what it calls fatal: an error in a stream, a CRD that is replaced. It is started
    again then, and lists anew; what it lists and is known already costs nothing. So it is when other
    namespaces can be watched than before: one that is refused it would ask for without end.
    """
    while True:
        names = await namespaces.accessible()
        watching = asyncio.create_task(_watch_namespaces(kube, settings, controller, names))
        others = asyncio.create_task(namespaces.accessible_changed(names))
        try:
            await asyncio.wait((watching, others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, others):
                task.cancel()
            await asyncio.wait((watching, others))
        if not watching.cancelled():
            failure = watching.result()
            log.warning("the watch of %s ended: %s; starting it again", ENDPOINT.plural, failure)
            await asyncio.sleep(_RESTART_SECONDS)


async def _watch_namespaces(
    kube: Kube, settings: Settings, controller: Controller, namespaces: tuple[str | None, ...]
) -> BaseException | None:
    streamed = await _wait_for_crd(kube, namespaces[0])
    return await _run_kopf(settings, controller, namespaces, streamed=streamed)


async def _run_kopf(
    settings: Settings, controller: Controller, namespaces: tuple[str | None, ...], *, streamed: bool
) -> BaseException | None:
    """Run kopf until it ends by itself; returns why. ``streamed``: the API server lists by the watch.

    On a thread and a loop of its own: kopf takes the process's signals, and when it ends it cancels
    and awaits every task of its loop, ours among them.
    """
    loop = asyncio.get_running_loop()
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def credentials(**_: Any) -> kopf.ConnectionInfo:
        return login(settings)

    @kopf.on.event(ENDPOINT.group, ENDPOINT.version, ENDPOINT.plural, registry=registry)
    async def changed(event: Mapping[str, Any], **_: Any) -> None:
        feed = controller.on_delete if event["type"] == "DELETED" else controller.on_upsert
        raw = event["object"]
        raw["metadata"].pop("managedFields", None)
        loop.call_soon_threadsafe(feed, dict(raw))
        # kopf holds each object until its task has ended: those of a list nearly all at once, 20 KB each.
        for key in ("spec", "status"):
            raw.pop(key, None)

    stop = threading.Event()

    @kopf.on.cleanup(registry=registry)
    async def ending(**_: Any) -> None:
        # After a failure too: kopf waits for the flag on a thread of its own, and for that thread at its end.
        stop.set()

    options = kopf.OperatorSettings()
    options.posting.enabled = False
    options.scanning.disabled = True
    # How long kopf keeps a task for an object after an event: by default 5 s, so after a list all at once.
    options.queueing.idle_timeout = 0.01
    options.networking.error_backoffs = _RetryDelays()
    options.persistence.diffbase_storage = _NoDiffStorage()
    # In answers of few a list of custom resources takes the API server three to eight times the CPU. One that
    # is cut off in a stream kopf takes for whole: the operator looks for what it missed.
    options.watching.initial_streaming = streamed
    options.watching.chunk_size = _LIST_PAGE_SIZE
    ended = asyncio.Event()
    failure: BaseException | None = None

    def informer() -> None:
        nonlocal failure
        try:
            asyncio.run(
                kopf.operator(
                    registry=registry,
                    settings=options,
                    standalone=True,
                    # Else kopf asks for the user's name, and a pod's user has none.
                    identity=settings.holder_identity,  # type: ignore[arg-type]
                    clusterwide=None in namespaces,
                    namespaces=[name for name in namespaces if name is not None],
                    stop_flag=stop,
                )
            )
        except Exception as error:  # noqa: BLE001  (handed on to the owner)
            failure = error
        with contextlib.suppress(RuntimeError):  # our own loop has ended
            loop.call_soon_threadsafe(ended.set)

    # A daemon: kopf takes seconds to end, and holds nothing that would be lost.
    threading.Thread(target=informer, name="kopf", daemon=True).start()
    try:
        await ended.wait()
    finally:
        stop.set()
    return failure


class _NoDiffStorage(kopf.DiffBaseStorage):
    """kopf copies each object for its change handlers, of which there is none here."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing."""


class _RetryDelays(Iterable[float]):
    """How long kopf waits before it asks again: for ever, where its own default gives up after a minute, and
    never so long that an API server that is back is not noticed.
    """

    def __iter__(self) -> Iterator[float]:
        for ceiling in itertools.chain((0.5, 1.0, 2.0), itertools.repeat(4.0)):
            yield random.uniform(ceiling / 2, ceiling)


async def _wait_for_crd(kube: Kube, namespace: str | None) -> bool:
    """Wait for the CRD: kopf looks for it once, and waits in silence for ever if it comes later.

    Returns whether the API server lists by the watch, which ends kopf where it does not.
    """
    while True:
        try:
            async with contextlib.aclosing(
                kube.watch(ENDPOINT, namespace, None, metadata_only=True)
            ) as events:
                await anext(events, None)
        except NotStreamed:
            return False
        except NotFound:
            log.warning(
                "the API server does not know %s.%s yet: install the CRD (the chart does); "
                "asking again in 5 s",
                ENDPOINT.plural,
                ENDPOINT.group,
            )
        except KubeError as error:
            log.warning("%s: %s; asking again in 5 s", ENDPOINT.plural, error)
        else:
            return True
        await asyncio.sleep(5)

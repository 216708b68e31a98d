"""Watches VLLMEndpoints with kopf.

kopf is written to be the whole operator. Used as a source of events, it needs these repairs:

- It handles the signals of the process, and when it ends it cancels and awaits every task of its event loop.
  It therefore runs on a thread with an event loop of its own.
- It looks for the CRD once; if the CRD is installed later, it waits forever and logs nothing. The source
  waits for the CRD before it starts kopf.
- An error in a watch stream, or a replaced CRD, ends it. The source starts it again; objects that it lists
  again in the same version have no effect.
- Its set of namespaces is fixed, and it retries a forbidden namespace forever. The source restarts it when
  other namespaces become accessible.
- It reports an interrupted list as complete: see ``missed_events``.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import kopf

from vllmendpoint_operator.errors import KubeError, NotFound, WatchListUnsupported
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import ENDPOINT

from .handler import EndpointHandler, Namespaces
from .missed_events import MissedEvents

__all__ = ["KopfSource"]

log = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
"""Time between an end of kopf and its next start."""
CRD_RETRY_SECONDS: Final = 5.0
_LIST_PAGE_SIZE: Final = 50
"""Objects per page of kopf's lists. Each takes 20 KB of memory while kopf handles the page."""
_IDLE_TIMEOUT_SECONDS: Final = 0.01
"""Time that kopf keeps a task per object after an event. With its default of 5 s, a list creates a task for
each object, and all of them exist at the same time."""


class KopfSource:
    """Passes the events of the accessible namespaces to ``handler``.

    Args:
        login: returns current credentials for the API server. It runs on the event loop of :meth:`run`.
        identity: name of this process; without one, kopf reads the user's name, which a pod does not have.
        check_interval: seconds between two searches for missed events.
    """

    def __init__(
        self,
        kube: Kube,
        handler: EndpointHandler,
        namespaces: Namespaces,
        *,
        login: Callable[[], Coroutine[Any, Any, kopf.ConnectionInfo]],
        identity: str,
        check_interval: float,
    ) -> None:
        self._kube = kube
        self._handler = handler
        self._namespaces = namespaces
        self._login = login
        self._identity = identity
        self._missed_events = MissedEvents(kube, handler, namespaces, interval=check_interval)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="kopf")
            tasks.create_task(self._missed_events.run(), name="missed-events")

    async def _watch(self) -> None:
        while True:
            names = await self._namespaces.wait_until_accessible()
            watch = asyncio.create_task(self._watch_namespaces(names))
            change = asyncio.create_task(self._namespaces.wait_for_other_than(names))
            try:
                await asyncio.wait((watch, change), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (watch, change):
                    task.cancel()
                await asyncio.wait((watch, change))
            if not watch.cancelled():
                log.warning(
                    "the watch ended and is restarted",
                    extra={"resource": ENDPOINT.plural, "error": str(watch.result())},
                )
                await asyncio.sleep(RESTART_SECONDS)

    async def _watch_namespaces(self, names: tuple[str | None, ...]) -> BaseException | None:
        """Run kopf on a thread until it ends; return the exception that ended it, if any."""
        settings = _settings(watch_list=await _wait_for_crd(self._kube, names[0]))
        loop = asyncio.get_running_loop()
        stop, ended = threading.Event(), asyncio.Event()
        failure: BaseException | None = None
        operator = partial(
            kopf.operator,
            registry=self._registry(loop, stop),
            settings=settings,
            standalone=True,
            identity=self._identity,  # type: ignore[arg-type]
            clusterwide=None in names,
            namespaces=[name for name in names if name is not None],
            stop_flag=stop,
        )

        def run_kopf() -> None:
            nonlocal failure
            try:
                asyncio.run(operator())
            except Exception as error:  # noqa: BLE001  (returned to the caller)
                failure = error
            with contextlib.suppress(RuntimeError):  # the process is ending: its event loop is closed
                loop.call_soon_threadsafe(ended.set)

        # A daemon thread: kopf takes seconds to end, and has nothing to save.
        threading.Thread(target=run_kopf, name="kopf", daemon=True).start()
        try:
            await ended.wait()
        finally:
            stop.set()
        return failure

    def _registry(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> kopf.OperatorRegistry:
        """kopf's handlers. They run on kopf's thread and pass each event to ``loop``."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            # On the loop of the requests, which share the configuration and its refresh.
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._login(), loop))

        @kopf.on.event(ENDPOINT.group, ENDPOINT.version, ENDPOINT.plural, registry=registry)
        async def dispatch(event: Mapping[str, Any], **_: Any) -> None:
            obj = event["object"]
            metadata = obj["metadata"]
            metadata.pop("managedFields", None)
            if event["type"] == "DELETED":
                key = metadata["namespace"], metadata["name"]
                loop.call_soon_threadsafe(self._handler.on_delete, key, metadata["uid"])
            else:
                loop.call_soon_threadsafe(self._handler.on_upsert, dict(obj))
            # kopf keeps each object until its task ends: after a list, almost all of them at the same time.
            for field in ("spec", "status"):
                obj.pop(field, None)

        @kopf.on.cleanup(registry=registry)
        async def end(**_: Any) -> None:
            # Also after a failure: at its end kopf waits for a thread that waits for this flag.
            stop.set()

        return registry


def _settings(*, watch_list: bool) -> kopf.OperatorSettings:
    """kopf's settings. ``watch_list``: the API server can send a list as part of a watch."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = _IDLE_TIMEOUT_SECONDS
    settings.networking.error_backoffs = _RetryDelays()
    settings.persistence.diffbase_storage = _NoDiffStorage()
    # A list in pages costs the API server three to eight times the CPU of a streamed one.
    settings.watching.initial_streaming = watch_list
    settings.watching.chunk_size = _LIST_PAGE_SIZE
    return settings


class _NoDiffStorage(kopf.DiffBaseStorage):
    """Stores nothing: kopf would copy each object for change handlers, and there are none."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _RetryDelays(Iterable[float]):
    """Endless delays in seconds between kopf's attempts, at most 4 s. kopf's default ends after a minute."""

    def __iter__(self) -> Iterator[float]:
        for ceiling in itertools.chain((0.5, 1.0, 2.0), itertools.repeat(4.0)):
            yield random.uniform(ceiling / 2, ceiling)


async def _wait_for_crd(kube: Kube, namespace: str | None) -> bool:
    """Wait until the API server serves the CRD. Return whether it can send a list as part of a watch.

    A request for such a list ends kopf if the API server does not support it.
    """
    while True:
        try:
            async with contextlib.aclosing(
                kube.watch(ENDPOINT, namespace, None, metadata_only=True)
            ) as events:
                await anext(events, None)
        except WatchListUnsupported:
            return False
        except NotFound:
            log.warning(
                "the CRD is not installed: install it, for example with the chart",
                extra={"crd": f"{ENDPOINT.plural}.{ENDPOINT.group}", "retry_seconds": CRD_RETRY_SECONDS},
            )
        except KubeError as error:
            log.warning(
                "cannot watch the resource",
                extra={
                    "resource": ENDPOINT.plural,
                    "error": str(error),
                    "retry_seconds": CRD_RETRY_SECONDS,
                },
            )
        else:
            return True
        await asyncio.sleep(CRD_RETRY_SECONDS)

"""kopf as the source of events: when it is started, with which settings, and what it passes on."""

import asyncio
import contextlib
import itertools

import kopf
import pytest

import vllmendpoint_operator.source.kopf_source as kopf_source
from tests.unit.operator.api_stub import ApiStub, added, failed
from tests.unit.operator.raw_objects import raw_object
from vllmendpoint_operator.errors import NotFound, WatchListUnsupported
from vllmendpoint_operator.source.kopf_source import KopfSource


class Kube:
    """An API server without the CRD for ``missing_crd`` requests, which may support lists by watch."""

    def __init__(self, *, missing_crd=0, supports_watch_list=True):
        self.missing_crd = missing_crd
        self.supports_watch_list = supports_watch_list

    async def watch(self, kind, namespace, version, **options):
        if self.missing_crd:
            self.missing_crd -= 1
            raise NotFound(404, "the server could not find the requested resource")
        if not self.supports_watch_list:
            raise WatchListUnsupported(422, "sendInitialEvents is forbidden for watch")
        yield "BOOKMARK", raw_object({"metadata": {"resourceVersion": "1"}})


class Namespaces:
    """Accessible namespaces, which a test replaces by :meth:`set`. None of them is ready."""

    def __init__(self, *names):
        self.names = names or ("ns",)
        self.changed = asyncio.Event()

    def set(self, *names):
        self.names = names
        self.changed.set()

    async def wait_until_ready(self):
        await asyncio.Event().wait()

    async def wait_until_accessible(self):
        while not self.names:
            self.changed.clear()
            await self.changed.wait()
        return self.names

    async def wait_for_other_than(self, names):
        while self.names == names:
            self.changed.clear()
            await self.changed.wait()


class Handler:
    """Records the names of the upserted endpoints."""

    def __init__(self):
        self.upserted = []

    def on_upsert(self, obj):
        self.upserted.append(obj["metadata"]["name"])


@pytest.fixture
async def start_source(monkeypatch):
    """``start_source(kube, handler, namespaces, login)`` runs a source until the end of the test."""
    monkeypatch.setattr(kopf_source, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(kopf_source, "CRD_RETRY_SECONDS", 0.01)
    tasks = []

    def start(kube=None, handler=None, namespaces=None, login=None):
        source = KopfSource(
            kube or Kube(),
            handler,
            namespaces or Namespaces(),
            login=login,
            identity="test",
            check_interval=600,
        )
        tasks.append(asyncio.create_task(source.run()))

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Kopf:
    """Replaces ``kopf.operator``. Each start raises the next of ``failures``; after them it runs."""

    def __init__(self):
        self.settings = []
        self.failures = []
        self.watched = []

    async def operator(self, *, stop_flag, settings, namespaces, **options):
        self.settings.append(settings)
        self.watched.append(tuple(namespaces))
        if len(self.settings) <= len(self.failures):
            raise self.failures[len(self.settings) - 1]
        while not stop_flag.is_set():
            await asyncio.sleep(0.01)
        self.watched.remove(tuple(namespaces))


@pytest.fixture
def fake_kopf(monkeypatch):
    fake = Kopf()
    monkeypatch.setattr(kopf, "operator", fake.operator)
    return fake


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_kopf_is_restarted_after_any_failure(start_source, fake_kopf, caplog):
    fake_kopf.failures = [RuntimeError("Error in the watch-stream"), ValueError("no JSON")]
    start_source()
    await until(lambda: len(fake_kopf.settings) == 3)
    await asyncio.sleep(0.05)
    assert len(fake_kopf.settings) == 3, "a kopf that runs is not restarted"
    errors = [r.error for r in caplog.records if r.message == "the watch ended and is restarted"]
    assert errors == ["Error in the watch-stream", "no JSON"]


async def test_kopf_starts_only_after_the_crd_is_served(start_source, fake_kopf):
    """kopf looks for the CRD once, and then waits forever without a log line."""
    kube = Kube(missing_crd=2)
    fake_kopf.failures = [RuntimeError("404")]
    start_source(kube)
    await until(lambda: len(fake_kopf.settings) == 2)
    assert kube.missing_crd == 0


async def test_kopf_watches_exactly_the_accessible_namespaces(start_source, fake_kopf, caplog):
    namespaces = Namespaces("a", "b")
    start_source(namespaces=namespaces)
    for names in (("a",), ("a", "b")):
        namespaces.set(*names)
        await until(lambda names=names: fake_kopf.watched == [names])
    namespaces.set()
    await until(lambda: fake_kopf.watched == [])
    namespaces.set("b")
    await until(lambda: fake_kopf.watched == [("b",)])
    assert "ended" not in caplog.text


async def test_a_namespace_that_becomes_inaccessible_does_not_delay_the_start(start_source, fake_kopf):
    """The source looks for the CRD in the first namespace, which may be the one that is deleted."""
    namespaces, kube = Namespaces("deleted", "b"), Kube(missing_crd=1_000_000)
    start_source(kube, namespaces=namespaces)
    await asyncio.sleep(0.05)
    kube.missing_crd = 0
    namespaces.set("b")
    await until(lambda: fake_kopf.watched == [("b",)], seconds=2)


@pytest.mark.parametrize("supported", [True, False])
async def test_kopf_lists_by_watch_if_the_api_server_supports_it(start_source, fake_kopf, supported):
    start_source(Kube(supports_watch_list=supported))
    await until(lambda: fake_kopf.settings)
    assert fake_kopf.settings[0].watching.initial_streaming is supported


async def test_kopf_retries_forever_with_short_random_delays(start_source, fake_kopf):
    start_source()
    await until(lambda: fake_kopf.settings)
    (settings,) = fake_kopf.settings
    delays = list(itertools.islice(settings.networking.error_backoffs, 500))
    assert len(delays) == 500
    assert all(0.2 < delay <= 4 for delay in delays)
    assert delays != list(itertools.islice(settings.networking.error_backoffs, 500)), "delays are random"


@pytest.mark.parametrize(
    "last_line", [failed(410), failed(500), b"<html>"], ids=["expired version", "error", "not JSON"]
)
@pytest.mark.parametrize("supported", [True, False])
async def test_the_watch_continues_after_a_line_that_ends_kopf(start_source, last_line, supported):
    """With the real kopf, which without the cleanup handler never ends: it waits for its own thread."""
    async with ApiStub([added("a", 2), last_line], [added("b", 3)]) as api:
        handler = Handler()

        async def login():
            return kopf.ConnectionInfo(server=api.url)

        start_source(Kube(supports_watch_list=supported), handler, login=login)
        await until(lambda: handler.upserted == ["a", "b"], 15)

"""kopf as the informer: what it calls fatal is no end of ours."""

import asyncio
import contextlib
import itertools

import pytest
from api_stub import ApiStub, added, failed

import vllmendpoint_operator.main as main
from vllmendpoint_operator.errors import NotFound
from vllmendpoint_operator.settings import Settings


class Kube:
    """``absent``: how often the CRD is still not served."""

    absent = 0

    async def pages(self, kind, namespace, **options):
        if self.absent:
            self.absent -= 1
            raise NotFound(404, "the server could not find the requested resource")
        yield [], "1"


@pytest.fixture
async def watching(monkeypatch):
    """Starts of kopf; each fails as the next of ``failures`` says, the last one runs."""
    starts, failures = [], []

    async def operator(*, stop_flag, **options):
        starts.append(options["settings"])
        if len(starts) <= len(failures):
            raise failures[len(starts) - 1]
        while not stop_flag.is_set():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(main.kopf, "operator", operator)
    monkeypatch.setattr(main, "_RESTART_SECONDS", 0.01)
    tasks = []

    def watch(kube, *said):
        failures.extend(said)
        settings = Settings(_cli_parse_args=["--worker-image=x", "--namespaces=ns"])
        tasks.append(asyncio.create_task(main._watch(kube, settings, operator=None)))
        return starts

    yield watch
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_it_is_started_again_whatever_it_ended_of(watching, caplog):
    starts = watching(Kube(), RuntimeError("Error in the watch-stream"), ValueError("no JSON"))
    await until(lambda: len(starts) == 3)
    await asyncio.sleep(0.05)
    assert len(starts) == 3, "one that runs is left alone"
    assert "the watch of vllmendpoints ended: Error in the watch-stream; starting it again" in caplog.text


async def test_the_crd_is_looked_for_before_each_start(watching, monkeypatch):
    """kopf itself looks once, and then waits in silence for ever."""
    sleep = asyncio.sleep
    monkeypatch.setattr(main.asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    kube = Kube()
    kube.absent = 2
    starts = watching(kube, RuntimeError("404"))
    await until(lambda: len(starts) == 2)
    assert kube.absent == 0


async def test_it_asks_for_ever_and_soon(watching):
    starts = watching(Kube())
    await until(lambda: starts)
    (options,) = starts
    waits = list(itertools.islice(options.networking.error_backoffs, 500))
    assert len(waits) == 500
    assert all(0.2 < wait <= 4 for wait in waits)
    assert waits != list(itertools.islice(options.networking.error_backoffs, 500)), "not all at one time"


class Feed:
    def __init__(self):
        self.names = []

    def seen(self, obj):
        self.names.append(obj["metadata"]["name"])


@pytest.mark.parametrize("last", [failed(410), failed(500), b"<html>"], ids=["too old", "failed", "no JSON"])
async def test_kopf_itself_watches_on(monkeypatch, last):
    """What it calls fatal would else end it in part: it waits for a thread that waits for the end."""
    monkeypatch.setattr(main, "_RESTART_SECONDS", 0.01)
    async with ApiStub([added("a", 2), last], [added("b", 3)]) as api:
        kube, feed = Kube(), Feed()

        async def credentials():
            return {"server": api.url}

        kube.credentials = credentials
        settings = Settings(_cli_parse_args=["--worker-image=x", "--namespaces=ns"])
        task = asyncio.create_task(main._watch(kube, settings, feed))
        await until(lambda: feed.names == ["a", "b"], 15)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""kopf as the informer: what it calls fatal is no end of ours."""

import asyncio
import contextlib
import itertools

import pytest
import yaml

import vllmendpoint_operator.main as main
from tests.unit.operator.api_stub import ApiStub, added, failed
from tests.unit.operator.wire import parts
from vllmendpoint_operator.errors import NoLogin, NotFound, NotStreamed
from vllmendpoint_operator.settings import Settings


class Kube:
    """``absent``: how often the CRD is still not served. ``streams``: lists by the watch."""

    absent = 0
    streams = True

    async def watch(self, kind, namespace, version, **options):
        if self.absent:
            self.absent -= 1
            raise NotFound(404, "the server could not find the requested resource")
        if not self.streams:
            raise NotStreamed(422, "sendInitialEvents is forbidden for watch")
        yield "BOOKMARK", parts({"metadata": {"resourceVersion": "1"}})


class Namespaces:
    """Which namespaces may be watched: ``now`` is set by a test."""

    def __init__(self, *names):
        self.now = names or ("ns",)
        self.news = asyncio.Event()

    def become(self, *names):
        self.now = names
        self.news.set()

    async def accessible(self):
        while not self.now:
            self.news.clear()
            await self.news.wait()
        return self.now

    async def accessible_changed(self, names):
        while self.now == names:
            self.news.clear()
            await self.news.wait()


@pytest.fixture
async def watching(monkeypatch):
    """Starts of kopf; each fails as the next of ``failures`` says, the last one runs."""
    starts, failures, served = [], [], []

    async def operator(*, stop_flag, **options):
        starts.append(options["settings"])
        served.append(tuple(options["namespaces"]))
        if len(starts) <= len(failures):
            raise failures[len(starts) - 1]
        while not stop_flag.is_set():
            await asyncio.sleep(0.01)
        served.remove(tuple(options["namespaces"]))

    monkeypatch.setattr(main.kopf, "operator", operator)
    monkeypatch.setattr(main, "_RESTART_SECONDS", 0.01)
    tasks = []

    def watch(kube, *said, namespaces=None):
        failures.extend(said)
        settings = Settings(_cli_parse_args=["--worker-image=x", "--namespaces=ns"])
        tasks.append(asyncio.create_task(main._watch(kube, settings, None, namespaces or Namespaces())))
        return starts

    watch.served = served
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


async def test_it_watches_the_namespaces_that_may_be_watched_now(watching, caplog):
    namespaces = Namespaces("a", "b")
    watching(Kube(), namespaces=namespaces)
    for names in (("a",), ("a", "b")):
        namespaces.become(*names)
        await until(lambda names=names: watching.served == [names])
    namespaces.become()
    await until(lambda: watching.served == [])
    namespaces.become("b")
    await until(lambda: watching.served == [("b",)])
    assert "ended" not in caplog.text


async def test_one_that_may_no_longer_be_watched_is_not_waited_for(watching):
    """The CRD is looked for in the first of the namespaces, which may be the one that is gone."""
    namespaces, kube = Namespaces("gone", "b"), Kube()
    kube.absent = 1_000_000
    watching(kube, namespaces=namespaces)
    await asyncio.sleep(0.05)
    kube.absent = 0
    namespaces.become("b")
    await until(lambda: watching.served == [("b",)], seconds=2)


@pytest.mark.parametrize("streams", [True, False])
async def test_it_lists_by_the_watch_where_the_api_server_can(watching, streams):
    kube = Kube()
    kube.streams = streams
    starts = watching(kube)
    await until(lambda: starts)
    assert starts[0].watching.initial_streaming is streams


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

    def on_upsert(self, obj):
        self.names.append(obj["metadata"]["name"])


@pytest.mark.parametrize("last", [failed(410), failed(500), b"<html>"], ids=["too old", "failed", "no JSON"])
@pytest.mark.parametrize("streams", [True, False])
async def test_kopf_itself_watches_on(monkeypatch, last, streams):
    """What it calls fatal would else end it in part: it waits for a thread that waits for the end."""
    monkeypatch.setattr(main, "_RESTART_SECONDS", 0.01)
    async with ApiStub([added("a", 2), last], [added("b", 3)]) as api:
        kube, feed = Kube(), Feed()
        kube.streams = streams
        monkeypatch.setattr(main, "login", lambda settings: main.kopf.ConnectionInfo(server=api.url))
        settings = Settings(_cli_parse_args=["--worker-image=x", "--namespaces=ns"])
        task = asyncio.create_task(main._watch(kube, settings, feed, Namespaces()))
        await until(lambda: feed.names == ["a", "b"], 15)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


KUBECONFIG = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443"}}],
}


def flags(tmp_path, user=None):
    """The settings for a kubeconfig with that user; without one for none."""
    if user is None:
        return Settings(_cli_parse_args=["--worker-image=x"])
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({**KUBECONFIG, "users": [{"name": "u", "user": user}]}))
    return Settings(_cli_parse_args=["--worker-image=x", f"--kubeconfig={path}"])


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "put back after the test")
    return monkeypatch


def test_a_kubeconfig_is_who_it_says(environment, tmp_path):
    found = main.login(flags(tmp_path, {"token": "t"}))
    assert (found.server, found.as_http_headers()) == (
        "https://api.example:6443",
        {"Authorization": "Bearer t"},
    )


@pytest.mark.parametrize("user", [{}, {"exec": {"command": "aws"}}, {"auth-provider": {"name": "gcp"}}])
def test_a_kubeconfig_of_a_kind_that_is_not_read_is_refused(environment, tmp_path, user):
    with pytest.raises(NoLogin, match=r"kubeconfig: its user has neither token, .* `kubectl create token`"):
        main.login(flags(tmp_path, user))


def test_a_kubeconfig_that_is_not_there_is_named(environment, tmp_path):
    settings = flags(tmp_path, {})
    (tmp_path / "kubeconfig").unlink()
    with pytest.raises(NoLogin, match=f"{tmp_path}/kubeconfig: .*No such file"):
        main.login(settings)


@pytest.mark.parametrize("text", ["{", "contexts: []", "current-context: c"])
def test_a_kubeconfig_that_says_nothing_is_named(environment, tmp_path, text):
    settings = flags(tmp_path, {})
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(NoLogin, match=f"{tmp_path}/kubeconfig: "):
        main.login(settings)


def test_outside_of_a_pod_the_flag_is_told(environment, tmp_path):
    environment.setattr(main.kopf, "login_with_service_account", lambda settings: None)
    with pytest.raises(NoLogin, match="--kubeconfig"):
        main.login(flags(tmp_path))


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("10.0.0.1", "https://10.0.0.1:443"),
        ("fd00::1", "https://[fd00::1]:443"),
        ("", "https://kubernetes.default.svc"),
    ],
)
def test_a_pod_asks_the_api_server_by_its_address(environment, tmp_path, host, server):
    pod = main.kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    environment.setattr(main.kopf, "login_with_service_account", lambda settings: pod)
    environment.setenv("KUBERNETES_SERVICE_HOST", host)
    environment.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert main.login(flags(tmp_path)).server == server


def test_without_a_login_it_ends_and_says_why(environment, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(main, "Settings", lambda: flags(tmp_path, {}))
    monkeypatch.setattr(main, "configure", lambda *options: None)
    monkeypatch.setattr(main, "serve", no_server)
    monkeypatch.setattr(main.gc, "freeze", lambda: None)
    monkeypatch.setattr(main.gc, "set_threshold", lambda *numbers: None)
    assert main.main() == 1
    assert "its user has neither token" in caplog.text


async def no_server(*arguments, **options):
    return []

"""The client against a server that answers as the API server does."""

import asyncio
import json

import kopf
import msgspec
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

import vllmendpoint_operator.kube.client as kube_module
from vllmendpoint_operator.errors import Gone, Rejected, WatchListUnsupported
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import DEPLOYMENT

BODY = {"metadata": {"namespace": "ns", "name": "d"}}


@pytest.fixture
async def kube():
    """``warnings`` are the values of its Warning headers; what it got stands under ``got``."""
    warnings = []

    async def answer(request):
        client.got = await request.read()
        response = web.json_response(await request.json())
        for value in warnings:
            response.headers.add("Warning", value)
        return response

    async def watch(request):
        client.asked.append(dict(request.query))
        if client.refusal is not None:
            return web.json_response({"kind": "Status", "message": "no"}, status=client.refusal)
        body = b"".join(json.dumps(event).encode() + b"\n" for event in client.events)
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(body), client.part):
            await response.write(body[at : at + client.part])
            await asyncio.sleep(0.001)
        return response

    app = web.Application()
    app.router.add_route("PATCH", "/{path:.*}", answer)
    app.router.add_get("/{path:.*}", watch)
    async with (
        TestServer(app) as server,
        Kube(lambda: kopf.ConnectionInfo(server=str(server.make_url("")))) as client,
    ):
        client.warnings, client.events, client.refusal, client.asked = warnings, [], None, []
        client.part = 10_000
        yield client


async def test_warnings_are_told_as_they_read(kube):
    kube.warnings += ['299 - "spec.a: must be >= 0"', '299 kube "a \\"quoted\\" \\\\ word"']
    told = []
    assert await kube.apply(DEPLOYMENT, BODY, on_warning=told.append) == BODY
    assert told == ["spec.a: must be >= 0", 'a "quoted" \\ word']


async def test_nobody_has_to_listen_to_warnings(kube):
    kube.warnings += ['299 - "x"']
    assert await kube.apply(DEPLOYMENT, BODY) == BODY


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a smile: \U0001f642, an umlaut: \u00fc",
        "\ufeff# as editors on Windows begin a script",
        "line ends of YAML: \r\n \x85 \u2028 \u2029.",
        "not printable: " + "".join(map(chr, range(1, 0xA0))),
        "no characters: \ufffe \uffff \U0001fffe",
        "quotes and escapes: \" ' \\ \\u0085",
    ],
)
async def test_an_apply_reads_as_yaml_what_it_is_as_json(kube, text):
    body = {**BODY, "data": {"model.py": text}}
    assert await kube.apply(DEPLOYMENT, body) == body
    assert yaml.safe_load(kube.got.decode()) == body


def event(kind, **metadata):
    return {"type": kind, "object": {"metadata": metadata}}


async def watched(kube, version):
    found = kube.watch(DEPLOYMENT, "ns", version)
    return [(kind, msgspec.json.decode(obj["metadata"])) async for kind, obj in found]


async def test_a_watch_from_nowhere_lists_first(kube):
    kube.events = [event("ADDED", name="d"), event("BOOKMARK", resourceVersion="7")]
    assert await watched(kube, None) == [("ADDED", {"name": "d"}), ("BOOKMARK", {"resourceVersion": "7"})]
    assert kube.asked[0]["sendInitialEvents"] == "true"
    assert kube.asked[0]["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in kube.asked[0]


@pytest.mark.parametrize("part", [1, 40, 10_000])
async def test_events_come_whole_however_they_arrive(kube, part):
    kube.part = part
    kube.events = [event("MODIFIED", name=f"d{number}") for number in range(5)]
    assert [metadata["name"] for _, metadata in await watched(kube, "7")] == ["d0", "d1", "d2", "d3", "d4"]


async def test_a_watch_from_a_version_asks_for_no_list(kube):
    kube.events = [event("MODIFIED", name="d")]
    assert await watched(kube, "7") == [("MODIFIED", {"name": "d"})]
    assert kube.asked[0]["resourceVersion"] == "7"
    assert "sendInitialEvents" not in kube.asked[0]


@pytest.mark.parametrize(
    ("status", "version", "error"),
    [(422, None, WatchListUnsupported), (422, "7", Rejected), (403, None, Rejected), (410, "7", Gone)],
)
async def test_who_refuses_a_watch_and_why(kube, status, version, error):
    kube.refusal = status
    with pytest.raises(error):
        await watched(kube, version)


async def test_credentials_are_read_again_after_a_minute(monkeypatch):
    """The kubelet changes a pod's token long before the old one runs out."""
    clock, tokens, seen = [1000.0], iter(["a", "b"]), []
    monkeypatch.setattr(kube_module, "monotonic", lambda: clock[0])

    async def answer(request):
        seen.append(request.headers["Authorization"])
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        async with Kube(lambda: kopf.ConnectionInfo(server=url, token=next(tokens))) as client:
            for seconds in (0, 59, 2):
                clock[0] += seconds
                await client.get(DEPLOYMENT, "ns", "d")
    assert seen == ["Bearer a", "Bearer a", "Bearer b"]


async def test_a_list_says_what_its_items_are(kube):
    """Once for all; whoever compares them wants it on each."""
    kube.events = [{"metadata": {"resourceVersion": "7"}, "items": [BODY, BODY]}]
    found, version = await kube.list(DEPLOYMENT, "ns")
    assert version == "7"
    assert found == [{"apiVersion": "apps/v1", "kind": "Deployment", **BODY}] * 2

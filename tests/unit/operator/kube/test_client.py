"""The client, with a server that responds like the API server."""

import asyncio
import json

import msgspec
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from vllmendpoint_operator.errors import Gone, KubeError, Rejected, WatchListUnsupported
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.configuration import Configuration
from vllmendpoint_operator.kube.kinds import DEPLOYMENT

BODY = {"metadata": {"namespace": "ns", "name": "d"}}


@pytest.fixture
async def kube():
    """A client of a server that tests configure through attributes of the client.

    ``warnings``: Warning headers of the response to an apply; ``events``, or ``text``: body of the response
    to a list or watch; ``chunk_size``: bytes that are sent at a time; ``error_status``: sent instead.
    ``received``: body of the last apply; ``queries``: of each list and watch; ``requests``: arguments of
    each call of ``on_request``.
    """
    warnings = []

    async def respond(request):
        client.received = await request.read()
        response = web.json_response(await request.json())
        for value in warnings:
            response.headers.add("Warning", value)
        return response

    async def watch(request):
        client.queries.append(dict(request.query))
        if client.error_status is not None:
            return web.json_response({"kind": "Status", "message": "no"}, status=client.error_status)
        body = client.text.encode() or b"".join(json.dumps(event).encode() + b"\n" for event in client.events)
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(body), client.chunk_size):
            await response.write(body[at : at + client.chunk_size])
            await asyncio.sleep(0.001)
        return response

    def count(*request):
        client.requests.append(request)

    app = web.Application()
    app.router.add_route("PATCH", "/{path:.*}", respond)
    app.router.add_get("/{path:.*}", watch)
    async with (
        TestServer(app) as server,
        Kube(Configuration(host=str(server.make_url("")).rstrip("/")), on_request=count) as client,
    ):
        client.warnings, client.events, client.error_status, client.queries = warnings, [], None, []
        client.chunk_size, client.requests, client.text = 10_000, [], ""
        yield client


async def test_on_warning_receives_the_text_of_each_warning(kube):
    kube.warnings += ['299 - "spec.a: must be >= 0"', '299 kube "a \\"quoted\\" \\\\ word"']
    warnings = []
    assert await kube.apply(DEPLOYMENT, BODY, on_warning=warnings.append) == BODY
    assert warnings == ["spec.a: must be >= 0", 'a "quoted" \\ word']


async def test_warnings_are_ignored_without_a_callback(kube):
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
async def test_an_apply_has_the_same_meaning_as_yaml_and_json(kube, text):
    body = {**BODY, "data": {"model.py": text}}
    assert await kube.apply(DEPLOYMENT, body) == body
    assert yaml.safe_load(kube.received.decode()) == body


def event(kind, **metadata):
    return {"type": kind, "object": {"metadata": metadata}}


async def watched(kube, version):
    found = kube.watch(DEPLOYMENT, "ns", version)
    return [(kind, msgspec.json.decode(obj["metadata"])) async for kind, obj in found]


async def test_a_watch_without_a_version_starts_with_all_objects(kube):
    kube.events = [event("ADDED", name="d"), event("BOOKMARK", resourceVersion="7")]
    assert await watched(kube, None) == [("ADDED", {"name": "d"}), ("BOOKMARK", {"resourceVersion": "7"})]
    assert kube.queries[0]["sendInitialEvents"] == "true"
    assert kube.queries[0]["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in kube.queries[0]


@pytest.mark.parametrize("chunk_size", [1, 40, 10_000])
async def test_events_are_complete_for_every_chunk_size(kube, chunk_size):
    kube.chunk_size = chunk_size
    kube.events = [event("MODIFIED", name=f"d{number}") for number in range(5)]
    assert [metadata["name"] for _, metadata in await watched(kube, "7")] == ["d0", "d1", "d2", "d3", "d4"]


async def test_a_watch_from_a_version_requests_no_initial_events(kube):
    kube.events = [event("MODIFIED", name="d")]
    assert await watched(kube, "7") == [("MODIFIED", {"name": "d"})]
    assert kube.queries[0]["resourceVersion"] == "7"
    assert "sendInitialEvents" not in kube.queries[0]


@pytest.mark.parametrize(
    ("status", "version", "error"),
    [(422, None, WatchListUnsupported), (422, "7", Rejected), (403, None, Rejected), (410, "7", Gone)],
)
async def test_a_rejected_watch_raises_the_error_of_its_status(kube, status, version, error):
    kube.error_status = status
    with pytest.raises(error):
        await watched(kube, version)


async def test_items_of_a_list_have_api_version_and_kind(kube):
    """The API server sends both once per list. Comparisons need them on each item."""
    kube.events = [{"metadata": {"resourceVersion": "7"}, "items": [BODY, BODY]}]
    found, version = await kube.list(DEPLOYMENT, "ns")
    assert version == "7"
    assert found == [{"apiVersion": "apps/v1", "kind": "Deployment", **BODY}] * 2


async def test_an_error_of_the_consumer_of_a_list_is_not_an_error_of_the_api_server(kube):
    kube.events = [{"metadata": {"resourceVersion": "7"}, "items": [BODY, BODY]}]

    async def consume():
        async with kube.list_stream(DEPLOYMENT, "ns") as (_, items):
            async for _ in items:
                raise ValueError("defect")

    with pytest.raises(ValueError, match="defect"):
        await consume()
    assert kube.requests == [("list", "deployments", 200)]


async def test_an_error_of_the_consumer_of_warnings_is_not_an_error_of_the_api_server(kube):
    def on_warning(text):
        raise ValueError(f"defect: {text}")

    kube.warnings.append('299 - "w"')
    with pytest.raises(ValueError, match="defect: w"):
        await kube.apply(DEPLOYMENT, BODY, on_warning=on_warning)
    assert kube.requests == [("apply", "deployments", 200)]


@pytest.mark.parametrize("body", ["<html>", '{"metadata":{},"items":[{"metadata":{}}'])
async def test_an_invalid_list_is_an_error_and_counted_once(kube, body):
    kube.text = body
    with pytest.raises(KubeError, match=r"^0: GET /apis/apps/v1/namespaces/ns/deployments: "):
        await kube.list(DEPLOYMENT, "ns")
    assert kube.requests == [("list", "deployments", 200)]


async def test_a_request_without_a_response_is_counted_once():
    requests = []
    configuration = Configuration(host="http://127.0.0.1:1")
    async with Kube(configuration, on_request=lambda *request: requests.append(request)) as kube:
        with pytest.raises(KubeError, match=r"^0: GET .*: ClientConnectorError: "):
            await kube.get(DEPLOYMENT, "ns", "d")
    assert requests == [("get", "deployments", 0)]


async def test_selectors_are_encoded(kube):
    kube.events = [{"metadata": {"resourceVersion": "7"}, "items": []}]
    await kube.list(DEPLOYMENT, "ns", selector="a.b/c!=d,e=f", name="d")
    assert kube.queries == [{"labelSelector": "a.b/c!=d,e=f", "fieldSelector": "metadata.name=d"}]


async def test_a_path_in_the_address_of_the_api_server_is_kept():
    """Proxies such as Rancher serve each cluster below a path."""
    paths = []

    async def respond(request):
        paths.append(request.path)
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", respond)
    async with (
        TestServer(app) as server,
        Kube(Configuration(host=str(server.make_url("/clusters/c1")))) as client,
    ):
        await client.get(DEPLOYMENT, "ns", "d")
    assert paths == ["/clusters/c1/apis/apps/v1/namespaces/ns/deployments/d"]

"""The client against a server that answers as the API server does."""

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from vllmendpoint_operator.kinds import DEPLOYMENT
from vllmendpoint_operator.kube import Kube

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

    app = web.Application()
    app.router.add_route("PATCH", "/{path:.*}", answer)
    async with TestServer(app) as server, Kube(Configuration(host=str(server.make_url("")))) as client:
        client.warnings = warnings
        yield client


async def test_warnings_are_told_as_they_read(kube):
    kube.warnings += ['299 - "spec.a: must be >= 0"', '299 kube "a \\"quoted\\" \\\\ word"']
    told = []
    assert await kube.apply(DEPLOYMENT, BODY, warned=told.append) == BODY
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

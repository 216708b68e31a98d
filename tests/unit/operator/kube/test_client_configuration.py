"""Address and credentials of the API server, from a kubeconfig or from the pod's service account."""

import base64
import json
import sys
import time

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.config import incluster_config

import vllmendpoint_operator.kube.configuration as configuration_module
from vllmendpoint_operator.errors import MissingCredentials
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.configuration import Configuration, authorization, load_configuration
from vllmendpoint_operator.kube.kinds import DEPLOYMENT

KUBECONFIG = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443"}}],
}
PLUGIN = """
import json, pathlib, time
calls = pathlib.Path(__file__).with_suffix(".calls")
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + {lifetime}))
print(json.dumps({{
    "apiVersion": "client.authentication.k8s.io/v1",
    "kind": "ExecCredential",
    "status": {{"token": "t" + str(len(calls.read_text())), "expirationTimestamp": expires}},
}}))
"""


@pytest.fixture
def kubeconfig(tmp_path):
    """``kubeconfig(user, **cluster)`` is the path of a kubeconfig with that user."""

    def write(user, **cluster):
        path = tmp_path / "kubeconfig"
        clusters = [{"name": "k", "cluster": {"server": "https://api.example:6443", **cluster}}]
        path.write_text(
            yaml.safe_dump({**KUBECONFIG, "clusters": clusters, "users": [{"name": "u", "user": user}]})
        )
        return str(path)

    return write


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the monotonic clock, as the only item of a list."""
    seconds = [1000.0]
    monkeypatch.setattr(configuration_module, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def plugin(tmp_path):
    """``plugin(lifetime)`` is a user with an exec plugin whose tokens expire after that many seconds."""

    def write(lifetime):
        path = tmp_path / "plugin.py"
        path.write_text(PLUGIN.format(lifetime=lifetime))
        return {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": sys.executable,
                "args": [str(path)],
            }
        }

    return write


async def test_the_token_of_a_kubeconfig_is_sent_as_a_bearer_token(kubeconfig):
    found = await load_configuration(kubeconfig({"token": "t"}))
    assert found.host == "https://api.example:6443"
    assert await authorization(found) == "Bearer t"


async def test_the_password_of_a_kubeconfig_is_sent_as_basic_authentication(kubeconfig):
    found = await load_configuration(kubeconfig({"username": "a", "password": "b"}))
    assert await authorization(found) == f"Basic {base64.b64encode(b'a:b').decode()}"


@pytest.mark.parametrize(
    ("exceptions", "proxy"), [("", "http://proxy:1"), ("other", "http://proxy:1"), ("api.example", None)]
)
async def test_the_proxy_of_the_environment_applies_to_a_kubeconfig(
    kubeconfig, monkeypatch, exceptions, proxy
):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert (await load_configuration(kubeconfig({"token": "t"}))).proxy == proxy


async def test_the_proxy_of_the_environment_does_not_apply_in_a_pod(service_account, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert (await load_configuration("")).proxy is None


async def test_the_proxy_of_a_kubeconfig_is_used(kubeconfig):
    found = await load_configuration(kubeconfig({"token": "t"}, **{"proxy-url": "http://proxy:3128"}))
    assert found.proxy == "http://proxy:3128"


async def test_an_exec_plugin_runs_again_when_its_token_expires(kubeconfig, plugin, clock):
    found = await load_configuration(kubeconfig(plugin(lifetime=60)))
    assert await authorization(found) == "Bearer t1"
    clock[0] += 61
    assert await authorization(found) == "Bearer t2"


async def test_an_exec_plugin_does_not_run_while_its_token_is_valid(kubeconfig, plugin, clock):
    found = await load_configuration(kubeconfig(plugin(lifetime=3600)))
    clock[0] += 61
    assert await authorization(found) == "Bearer t1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes.aio.config")
@pytest.mark.filterwarnings("ignore:verify_ssl is deprecated")
async def test_an_oidc_token_is_refreshed_when_it_expires(kubeconfig, caplog):
    def token(lifetime):
        claims = base64.b64encode(json.dumps({"exp": int(time.time()) + lifetime}).encode()).decode()
        return f"h.{claims.rstrip('=')}.s"

    refreshed = []

    async def discover(request):
        return web.json_response({"token_endpoint": str(request.url.with_path("/token"))})

    async def grant(request):
        refreshed.append((await request.post())["refresh_token"])
        return web.json_response({"id_token": token(3600), "refresh_token": "r2"})

    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", discover)
    app.router.add_post("/token", grant)
    async with TestServer(app) as server:
        settings = {
            "client-id": "c",
            "client-secret": "s",
            "id-token": token(-60),
            "idp-issuer-url": str(server.make_url("")),
            "refresh-token": "r1",
        }
        user = {"auth-provider": {"name": "oidc", "config": settings}}
        found = await load_configuration(kubeconfig(user))
    assert refreshed == ["r1"]
    assert (await authorization(found)).startswith("Bearer h.")
    assert "does not verify the certificate of an OIDC provider" in caplog.text


async def test_a_token_file_is_read_again_after_a_minute(kubeconfig, tmp_path, clock):
    path = tmp_path / "token"
    path.write_text("a")
    found = await load_configuration(kubeconfig({"tokenFile": str(path)}))
    path.write_text("b")
    headers = []
    for seconds in (0, 59, 2):
        clock[0] += seconds
        headers.append(await authorization(found))
    assert headers == ["Bearer a", "Bearer a", "Bearer b"]


async def test_credentials_that_cannot_be_refreshed_are_an_error(kubeconfig, tmp_path, clock):
    path = tmp_path / "token"
    path.write_text("a")
    found = await load_configuration(kubeconfig({"tokenFile": str(path)}))
    path.unlink()
    clock[0] += 61
    with pytest.raises(MissingCredentials, match=f"Cannot refresh the credentials: .*{path}"):
        await authorization(found)


@pytest.mark.parametrize(
    "user",
    [
        {},
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/does/not/exist"}},
        {"auth-provider": {"name": "azure"}},
    ],
    ids=str,
)
async def test_a_kubeconfig_without_usable_credentials_is_an_error(kubeconfig, user):
    with pytest.raises(
        MissingCredentials, match=r"kubeconfig has no token, password .* `kubectl create token`"
    ):
        await load_configuration(kubeconfig(user))


async def test_a_server_name_that_kopf_cannot_use_is_an_error(kubeconfig):
    with pytest.raises(MissingCredentials, match="tls-server-name"):
        await load_configuration(kubeconfig({"token": "t"}, **{"tls-server-name": "x"}))


async def test_the_error_names_a_missing_kubeconfig(tmp_path):
    with pytest.raises(MissingCredentials, match=f"{tmp_path}/kubeconfig: .*No such file"):
        await load_configuration(str(tmp_path / "kubeconfig"))


@pytest.mark.parametrize(
    "text", ["{", "", "[]", "x", "contexts: []", "current-context: c", "current-context: c\ncontexts: 3"]
)
async def test_the_error_names_an_invalid_kubeconfig(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(MissingCredentials, match=f"{path}: "):
        await load_configuration(str(path))


@pytest.fixture
def service_account(monkeypatch, tmp_path):
    """The token file of a pod's service account."""
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("a")
    authority.write_text("PEM")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    return token


async def test_outside_a_pod_the_error_names_the_flag(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MissingCredentials, match="--kubeconfig"):
        await load_configuration("")


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
async def test_a_pod_connects_to_the_address_of_the_api_server(service_account, monkeypatch, host, server):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    assert (await load_configuration("")).host == server


async def test_the_token_of_a_pod_is_read_again_after_a_minute(service_account, monkeypatch):
    """The kubelet replaces the token long before the old one expires."""
    found = await load_configuration("")
    service_account.write_text("b")
    assert await authorization(found) == "bearer a"
    moment = incluster_config.datetime.datetime.now() + incluster_config.datetime.timedelta(seconds=61)

    class Later(incluster_config.datetime.datetime):
        @classmethod
        def now(cls):
            return moment

    monkeypatch.setattr(incluster_config.datetime, "datetime", Later)
    assert await authorization(found) == "bearer b"


async def test_requests_carry_the_credentials(kubeconfig):
    headers = []

    async def respond(request):
        headers.append(request.headers["Authorization"])
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", respond)
    async with TestServer(app) as server:
        path = kubeconfig({"token": "t"}, server=str(server.make_url("")))
        async with Kube(await load_configuration(path)) as kube:
            await kube.get(DEPLOYMENT, "ns", "d")
    assert headers == ["Bearer t"]


async def test_a_client_certificate_needs_no_authorization():
    configuration = Configuration()
    configuration.cert_file = "c.pem"
    assert await authorization(configuration) == ""

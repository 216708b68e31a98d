"""Credentials for the API server, from a kubeconfig or from the pod's service account."""

import kopf
import pytest
import yaml

from vllmendpoint_operator.errors import MissingCredentials
from vllmendpoint_operator.source.credentials import login

KUBECONFIG = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443"}}],
}


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "restored after the test")


@pytest.fixture
def kubeconfig(tmp_path):
    """``kubeconfig(user)`` is the path of a kubeconfig with that user."""

    def write(user):
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump({**KUBECONFIG, "users": [{"name": "u", "user": user}]}))
        return str(path)

    return write


def test_a_kubeconfig_with_a_token(kubeconfig):
    found = login(kubeconfig({"token": "t"}))
    assert found.server == "https://api.example:6443"
    assert found.as_http_headers() == {"Authorization": "Bearer t"}


@pytest.mark.parametrize("user", [{}, {"exec": {"command": "aws"}}, {"auth-provider": {"name": "gcp"}}])
def test_a_kubeconfig_with_an_unsupported_user_is_an_error(kubeconfig, user):
    with pytest.raises(
        MissingCredentials, match=r"kubeconfig has no token, password .* `kubectl create token`"
    ):
        login(kubeconfig(user))


def test_the_error_names_a_missing_kubeconfig(tmp_path):
    with pytest.raises(MissingCredentials, match=f"{tmp_path}/kubeconfig: .*No such file"):
        login(str(tmp_path / "kubeconfig"))


@pytest.mark.parametrize("text", ["{", "contexts: []", "current-context: c"])
def test_the_error_names_an_invalid_kubeconfig(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(MissingCredentials, match=f"{path}: "):
        login(str(path))


def test_outside_a_pod_the_error_names_the_flag(monkeypatch):
    monkeypatch.setattr(kopf, "login_with_service_account", lambda settings: None)
    with pytest.raises(MissingCredentials, match="--kubeconfig"):
        login("")


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("10.0.0.1", "https://10.0.0.1:443"),
        ("fd00::1", "https://[fd00::1]:443"),
        ("", "https://kubernetes.default.svc"),
    ],
)
def test_a_pod_connects_to_the_address_of_the_api_server(monkeypatch, host, server):
    account = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda settings: account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert login("").server == server

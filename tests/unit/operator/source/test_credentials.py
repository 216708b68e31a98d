"""The configuration of the API server, as kopf receives it."""

import pytest

from vllmendpoint_operator.kube.configuration import Configuration
from vllmendpoint_operator.source.credentials import connection_info


@pytest.mark.parametrize("header", ["Bearer t", "Basic dTpw", "bearer t"])
async def test_kopf_sends_the_same_header(header):
    configuration = Configuration(host="https://api.example:6443", api_key={"BearerToken": header})
    found = await connection_info(configuration)
    assert found.as_http_headers() == {"Authorization": header}
    assert found.server == "https://api.example:6443"


async def test_kopf_uses_the_same_certificates_and_proxy():
    configuration = Configuration(host="https://api.example:6443")
    configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file = "ca", "cert", "key"
    configuration.proxy, configuration.verify_ssl = "http://proxy:3128", False
    found = await connection_info(configuration)
    assert (found.ca_path, found.certificate_path, found.private_key_path) == ("ca", "cert", "key")
    assert (found.proxy_url, found.insecure, found.as_http_headers()) == ("http://proxy:3128", True, {})

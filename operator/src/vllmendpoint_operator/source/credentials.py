"""Converts the configuration of the API server for kopf."""

import kopf

from vllmendpoint_operator.kube.configuration import Configuration, authorization

__all__ = ["connection_info"]


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return the connection with its current credentials. Raises MissingCredentials."""
    scheme, _, token = (await authorization(configuration)).partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )

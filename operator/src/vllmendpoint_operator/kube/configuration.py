"""Loads the address and credentials of the API server with ``kubernetes.aio``."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from vllmendpoint_operator.errors import MissingCredentials

__all__ = ["Configuration", "authorization", "load_configuration"]

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 60.0
"""How often the credentials of a kubeconfig are read again. An exec plugin runs only when its token
expires."""
_REFRESH_TIMEOUT_SECONDS: Final = 30.0
"""Limit for exec plugins and OIDC providers."""
_SESSION: Final = {
    # Per response. The default of kubernetes.aio is 2 MB, for clients that read whole lines.
    "read_bufsize": 64 * 1024,
    # Each request would read the proxies and .netrc, at 0.5 ms of CPU: as much as the request itself.
    "trust_env": False,
}
_ERRORS: Final = (
    *(ConfigException, yaml.YAMLError, aiohttp.ClientError, TimeoutError),
    *(OSError, ValueError, TypeError, LookupError, AttributeError),
)
"""What ``kubernetes.aio`` raises for unreadable files and for files of another structure."""


async def load_configuration(kubeconfig: str) -> Configuration:
    """Read a kubeconfig file; if ``kubeconfig`` is empty, the service account of the pod.

    Tokens in files, exec plugins and OIDC providers are refreshed by :func:`authorization`.

    Raises MissingCredentials if there are no credentials, or if they cannot be read.
    """
    configuration = Configuration()
    # No limit: every watch holds a connection, and the API server limits its clients itself.
    configuration.connection_pool_maxsize = 0
    configuration.client_session_kwargs = dict(_SESSION)
    if kubeconfig:
        await _load_kubeconfig(kubeconfig, configuration)
        return configuration
    try:
        load_incluster_config(configuration)
    except _ERRORS as error:
        raise MissingCredentials(
            f"Cannot use the service account of a pod: {error} "
            "Outside a pod, set --kubeconfig to the path of a kubeconfig file."
        ) from error
    return configuration


async def authorization(configuration: Configuration) -> str:
    """Return the value of the header ``Authorization``; empty for client certificates.

    Raises MissingCredentials if the credentials cannot be refreshed.
    """
    try:
        settings: dict[str, Any] = await configuration.auth_settings()
    except _ERRORS as error:
        raise MissingCredentials(f"Cannot refresh the credentials: {error}") from error
    return str(settings["BearerToken"]["value"]) if settings else ""


async def _load_kubeconfig(path: str, configuration: Configuration) -> None:
    try:
        await asyncio.to_thread(_check_readable, path)
        async with asyncio.timeout(_REFRESH_TIMEOUT_SECONDS):
            loader = await load_kube_config(path, client_configuration=configuration)
    except _ERRORS as error:
        raise MissingCredentials(f"Cannot read {path}: {error}") from error
    if not configuration.api_key and not configuration.cert_file:
        raise MissingCredentials(
            f"The user in {path} has no token, password or client certificate, or its exec plugin failed. "
            "The log contains the error of the plugin. Create a token with `kubectl create token`."
        )
    if configuration.tls_server_name:
        raise MissingCredentials(
            f"The cluster in {path} sets tls-server-name, which kopf does not support. Set server to an "
            "address that the certificate contains."
        )
    if loader.provider == "oidc":
        log.warning(
            "kubernetes.aio does not verify the certificate of an OIDC provider: use an exec plugin instead",
            extra={"kubeconfig": path},
        )
    configuration.proxy = configuration.proxy or _environment_proxy(configuration.host)
    configuration.refresh_api_key_hook = _refresh_hook(loader)


def _environment_proxy(url: str) -> str | None:
    """The proxy of HTTPS_PROXY, unless NO_PROXY contains the host."""
    address = urlsplit(url)
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


def _check_readable(path: str) -> None:
    """Raises OSError, where ``kubernetes.aio`` reports a missing file as one without a current context."""
    with Path(path).expanduser().open():
        pass


def _refresh_hook(loader: Any) -> Callable[[Configuration], Awaitable[None]]:
    refreshed_at = monotonic()

    async def refresh(configuration: Configuration) -> None:
        nonlocal refreshed_at
        if monotonic() - refreshed_at >= REFRESH_SECONDS:
            # Before the refresh: concurrent requests use the old token meanwhile.
            refreshed_at = monotonic()
            async with asyncio.timeout(_REFRESH_TIMEOUT_SECONDS):
                await loader.load_and_set(configuration)

    return refresh

"""Reads the credentials for the API server with kopf's functions."""

import dataclasses
import os

import kopf
import yaml

from vllmendpoint_operator.errors import MissingCredentials

__all__ = ["login"]


def login(kubeconfig: str) -> kopf.ConnectionInfo:
    """Return the credentials in ``kubeconfig``; if it is empty, those of the pod's service account.

    Raises MissingCredentials if there are none, or if they cannot be read.
    """
    options = kopf.OperatorSettings()
    try:
        if kubeconfig:
            os.environ["KUBECONFIG"] = kubeconfig  # kopf reads the path from this variable
            found = kopf.login_with_kubeconfig(settings=options)
        else:
            found = kopf.login_with_service_account(settings=options)
    except (OSError, ValueError, KeyError, kopf.LoginError, yaml.YAMLError) as error:
        raise MissingCredentials(f"Cannot read {kubeconfig or 'the service account'}: {error}") from error
    if found is None:
        raise MissingCredentials(
            "No service account token is mounted, so this process does not run in a pod. "
            "Set --kubeconfig to the path of a kubeconfig file."
        )
    if not kubeconfig:
        # Like client-go, use the address of the API server: it works without the cluster's DNS.
        return dataclasses.replace(found, server=_in_cluster_url() or found.server)
    if not found.as_http_headers() and not (found.certificate_path or found.certificate_data):
        raise MissingCredentials(
            f"The user in {kubeconfig} has no token, password or client certificate. Users with exec or "
            "auth-provider are not supported: create a token with `kubectl create token`."
        )
    return found


def _in_cluster_url() -> str | None:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host and port else None

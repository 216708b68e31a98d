"""The volume for downloaded models, and the PersistentVolumeClaim of ``cache.volumeClaimTemplate``. Pure."""

from typing import Any

from vllmendpoint_api import AccessMode
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["cache_claims", "cache_volume"]


def _claim_name(endpoint: Endpoint) -> str:
    return f"{endpoint.name}-cache"


def cache_volume(endpoint: Endpoint) -> dict[str, Any]:
    """The volume's source; an emptyDir unless the spec has a claim."""
    cache = endpoint.spec.cache
    if cache is not None and cache.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name}}
    if cache is not None and cache.volume_claim_template is not None:
        return {"persistentVolumeClaim": {"claimName": _claim_name(endpoint)}}
    if cache is not None and cache.empty_dir is not None and cache.empty_dir.size_limit is not None:
        return {"emptyDir": {"sizeLimit": str(cache.empty_dir.size_limit)}}
    return {"emptyDir": {}}


def cache_claims(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The claim of ``cache.volumeClaimTemplate``; empty if the spec has none."""
    template = endpoint.spec.cache.volume_claim_template if endpoint.spec.cache is not None else None
    if template is None:
        return []
    spec: dict[str, Any] = {
        "accessModes": [AccessMode(mode).value for mode in template.access_modes],
        "resources": {"requests": {"storage": str(template.size)}},
    }
    if template.storage_class_name is not None:
        # An empty name selects volumes without a class, which an administrator created.
        spec["storageClassName"] = template.storage_class_name
    metadata = {"name": _claim_name(endpoint), "labels": endpoint.labels("cache")}
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}]

"""Names of the objects that a spec refers to. Pure."""

from vllmendpoint_api import VLLMEndpointSpec

__all__ = ["claim_references", "config_map_references"]


def config_map_references(spec: VLLMEndpointSpec) -> set[str]:
    """ConfigMaps whose content the plan depends on."""
    config = spec.engine.config
    script = spec.handlers.script if spec.handlers is not None else None
    references = (
        config.config_map_key_ref if config is not None else None,
        script.config_map_key_ref if script is not None else None,
    )
    return {reference.name for reference in references if reference is not None}


def claim_references(spec: VLLMEndpointSpec) -> set[str]:
    """The user's PersistentVolumeClaims that the workers mount."""
    found = set()
    if spec.model.uri.startswith("pvc://"):
        found.add(spec.model.uri.removeprefix("pvc://").split("/", 1)[0])
    if spec.cache is not None and spec.cache.persistent_volume_claim is not None:
        found.add(spec.cache.persistent_volume_claim.claim_name)
    return found

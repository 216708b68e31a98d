"""Parses a VLLMEndpoint as the API server returned it."""

import logging
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import ModelSpec, Reason, VLLMEndpointSpec, VLLMEndpointStatus, names
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.kube.client import Object
from vllmendpoint_operator.observe.partial_spec import parse_readable_fields
from vllmendpoint_operator.observe.snapshot import Endpoint

from .assignment import without_conflict

__all__ = ["has_status_of_generation", "parse_endpoint", "parse_partly"]

log = logging.getLogger(__name__)

_PLACEHOLDER_SPEC: Final = VLLMEndpointSpec(model=ModelSpec(uri="file:///"))
"""Replaces a spec without any readable part; only names and counts are derived from it."""


def parse_endpoint(obj: Object) -> Endpoint:
    """Raises PlanError if this version of the operator cannot read the spec."""
    try:
        spec = VLLMEndpointSpec.model_validate(obj["spec"])
    except ValidationError as error:
        raise PlanError(Reason.INVALID_SPEC, _message(error)) from error
    return _endpoint(obj, spec)


def parse_partly(obj: Object) -> tuple[Endpoint, bool]:
    """The endpoint with the readable fields of its spec, and whether these are enough to scale it."""
    spec = parse_readable_fields(obj["spec"])
    return _endpoint(obj, spec or _PLACEHOLDER_SPEC), spec is not None


def has_status_of_generation(obj: Object) -> bool:
    """Whether the status describes the current spec."""
    status, generation = obj["status"], obj["metadata"]["generation"]
    return bool(status.get("conditions")) and status.get("observedGeneration") == generation


def _endpoint(obj: Object, spec: VLLMEndpointSpec) -> Endpoint:
    metadata = obj["metadata"]
    return Endpoint(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=int(metadata["generation"]),
        spec=spec,
        status=_status(obj),
        rollout=(metadata.get("annotations") or {}).get(names.ANNOTATION_ROLLOUT, ""),
    )


def _status(obj: Object) -> VLLMEndpointStatus | None:
    """None before the first reconcile, and if another version wrote a status that this one cannot read."""
    raw_status: dict[str, Any] = without_conflict(obj["status"])
    if not raw_status.get("conditions"):
        return None
    try:
        return VLLMEndpointStatus.model_validate(raw_status)
    except ValidationError as error:
        log.warning("cannot read the existing status, which is replaced", extra={"model": error.title})
        return None


def _message(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    remedy = "Correct the field, or install the same version of the operator and of the CRD."
    return f"{field}: {first['msg']}. {remedy}"

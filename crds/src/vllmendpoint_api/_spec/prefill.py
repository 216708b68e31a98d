"""``spec.prefill``: workers that compute the KV caches of prompts, so that the other workers only decode."""

from typing import Annotated, Final

from pydantic import Field

from vllmendpoint_api._base import Contract, JsonObject
from vllmendpoint_api._options.rejected import FRONTEND_OPTIONS

from .common import option_rule
from .engine import argument_rules
from .worker import Resources

__all__ = ["PrefillEngineSpec", "PrefillSpec"]

_UNREACHED: Final = {
    "rule": f"!{option_rule('self', FRONTEND_OPTIONS, shortened=False)}",
    "messageExpression": "'prefill.engine.args: ' + self.split('=', 2)[0] + ' is read by the server on port "
    "8080, not at status.url; remove it'",
    "message": "prefill.engine.args: this argument is read by the server on port 8080, not at status.url; "
    "remove it",
}
"""Prefill workers always have a frontend."""


class PrefillEngineSpec(Contract):
    """Options of the vLLM engine in prefill workers."""

    args: Annotated[
        tuple[
            Annotated[
                str,
                Field(max_length=4096, json_schema_extra=argument_rules("prefill.engine.args", _UNREACHED)),
            ],
            ...,
        ],
        Field(
            max_length=64,  # with 128, the cost of the last rule exceeds the API server's limit
            description="Arguments of dynamo.vllm and vLLM after those of spec.engine.args, which apply too. "
            "The same arguments are rejected. Defaults to none.",
        ),
    ] = ()


class PrefillSpec(Contract):
    """Workers that compute the KV caches of prompts. The workers of spec.replicas then only decode."""

    replicas: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="Number of prefill worker pods, unless spec.replicas is 0. Defaults to 1.",
        ),
    ] = 1
    resources: Annotated[
        Resources | None,
        Field(description="Compute resources of each prefill worker. Defaults to worker.resources."),
    ] = None
    engine: Annotated[
        PrefillEngineSpec, Field(description="Options of the vLLM engine in prefill workers.")
    ] = PrefillEngineSpec()
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="Strategic merge patch of the PodTemplateSpec of prefill workers, applied after "
            "worker.podTemplate. Defaults to no change."
        ),
    ] = None

"""``spec`` of a VLLMEndpoint. Its docstrings and descriptions are the descriptions in the CRD.

The message of each CEL rule names the field and the remedy, because kubectl shows it to the user.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AwareDatetime, ConfigDict, Field

from vllmendpoint_api._base import Contract, JsonObject
from vllmendpoint_api._options.rejected import FRONTEND_ENV, FRONTEND_OPTIONS

from .common import Count, IntOrPercent, cel_list, option_rule, rules
from .engine import EngineSpec, ModelSpec
from .handlers import HandlersSpec
from .health_check import HealthCheckSpec
from .prefill import PrefillSpec
from .worker import CacheSpec, Resources, WorkerSpec

__all__ = [
    "FrontendMode",
    "FrontendSpec",
    "RollingUpdate",
    "RoutingMode",
    "RoutingSpec",
    "Strategy",
    "VLLMEndpointSpec",
]


class FrontendMode(StrEnum):
    MANAGED = "Managed"
    NONE = "None"


class RoutingMode(StrEnum):
    ROUND_ROBIN = "RoundRobin"
    RANDOM = "Random"
    LEAST_LOADED = "LeastLoaded"
    KV = "KV"


class RoutingSpec(Contract):
    """How the frontend selects the worker for a request."""

    mode: Annotated[
        RoutingMode,
        Field(
            description="RoundRobin: each worker in turn. Random: any worker. LeastLoaded: the worker with "
            "the fewest requests of this frontend in flight. KV: the worker with most of the prompt in its "
            "KV cache, weighed against its load; a change to or from KV restarts the workers, which then "
            "publish the content of their caches. Defaults to RoundRobin."
        ),
    ] = RoutingMode.ROUND_ROBIN
    session_affinity_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=31_536_000,
            description="Keep requests with the same value of the header X-Dynamo-Session-ID on one worker "
            "while it is available, until this long after the last of them. If unset, the header has no "
            "effect.",
        ),
    ] = None


class FrontendSpec(Contract):
    """Dynamo's frontend, the OpenAI-compatible HTTP server in front of the workers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.routing) || !has(self.mode) || self.mode != 'None'",
                "message": "frontend.routing: there is no frontend because frontend.mode is None; remove "
                "this field",
            }
        )
    )
    mode: Annotated[
        FrontendMode,
        Field(
            description="Managed: the operator runs a frontend, and status.url is its address. None: there "
            "is no frontend, and status.url is the workers' port 8080. Defaults to Managed."
        ),
    ] = FrontendMode.MANAGED
    image: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            pattern=r"^\S+$",
            description="Container image of the frontends. Defaults to the operator's image at the time of "
            "the last change of the spec or restart. It needs no GPU libraries.",
        ),
    ] = None
    replicas: Annotated[int, Field(ge=1, le=100, description="Number of frontend pods. Defaults to 1.")] = 1
    routing: Annotated[
        RoutingSpec, Field(description="How the frontend selects the worker for a request.")
    ] = RoutingSpec()
    migration_limit: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How often the frontend may move a request to another worker, with the tokens "
            "generated so far, when its worker stalls, fails or terminates. 0: never. Defaults to 3.",
        ),
    ] = 3
    resources: Annotated[
        Resources,
        Field(description="Compute resources of each frontend pod. Defaults to none."),
    ] = Resources()
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="Strategic merge patch of the operator's PodTemplateSpec of the frontend. The "
            "container is named main. Defaults to no change."
        ),
    ] = None


class RollingUpdate(Contract):
    """Limits on the number of workers during a rolling update."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(string(self.maxUnavailable) in ['0', '0%'] && "
                "string(self.maxSurge) in ['0', '0%'])",
                "message": "strategy.rollingUpdate: maxUnavailable and maxSurge must not both be 0, because "
                "then no worker can be replaced",
            }
        )
    )
    max_unavailable: Annotated[
        IntOrPercent,
        Field(
            description="Maximum number of unavailable workers during the update, or a percentage of "
            "replicas, rounded down. Defaults to 1."
        ),
    ] = 1
    max_surge: Annotated[
        IntOrPercent,
        Field(
            description="Maximum number of workers above replicas during the update, or a percentage of "
            "replicas, rounded up. Defaults to 0, because a surge needs spare GPUs."
        ),
    ] = 0


class Strategy(Contract):
    """How the operator replaces workers when their pod template changes."""

    rolling_update: Annotated[
        RollingUpdate, Field(description="Limits on the number of workers during a rolling update.")
    ] = RollingUpdate()


def _field(root: str, outer: str, inner: str, default: str) -> str:
    """Return a CEL expression: the field, or ``default``. Optional types (``?.``) exceed the cost limit."""
    return f"(has({root}.{outer}) && has({root}.{outer}.{inner}) ? {root}.{outer}.{inner} : {default})"


_MANAGED: Final = "(!has(self.frontend) || !has(self.frontend.mode) || self.frontend.mode == 'Managed')"
_ARGUMENTS: Final = (
    f"({_field('self', 'engine', 'args', '[]')} + "
    "(has(self.worker) && has(self.worker.env) ? self.worker.env.map(e, "
    f"e.name in {cel_list(list(FRONTEND_ENV))} || e.name.startsWith('SM_VLLM_') ? "
    "'--' + e.name.replace('SM_', '').substring(5).lowerAscii().replace('_', '-') : '') : []))"
)
"""CEL: the arguments in ``engine.args``, and those that the worker derives from ``worker.env``."""
_UNREACHED: Final = option_rule("item", FRONTEND_OPTIONS, shortened=False)
_UNCHANGED: Final = "oldSelf.hasValue() && " + " && ".join(
    f"{_field('oldSelf.value()', *path)} == {_field('self', *path)}"
    for path in (("engine", "args", "[]"), ("worker", "env", "[]"), ("frontend", "mode", "'Managed'"))
)
"""CEL: the rule's fields are unchanged, so that existing endpoints that violate it can still be scaled."""


class VLLMEndpointSpec(Contract):
    """Desired state of the endpoint."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.model.tokenSecretRef) || !has(self.worker) || !has(self.worker.env) || "
                "!self.worker.env.exists(item, item.name == 'HF_TOKEN')",
                "message": "model.tokenSecretRef: HF_TOKEN is also set in worker.env; remove one of them",
            },
            {
                "rule": "!has(self.model.artifactsUri) || !has(self.worker) || !has(self.worker.env) || "
                "!self.worker.env.exists(item, item.name == 'SAGEMAKER_MODEL_PATH' && "
                "(has(item.valueFrom) || "
                "(has(item.value) && item.value != '' && !item.value.startsWith('/'))))",
                "message": "worker.env: SAGEMAKER_MODEL_PATH must be an absolute path in value, not "
                "valueFrom, because the operator mounts the volume for model.artifactsUri there",
            },
            {
                "rule": "!has(self.model.type) || self.model.type != 'Embedding' || "
                "!has(self.healthCheck) || !has(self.healthCheck.expect)",
                "message": "healthCheck.expect: a model of type Embedding generates no text; remove this "
                "field",
            },
            {
                "rule": "!has(self.model.type) || self.model.type != 'Embedding' || !has(self.frontend) || "
                "!has(self.frontend.routing) || self.frontend.routing.mode != 'KV'",
                "message": "frontend.routing.mode: a model of type Embedding has no KV cache to route by; "
                "set another mode",
            },
            {
                "rule": "!has(self.prefill) || !has(self.frontend) || !has(self.frontend.mode) || "
                "self.frontend.mode != 'None'",
                "message": "prefill: only a frontend sends requests to prefill workers, and frontend.mode "
                "is None; set frontend.mode to Managed, or remove this field",
            },
            {
                "rule": "!has(self.prefill) || !has(self.model.type) || self.model.type != 'Embedding'",
                "message": "prefill: a model of type Embedding does not decode; remove this field",
            },
            {
                "rule": "!has(self.prefill) || !has(self.frontend) || !has(self.frontend.routing) || "
                "self.frontend.routing.mode != 'KV'",
                "message": "prefill: frontend.routing.mode KV is not supported with prefill yet; set "
                "another mode",
            },
            {
                "rule": f"({_UNCHANGED}) || !{_MANAGED} || !{_ARGUMENTS}.exists(item, {_UNREACHED})",
                "optionalOldSelf": True,
                "messageExpression": f"'engine: ' + {_ARGUMENTS}.filter(item, {_UNREACHED})[0]"
                ".split('=', 2)[0] + ' (in engine.args or worker.env) is read by the server on port 8080, "
                "not at status.url; remove it, or set frontend.mode to None'",
                "message": "engine: an option (in engine.args or worker.env) is read by the server on port "
                "8080, not at status.url; remove it, or set frontend.mode to None",
            },
            {
                "rule": "!has(self.cache) || !has(self.cache.volumeClaimTemplate) || "
                "(has(self.cache.volumeClaimTemplate.accessModes) && "
                "'ReadWriteMany' in self.cache.volumeClaimTemplate.accessModes) || "
                "(!has(self.prefill) && self.replicas <= 1 && "
                "(!has(self.strategy) || !has(self.strategy.rollingUpdate) || "
                "string(self.strategy.rollingUpdate.maxSurge) in ['0', '0%']))",
                "message": "cache.volumeClaimTemplate: only one pod at a time can use a ReadWriteOnce "
                "volume; set accessModes to [ReadWriteMany], or remove prefill and set replicas to at most 1 "
                "and maxSurge to 0 (if all pods run on one node, create a PersistentVolumeClaim and set "
                "cache.persistentVolumeClaim)",
            },
        )
    )
    model: Annotated[ModelSpec, Field(description="Model to serve.")]
    engine: Annotated[
        EngineSpec,
        Field(description="Options of the vLLM engine. Defaults to those of vLLM and Dynamo."),
    ] = Field(default_factory=EngineSpec)
    replicas: Annotated[
        Count,
        Field(description="Number of worker pods; with prefill, of those that decode. Defaults to 1."),
    ] = 1
    prefill: Annotated[
        PrefillSpec | None,
        Field(
            description="Workers that compute the KV caches of prompts and transfer them to the workers of "
            "spec.replicas, which then only decode. Each of the two has pods of its own. If unset, each "
            "worker does both."
        ),
    ] = None
    worker: Annotated[WorkerSpec, Field(description="Pods that run Dynamo and vLLM.")] = Field(
        default_factory=WorkerSpec
    )
    cache: Annotated[
        CacheSpec | None,
        Field(description="Volume for downloaded models. Defaults to an emptyDir in each pod."),
    ] = None
    health_check: Annotated[
        HealthCheckSpec | None,
        Field(
            description="Health check of the engine: a request that each worker sends to its own engine. "
            "Changes take effect without a restart. Unset fields come from the worker's environment or "
            "config file, then from the defaults below."
        ),
    ] = None
    handlers: Annotated[
        HandlersSpec | None,
        Field(
            description="Custom handlers for /ping and /invocations on port 8080. Changes take effect "
            "without a restart. Unset fields come from the worker's environment or script, then from vLLM."
        ),
    ] = None
    frontend: Annotated[
        FrontendSpec,
        Field(description="Dynamo's frontend, the OpenAI-compatible HTTP server in front of the workers."),
    ] = FrontendSpec()
    strategy: Annotated[
        Strategy,
        Field(description="How the operator replaces workers when their pod template changes."),
    ] = Strategy()
    paused: Annotated[
        bool,
        Field(
            description="While true, the operator does not create, update or delete the endpoint's "
            "resources. It still updates the status. Defaults to false."
        ),
    ] = False
    restarted_at: Annotated[
        AwareDatetime | None,
        Field(
            description="Time of the requested restart. Each new value restarts the workers according to "
            "strategy, with the pod template that this version of the operator renders. `kubectl wait "
            "--for=condition=Ready` waits for the rollout. If unset or removed, nothing restarts."
        ),
    ] = None

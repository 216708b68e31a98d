"""``spec`` of a VLLMEndpoint. A field is either here and works, or not here.

CEL rules carry the sentence that a user reads in kubectl's refusal: the field, and the fix.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AwareDatetime, ConfigDict, Field

from ._base import Contract, JsonObject
from ._owned import FRONTEND_ENV, FRONTEND_OPTIONS
from ._rules import Count, IntOrPercent, cel_list, option_rule, rules
from ._spec_checks import Handlers, HealthCheck
from ._spec_engine import Engine, Model
from ._spec_worker import Cache, Resources, Worker

__all__ = [
    "Frontend",
    "FrontendMode",
    "RollingUpdate",
    "Strategy",
    "VLLMEndpointSpec",
]


class FrontendMode(StrEnum):
    MANAGED = "Managed"
    NONE = "None"


class Frontend(Contract):
    """The OpenAI-compatible HTTP server in front of the workers."""

    mode: Annotated[
        FrontendMode,
        Field(description="Managed: the operator runs it. None: there is none. Default: Managed."),
    ] = FrontendMode.MANAGED
    replicas: Annotated[int, Field(ge=1, le=100, description="Frontend pods. Default: 1.")] = 1
    resources: Annotated[Resources, Field(description="Resources of each frontend pod.")] = Resources()
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="A partial PodTemplateSpec, merged last over what the operator renders; "
            "the container is called main."
        ),
    ] = None


class RollingUpdate(Contract):
    """How many workers may be down, or on top, while they are replaced."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(string(self.maxUnavailable) in ['0', '0%'] && "
                "string(self.maxSurge) in ['0', '0%'])",
                "message": "strategy.rollingUpdate: maxUnavailable and maxSurge cannot both be 0: "
                "no worker could ever be replaced",
            }
        )
    )
    max_unavailable: Annotated[
        IntOrPercent, Field(description="Workers that may be missing meanwhile. Default: 1.")
    ] = 1
    max_surge: Annotated[
        IntOrPercent,
        Field(description="Workers beyond replicas meanwhile. Default: 0, since a GPU to spare is rare."),
    ] = 0


class Strategy(Contract):
    """How workers are replaced."""

    rolling_update: Annotated[RollingUpdate, Field(description="The rolling update.")] = RollingUpdate()


def _field(root: str, outer: str, inner: str, default: str) -> str:
    """CEL: the field, or ``default``. Optional types (``?.``) would exceed the cost limit."""
    return f"(has({root}.{outer}) && has({root}.{outer}.{inner}) ? {root}.{outer}.{inner} : {default})"


_MANAGED: Final = "(!has(self.frontend) || !has(self.frontend.mode) || self.frontend.mode == 'Managed')"
_ARGUMENTS: Final = (
    f"({_field('self', 'engine', 'args', '[]')} + "
    "(has(self.worker) && has(self.worker.env) ? self.worker.env.map(e, "
    f"e.name in {cel_list(list(FRONTEND_ENV))} || e.name.startsWith('SM_VLLM_') ? "
    "'--' + e.name.replace('SM_', '').substring(5).lowerAscii().replace('_', '-') : '') : []))"
)
"""Of ``engine.args``, and those that the worker makes of ``worker.env``."""
_UNREACHED: Final = option_rule("item", FRONTEND_OPTIONS, shortened=False)
_UNCHANGED: Final = "oldSelf.hasValue() && " + " && ".join(
    f"{_field('oldSelf.value()', *path)} == {_field('self', *path)}"
    for path in (("engine", "args", "[]"), ("worker", "env", "[]"), ("frontend", "mode", "'Managed'"))
)
"""An endpoint of an earlier release that breaks the rule can still be scaled and changed elsewhere."""


class VLLMEndpointSpec(Contract):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.model.tokenSecretRef) || !has(self.worker) || !has(self.worker.env) || "
                "!self.worker.env.exists(item, item.name == 'HF_TOKEN')",
                "message": "model.tokenSecretRef: HF_TOKEN is set in worker.env too; remove one",
            },
            {
                "rule": "!has(self.model.artifactsUri) || !has(self.worker) || !has(self.worker.env) || "
                "!self.worker.env.exists(item, item.name == 'SAGEMAKER_MODEL_PATH' && "
                "(has(item.valueFrom) || "
                "(has(item.value) && item.value != '' && !item.value.startsWith('/'))))",
                "message": "worker.env: SAGEMAKER_MODEL_PATH must be an absolute path, given as a value: "
                "model.artifactsUri is fetched to a volume that is mounted there",
            },
            {
                "rule": "!has(self.model.type) || self.model.type != 'Embedding' || "
                "!has(self.healthCheck) || !has(self.healthCheck.expect)",
                "message": "healthCheck.expect: a model of the type Embedding generates no text; remove it",
            },
            {
                "rule": f"({_UNCHANGED}) || !{_MANAGED} || !{_ARGUMENTS}.exists(item, {_UNREACHED})",
                "optionalOldSelf": True,
                "messageExpression": f"'engine: ' + {_ARGUMENTS}.filter(item, {_UNREACHED})[0]"
                ".split('=', 2)[0] + ' (of engine.args or worker.env) is read by the server on port 8080, "
                "not at status.url; remove it, or set frontend.mode to None'",
                "message": "engine: an option (of engine.args or worker.env) is read by the server on port "
                "8080, not at status.url; remove it, or set frontend.mode to None",
            },
            {
                "rule": "!has(self.cache) || !has(self.cache.volumeClaimTemplate) || "
                "(has(self.cache.volumeClaimTemplate.accessModes) && "
                "'ReadWriteMany' in self.cache.volumeClaimTemplate.accessModes) || "
                "(self.replicas <= 1 && (!has(self.strategy) || !has(self.strategy.rollingUpdate) || "
                "string(self.strategy.rollingUpdate.maxSurge) in ['0', '0%']))",
                "message": "cache.volumeClaimTemplate: a ReadWriteOnce volume is for one pod at a time: set "
                "accessModes to [ReadWriteMany], or replicas to at most 1 and maxSurge to 0 (where all pods "
                "run on one node, make the claim yourself and name it in cache.persistentVolumeClaim)",
            },
        )
    )
    model: Annotated[Model, Field(description="What to serve.")]
    engine: Annotated[Engine, Field(description="How vLLM runs.")] = Field(default_factory=Engine)
    replicas: Annotated[Count, Field(description="Number of workers. Default: 1.")] = 1
    worker: Annotated[Worker, Field(description="The pods that run Dynamo + vLLM.")] = Field(
        default_factory=Worker
    )
    cache: Annotated[
        Cache | None, Field(description="Where downloaded models are kept. Default: an emptyDir.")
    ] = None
    health_check: Annotated[HealthCheck | None, Field(description="How the engine is asked to generate.")] = (
        None
    )
    handlers: Annotated[Handlers | None, Field(description="Custom handlers for /ping and /invocations.")] = (
        None
    )
    frontend: Annotated[
        Frontend, Field(description="The OpenAI-compatible HTTP server in front of the workers.")
    ] = Frontend()
    strategy: Annotated[Strategy, Field(description="How workers are replaced.")] = Strategy()
    paused: Annotated[
        bool,
        Field(
            description="While true, nothing of the endpoint's is made, changed or deleted; its status is "
            "still reported. Default: false."
        ),
    ] = False
    restarted_at: Annotated[
        AwareDatetime | None,
        Field(
            description="Any other time than the last one restarts the workers, by the strategy, with what "
            "this version of the operator renders. It is part of the spec, so that `kubectl wait "
            "--for=condition=Ready` waits for the rollout. Removing it restarts nothing."
        ),
    ] = None

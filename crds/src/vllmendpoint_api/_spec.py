"""``spec`` of a VLLMEndpoint. A field is either here and works, or not here.

CEL rules carry the sentence that a user reads in kubectl's refusal: the field, and the fix.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, WithJsonSchema

from ._base import Contract, JsonObject, Quantity
from ._health import Level, Mode, ModelType
from ._owned import OWNED_ENGINE_ARGS, OWNED_ENV, OWNED_ENV_PREFIX

__all__ = [
    "AccessMode",
    "Cache",
    "ConfigMapKeyRef",
    "EmptyDir",
    "Engine",
    "EngineConfig",
    "EnvVar",
    "Expect",
    "Frontend",
    "FrontendMode",
    "HandlerScript",
    "Handlers",
    "HealthCheck",
    "LocalObjectReference",
    "Model",
    "PersistentVolumeClaim",
    "Resources",
    "RollingUpdate",
    "ScriptKeyRef",
    "Strategy",
    "TokenKeyRef",
    "VLLMEndpointSpec",
    "VolumeClaimTemplate",
    "Worker",
]


def _rules(*rules: dict[str, str]) -> Any:
    return {"x-kubernetes-validations": list(rules)}


def _cel_list(names: list[str]) -> str:
    return "[" + ", ".join(f"'{n}'" for n in names) + "]"


Name = Annotated[str, Field(min_length=1, max_length=253)]
Count = Annotated[int, Field(ge=0, le=10_000)]
IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": 10_000,
            "maxLength": 4,
            "pattern": r"^(100|[1-9]?[0-9])%$",
        }
    ),
    Field(union_mode="left_to_right"),
]

# On the items, not the lists: the API server's cost estimate multiplies by the list's length twice
# where a message has to find the culprit itself.
_ARG_RULE: Final = {
    "rule": "!self.startsWith('--') || "
    f"!(self.split('=', 2)[0].replace('_', '-') in {_cel_list(list(OWNED_ENGINE_ARGS))})",
    "messageExpression": "'engine.args: ' + self.split('=', 2)[0] + ' is set by the operator; remove it'",
    "message": "engine.args: this argument is set by the operator; remove it",
}
_ENV_RULE: Final = {
    "rule": f"!self.startsWith('{OWNED_ENV_PREFIX}') && !(self in {_cel_list(list(OWNED_ENV))})",
    "messageExpression": "'worker.env: ' + self + ' is set by the operator; remove it'",
    "message": "worker.env: this name is set by the operator; remove it",
}


class TokenKeyRef(Contract):
    """A key of a Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the Secret.")]
    key: Annotated[Name, Field(description="Key in the Secret.")] = "token"


class Model(Contract):
    """What to serve."""

    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Where the model is: hf://organisation/name, pvc://claim/path or "
            "file:///path/in/the/image. The scheme is required.",
            json_schema_extra=_rules(
                {
                    "rule": "self.matches('^(hf|pvc|file)://')",
                    "message": "model.uri: the scheme must be hf://, pvc:// or file://, "
                    "for instance hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                },
                {
                    "rule": "!self.startsWith('hf://') || self.matches('^hf://[\\\\w.-]+/[\\\\w.-]+$')",
                    "message": "model.uri: hf:// takes an organisation and a name, "
                    "for instance hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                },
                {
                    "rule": "!self.startsWith('pvc://') || "
                    "self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$')",
                    "message": "model.uri: pvc:// takes a claim and a path, for instance pvc://models/smollm",
                },
                {
                    "rule": "!self.startsWith('file://') || self.matches('^file:///.+$')",
                    "message": "model.uri: file:// takes an absolute path, for instance file:///opt/models/smollm",
                },
                {
                    "rule": "!self.contains('/../') && !self.endsWith('/..')",
                    "message": "model.uri: '..' is not allowed in the path",
                },
            ),
        ),
    ]
    name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]*$",
            description="Name under which clients ask for the model. Default: metadata.name.",
        ),
    ] = None
    type: Annotated[
        ModelType | None,
        Field(description="Chat, Completion or Embedding. Unset: detected from the model."),
    ] = None
    token_secret_ref: Annotated[
        TokenKeyRef | None,
        Field(
            description="Access token for the model hub: HF_TOKEN of the workers, given by the kubelet. "
            "The operator reads no Secret."
        ),
    ] = None
    artifacts_uri: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="Model data as SageMaker has it, s3://bucket/prefix/: fetched by each worker to "
            "SAGEMAKER_MODEL_PATH (default /opt/ml/model) before the handlers are loaded.",
            json_schema_extra=_rules(
                {
                    "rule": "self.matches('^s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/.*)?$')",
                    "message": "model.artifactsUri: give s3://bucket/prefix/, "
                    "for instance s3://my-bucket/my-model/",
                },
            ),
        ),
    ] = None


class ConfigMapKeyRef(Contract):
    """A key of a ConfigMap in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[Name, Field(description="Key in the ConfigMap.")] = "config.yaml"


class EngineConfig(Contract):
    """The engine's config file: vLLM's options, and health_check_level and health_check_payload."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "has(self.inline) != has(self.configMapKeyRef)",
                "message": "engine.config: set exactly one of inline and configMapKeyRef",
            }
        )
    )
    inline: Annotated[JsonObject | None, Field(description="The content of the file.")] = None
    config_map_key_ref: Annotated[
        ConfigMapKeyRef | None, Field(description="A ConfigMap's key that holds the file, as YAML.")
    ] = None


class Engine(Contract):
    """How vLLM runs."""

    args: Annotated[
        tuple[Annotated[str, Field(max_length=4096, json_schema_extra=_rules(_ARG_RULE))], ...],
        Field(
            max_length=128,
            description="Arguments of vLLM and dynamo.vllm, verbatim, one token an item. "
            "Those that the operator sets itself are refused.",
        ),
    ] = ()
    config: Annotated[EngineConfig | None, Field(description="The config file (config.yaml).")] = None


class Resources(Contract):
    """Compute resources, as in a container."""

    limits: Annotated[dict[str, Quantity], Field(default_factory=dict, description="Most that may be used.")]
    requests: Annotated[dict[str, Quantity], Field(default_factory=dict, description="What is reserved.")]


class EnvVar(Contract):
    """An environment variable, as in a container."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
            description="Name of the variable.",
            json_schema_extra=_rules(_ENV_RULE),
        ),
    ]
    value: Annotated[str | None, Field(max_length=32_768, description="Its value.")] = None
    value_from: Annotated[
        JsonObject | None, Field(description="Source of the value, as in a container's env.")
    ] = None


class LocalObjectReference(Contract):
    """A name in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]


class Worker(Contract):
    """The pods that run Dynamo + vLLM."""

    image: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            description="Image of the workers. Default: the operator's, pinned when the endpoint is made.",
        ),
    ] = None
    resources: Annotated[Resources, Field(description="Resources of each worker.")] = Resources()
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=128,
            description="Environment of the workers. Names that the operator sets itself are refused.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    env_from: Annotated[
        tuple[JsonObject, ...],
        Field(max_length=32, description="ConfigMaps and Secrets whose keys become environment."),
    ] = ()
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...],
        Field(
            max_length=16,
            description="Secrets for the image registry.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    service_account_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            description="An existing ServiceAccount for the workers; it is bound to the workers' role. "
            "Default: one is made for the endpoint.",
        ),
    ] = None
    shared_memory_size: Annotated[
        Quantity, Field(description="Size of /dev/shm, in memory. Default: 8Gi.")
    ] = "8Gi"
    startup_timeout_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=86_400,
            description="Budget of a worker from its start until it serves. Default: 1800.",
        ),
    ] = 1800
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="A partial PodTemplateSpec, merged last over what the operator renders; "
            "the container is called main."
        ),
    ] = None


class PersistentVolumeClaim(Contract):
    """An existing claim in the endpoint's namespace."""

    claim_name: Annotated[Name, Field(description="Name of the claim.")]


class AccessMode(StrEnum):
    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"
    READ_WRITE_MANY = "ReadWriteMany"


def _fixed(field: str) -> dict[str, str]:
    """On the field: the API server's cost estimate knows no bound of an optional one."""
    return {
        "rule": "self == oldSelf",
        "message": f"cache.volumeClaimTemplate.{field}: a claim keeps it; make another claim, "
        "and name it in cache.persistentVolumeClaim",
    }


class VolumeClaimTemplate(Contract):
    """A claim that is made for the endpoint, and goes with it."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "quantity(string(self.size)).isGreaterThan(quantity('0'))",
                "message": "cache.volumeClaimTemplate.size: must be greater than 0",
            },
            {
                "rule": "quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
                "message": "cache.volumeClaimTemplate.size: a volume cannot shrink; give at least its size",
            },
        )
    )
    size: Annotated[
        Quantity, Field(description="Size of the volume. It may grow, where its class allows it.")
    ]
    storage_class_name: Annotated[
        str | None,
        Field(
            max_length=253,
            description="Storage class. Default: the cluster's default class.",
            json_schema_extra=_rules(_fixed("storageClassName")),
        ),
    ] = None
    access_modes: Annotated[
        tuple[AccessMode, ...],
        Field(
            min_length=1,
            max_length=3,
            description="Access modes. Default: ReadWriteOnce, which takes one replica; more need "
            "ReadWriteMany.",
            json_schema_extra={"x-kubernetes-list-type": "set", **_rules(_fixed("accessModes"))},
        ),
    ] = (AccessMode.READ_WRITE_ONCE,)


class EmptyDir(Contract):
    """A directory that lives as long as the pod."""

    size_limit: Annotated[Quantity | None, Field(description="Most that it may hold.")] = None


class Cache(Contract):
    """Where downloaded models are kept. Default: an emptyDir."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "!(has(self.persistentVolumeClaim) && has(self.emptyDir))",
                "message": "cache: set one of persistentVolumeClaim and emptyDir, not both",
            },
            {
                "rule": "!has(self.volumeClaimTemplate) || "
                "!(has(self.persistentVolumeClaim) || has(self.emptyDir))",
                "message": "cache: volumeClaimTemplate is set beside persistentVolumeClaim or emptyDir; "
                "set one of them",
            },
        )
    )
    persistent_volume_claim: Annotated[
        PersistentVolumeClaim | None, Field(description="An existing claim, shared by the replicas.")
    ] = None
    volume_claim_template: Annotated[
        VolumeClaimTemplate | None,
        Field(description="A claim that is made for the endpoint, shared by the replicas; it goes with it."),
    ] = None
    empty_dir: Annotated[EmptyDir | None, Field(description="A directory of the pod's own.")] = None


class Expect(Contract):
    """What an answer must be to count as generating."""

    regex: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Regular expression (RE2) that is searched for in the generated text.",
            json_schema_extra=_rules(
                {
                    "rule": "''.matches(self) in [true, false]",
                    "message": "healthCheck.expect.regex: not a regular expression (RE2 syntax)",
                },
            ),
        ),
    ]


class HealthCheck(Contract):
    """How the engine is asked to generate. Nothing here has a default in the schema: a default
    would outrank the environment and the config file."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "!(has(self.level) && has(self.payload))",
                "message": "healthCheck: level and payload are both set; remove one "
                "(a level stands for a payload)",
            }
        )
    )
    mode: Annotated[
        Mode | None,
        Field(
            description="Enforce: readiness follows the verdict (default). Observe: the verdict is "
            "reported only. Disabled: no probes."
        ),
    ] = None
    level: Annotated[
        Level | None,
        Field(description="Minimal, Standard or Comprehensive: the payload of that level."),
    ] = None
    payload: Annotated[
        JsonObject | None,
        Field(
            description="The request that the engine is asked to answer: prompt, messages or input, "
            "and sampling fields.",
            json_schema_extra={"minProperties": 1, "maxProperties": 64},
        ),
    ] = None
    expect: Annotated[
        Expect | None,
        Field(description="What the answer must be: generating garbage is not generating."),
    ] = None
    period_seconds: Annotated[
        int | None, Field(ge=1, le=86_400, description="Time between probes when idle. Default: 30.")
    ] = None
    timeout_seconds: Annotated[
        int | None, Field(ge=1, le=3_600, description="Time for one whole answer. Default: 5.")
    ] = None
    failure_threshold: Annotated[
        int | None,
        Field(ge=1, le=100, description="Failed probes in a row before the verdict is Failing. Default: 2."),
    ] = None
    success_threshold: Annotated[
        int | None,
        Field(ge=1, le=100, description="Good probes in a row before the verdict is back. Default: 1."),
    ] = None
    restart_after_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=86_400,
            description="A worker that has certainly stalled this long ends itself. 0: never. Default: 600.",
        ),
    ] = None


class ScriptKeyRef(Contract):
    """A key of a ConfigMap in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[Name, Field(description="Key in the ConfigMap.")] = "model.py"


class HandlerScript(Contract):
    """The script with the handlers (model.py). It takes the place of the one in the model's data."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "has(self.inline) != has(self.configMapKeyRef)",
                "message": "handlers.script: set exactly one of inline and configMapKeyRef",
            }
        )
    )
    inline: Annotated[
        str | None, Field(min_length=1, max_length=262_144, description="The script itself.")
    ] = None
    config_map_key_ref: Annotated[
        ScriptKeyRef | None, Field(description="A ConfigMap's key that holds the script.")
    ] = None


def _handler(field: str) -> Any:
    return _rules(
        {
            "rule": "self.matches('^[^\\\\s:]+:[^\\\\s:]+$')",
            "message": f"handlers.{field}: give where:function, for instance model:{field}_handler, "
            "handlers.py:f, /opt/ml/model/handlers.py:f or package.module:f",
        }
    )


class Handlers(Contract):
    """Custom handlers for /ping and /invocations, as SageMaker's containers have them."""

    script: Annotated[
        HandlerScript | None, Field(description="The script; `model:` in a handler's path means it.")
    ] = None
    ping: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Handler of /ping: model:f, file.py:f, /path/file.py:f or package.module:f.",
            json_schema_extra=_handler("ping"),
        ),
    ] = None
    invocations: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Handler of /invocations: model:f, file.py:f, /path/file.py:f or package.module:f.",
            json_schema_extra=_handler("invocations"),
        ),
    ] = None


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
        json_schema_extra=_rules(
            {
                "rule": "!(string(self.maxUnavailable) in ['0', '0%'] && "
                "string(self.maxSurge) in ['0', '0%'])",
                "message": "strategy.rollingUpdate: maxUnavailable and maxSurge cannot both be 0: "
                "no worker could ever be replaced",
            }
        )
    )
    max_unavailable: Annotated[IntOrPercent, Field(description="Default: 1.")] = 1
    max_surge: Annotated[IntOrPercent, Field(description="Default: 0, since a GPU to spare is rare.")] = 0


class Strategy(Contract):
    """How workers are replaced."""

    rolling_update: Annotated[RollingUpdate, Field(description="The rolling update.")] = RollingUpdate()


class VLLMEndpointSpec(Contract):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            {
                "rule": "!has(self.model.tokenSecretRef) || !has(self.worker) || !has(self.worker.env) || "
                "!self.worker.env.exists(item, item.name == 'HF_TOKEN')",
                "message": "model.tokenSecretRef: HF_TOKEN is set in worker.env too; remove one",
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
    engine: Annotated[Engine, Field(description="How vLLM runs.")] = Engine()
    replicas: Annotated[Count, Field(description="Number of workers. Default: 1.")] = 1
    worker: Annotated[Worker, Field(description="The pods that run Dynamo + vLLM.")] = Worker()
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

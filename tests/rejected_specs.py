"""Specifications that the API server rejects because of the CRD, each with the message that kubectl shows.

Each specification gets a valid ``model`` unless the case sets one. The message of a CEL rule is complete. A
unit test fails if a rule has no case.
"""

from typing import Any, Final

Object = dict[str, Any]

MODEL: Final = {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}


def _model(**fields: Any) -> Object:
    return {"model": {**MODEL, **fields}}


def _claim(**fields: Any) -> Object:
    return {"cache": {"volumeClaimTemplate": {"size": "2Gi", **fields}}}


def _worker(**fields: Any) -> Object:
    return {"worker": fields}


def _resources(where: str = "worker", **fields: Any) -> Object:
    return {where: {"resources": fields}}


_FIXED: Final = (
    "the field is immutable; create another PersistentVolumeClaim and set cache.persistentVolumeClaim"
)
_MODEL_PATH: Final = (
    "worker.env: SAGEMAKER_MODEL_PATH must be an absolute path in value, not valueFrom, "
    "because the operator mounts the volume for model.artifactsUri there"
)
_ONE_POD: Final = (
    "cache.volumeClaimTemplate: only one pod at a time can use a ReadWriteOnce volume; set accessModes to "
    "[ReadWriteMany], or remove prefill and set replicas to at most 1 and maxSurge to 0 (if all pods run on "
    "one node, create a PersistentVolumeClaim and set cache.persistentVolumeClaim)"
)
_SCHEME: Final = (
    "model.uri: the scheme must be hf://, s3://, pvc:// or file://, "
    "for example hf://HuggingFaceTB/SmolLM2-135M-Instruct"
)
_HUB: Final = (
    "model.uri: hf:// must be followed by an organization and a name, "
    "for example hf://HuggingFaceTB/SmolLM2-135M-Instruct"
)
_NAMES_OF_RESOURCES: Final = (
    "resources: each name must be cpu, memory, ephemeral-storage, hugepages-<size>, or a device as "
    "vendor.example/name, for example nvidia.com/gpu"
)
_ONCE_POD: Final = (
    "cache.volumeClaimTemplate.accessModes: ReadWriteOncePod cannot be combined with other access "
    "modes; remove it or the others"
)
_KEY: Final = {"name": "s", "key": "k"}
_ENV_SOURCE: Final = (
    "worker.env: valueFrom: set exactly one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef"
)
_HANDLER: Final = (
    "handlers.{0}: must have the form file:function or module:function, for example model:{0}_handler, "
    "handlers.py:f, /opt/ml/model/handlers.py:f or package.module:f"
)
_NEVER_REPLACED: Final = (
    "strategy.rollingUpdate: maxUnavailable and maxSurge must not both be 0, "
    "because then no worker can be replaced"
)
_NAME: Final = (
    "metadata.name: must consist of lowercase letters, digits and '-', start with a letter and end with a "
    "letter or digit, because the name of a Service contains it"
)

_ARGUMENT: Final = (
    "worker.env: {} is an engine argument that the operator sets, or the worker does not support; remove it"
)
_UNREACHED: Final = (
    "engine: {} (in engine.args or worker.env) is read by the server on port 8080, not at status.url; "
    "remove it, or set frontend.mode to None"
)

REJECTED: Final[list[tuple[Object, str]]] = [
    # model
    ({"model": {}}, "model.uri: Required value"),
    (_model(uri="HuggingFaceTB/SmolLM2"), _SCHEME),
    (_model(uri="gs://bucket/key"), _SCHEME),
    (
        _model(uri="s3://B/key"),
        "model.uri: s3:// must be followed by a bucket and a prefix, for example s3://my-bucket/my-model/",
    ),
    (
        _model(uri="file:///m", revision="v2"),
        "model.revision: only a Hugging Face Hub model (hf://) has revisions; remove this field",
    ),
    (_model(uri="hf://smollm"), _HUB),
    (_model(uri="hf://a/b/c"), _HUB),
    (
        _model(uri="pvc:///path"),
        "model.uri: pvc:// must be followed by a claim name and a path, for example pvc://models/smollm",
    ),
    (
        _model(uri="file://opt/model"),
        "model.uri: file:// must be followed by an absolute path, for example file:///opt/models/smollm",
    ),
    (_model(uri="file:///opt/../etc"), "model.uri: the path must not contain '..'"),
    (_model(uri="pvc://claim/.."), "model.uri: the path must not contain '..'"),
    (_model(name="-x"), "spec.model.name"),
    (_model(type="Vision"), "supported values"),
    (_model(tokenSecretRef={}), "spec.model.tokenSecretRef.name: Required value"),
    (_model(tokenSecretRef={"name": "a_b"}), "spec.model.tokenSecretRef.name"),
    (_model(tokenSecretRef={"name": "a", "key": ".."}), "spec.model.tokenSecretRef.key"),
    (
        {**_model(tokenSecretRef={"name": "hf"}), **_worker(env=[{"name": "HF_TOKEN", "value": "x"}])},
        "model.tokenSecretRef: HF_TOKEN is also set in worker.env; remove one of them",
    ),
    (
        _model(artifactsUri="https://bucket/key"),
        "model.artifactsUri: must have the form s3://bucket/prefix/, for example s3://my-bucket/my-model/",
    ),
    (
        {
            **_model(artifactsUri="s3://bucket"),
            **_worker(env=[{"name": "SAGEMAKER_MODEL_PATH", "value": "here"}]),
        },
        _MODEL_PATH,
    ),
    (
        {
            **_model(artifactsUri="s3://bucket"),
            **_worker(
                env=[
                    {
                        "name": "SAGEMAKER_MODEL_PATH",
                        "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                    }
                ]
            ),
        },
        _MODEL_PATH,
    ),
    # engine
    (
        {"engine": {"args": ["--max-model-len 512"]}},
        "engine.args: --max-model-len and its value must be two items, or one item with = between them",
    ),
    (
        {"engine": {"args": ["--seed", "1", "--model"]}},
        "engine.args: --model is set by the operator; remove it",
    ),
    (
        {"engine": {"args": ["--served_model_name=x"]}},
        "engine.args: --served_model_name is set by the operator; remove it",
    ),
    (
        {"engine": {"args": ["--served-model", "x"]}},
        "engine.args: --served-model is set by the operator; remove it",
    ),
    (
        {"engine": {"args": ["--seed", "1", "-n", "2"]}},
        "engine.args: -n is the short form of an argument that the operator sets; remove it",
    ),
    (
        {"engine": {"args": ["-r1"]}},
        "engine.args: -r1 is the short form of an argument that the operator sets; remove it",
    ),
    (
        {"engine": {"args": ["-dpa=10.0.0.1"]}},
        "engine.args: -dpa is the short form of an argument that the operator sets; remove it",
    ),
    (
        {"engine": {"args": ["--data_parallel_rank", "0"]}},
        "engine.args: --data_parallel_rank is set by the operator; remove it",
    ),
    (
        {"engine": {"args": ["--enable-rl"]}},
        "engine.args: --enable-rl is not supported by the worker; remove it",
    ),
    (
        {"engine": {"args": ["--seed", "1", "--load_format=gms"]}},
        "engine.args: --load_format=gms is not supported; remove it",
    ),
    ({"engine": {"args": ["--seed", "1", "--api_key", "secret"]}}, _UNREACHED.format("--api_key")),
    (
        {"engine": {"args": ["--lora-modules=a=b"]}, "frontend": {"replicas": 2}},
        _UNREACHED.format("--lora-modules"),
    ),
    (
        {
            **_worker(env=[{"name": "SM_VLLM_ROOT_PATH", "value": "/x"}, {"name": "VLLM_API_KEY"}]),
            "frontend": {"mode": "Managed"},
        },
        _UNREACHED.format("--root-path"),
    ),
    (
        {"engine": {"config": {"inline": {}, "configMapKeyRef": {"name": "c"}}}},
        "engine.config: set exactly one of inline and configMapKeyRef",
    ),
    ({"engine": {"config": {}}}, "engine.config: set exactly one of inline and configMapKeyRef"),
    ({"replicas": -1}, "greater than or equal to 0"),
    ({"replica": 1}, 'unknown field "spec.replica"'),
    # prefill
    (
        {"prefill": {}, "frontend": {"mode": "None"}},
        (
            "prefill: only a frontend sends requests to prefill workers, and frontend.mode is None; "
            "set frontend.mode to Managed, or remove this field"
        ),
    ),
    (
        {**_model(type="Embedding"), "prefill": {}},
        "prefill: a model of type Embedding does not decode; remove this field",
    ),
    (
        {"prefill": {}, "frontend": {"routing": {"mode": "KV"}}},
        "prefill: frontend.routing.mode KV is not supported with prefill yet; set another mode",
    ),
    ({"prefill": {"replicas": 0}}, "greater than or equal to 1"),
    *(
        ({"prefill": {"engine": {"args": arguments}}}, f"prefill.engine.args: {message}")
        for arguments, message in (
            (["--disaggregation-mode=decode"], "--disaggregation-mode is set by the operator; remove it"),
            (
                ["-n", "2"],
                "-n is the short form of an argument that the operator sets; remove it",
            ),
            (["--enable-rl"], "--enable-rl is not supported by the worker; remove it"),
            (["--load_format=gms"], "--load_format=gms is not supported; remove it"),
            (
                ["--seed 1"],
                "--seed and its value must be two items, or one item with = between them",
            ),
            (
                ["--api-key=x"],
                "--api-key is read by the server on port 8080, not at status.url; remove it",
            ),
        )
    ),
    (
        _resources("prefill", limits={"cpu": 1}, requests={"cpu": 2}),
        "resources: a request exceeds its limit; lower the request or raise the limit",
    ),
    # worker
    (_worker(image=" x"), "spec.worker.image"),
    (
        _worker(env=[{"name": "DYN_NAMESPACE", "value": "x"}]),
        "worker.env: DYN_NAMESPACE is set by the operator; remove it",
    ),
    (
        _worker(env=[{"name": "VLLMENDPOINT_X", "value": "x"}]),
        "worker.env: VLLMENDPOINT_X is set by the operator; remove it",
    ),
    (
        _worker(env=[{"name": "A", "value": "", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "worker.env: A has both value and valueFrom; remove one of them",
    ),
    (_worker(env=[{"name": "A", "valueFrom": {}}]), _ENV_SOURCE),
    (
        _worker(
            env=[
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}, "secretKeyRef": _KEY}}
            ]
        ),
        _ENV_SOURCE,
    ),
    (_worker(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]), "key: Required value"),
    (
        _worker(env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.node"}}}]),
        "valueFrom.fieldRef.fieldPath",
    ),
    (
        _worker(
            env=[
                {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Mi"}}}
            ]
        ),
        (
            "worker.env: resourceFieldRef.divisor: must be 1 or 1m for cpu, and 1 or a unit of bytes such as "
            "1Mi for other resources"
        ),
    ),
    (_worker(envFrom=[{}]), "worker.envFrom: set exactly one of configMapRef, secretRef"),
    (
        _worker(envFrom=[{"secretRef": {"name": "s"}, "configMapRef": {"name": "c"}}]),
        "worker.envFrom: set exactly one of configMapRef, secretRef",
    ),
    (_worker(envFrom=[{"secretRef": {}}]), "name: Required value"),
    (_worker(sharedMemorySize="1e.5"), "spec.worker.sharedMemorySize"),
    (
        _worker(env=[{"name": "SM_VLLM_Data_Parallel_MASTER_PORT"}, {"name": "SM_VLLM_Served_Model"}]),
        _ARGUMENT.format("SM_VLLM_Served_Model"),
    ),
    (
        _worker(env=[{"name": "SM_VLLM_ENABLE_SLEEP_MODE"}]),
        _ARGUMENT.format("SM_VLLM_ENABLE_SLEEP_MODE"),
    ),
    (
        _worker(env=[{"name": "DYN_ENABLE_RL", "value": "1"}]),
        "worker.env: DYN_ENABLE_RL is not supported by the worker; remove it",
    ),
    (
        _worker(env=[{"name": "DYN_ENDPOINT", "value": "dyn://a.b.c"}]),
        "worker.env: DYN_ENDPOINT is set by the operator; remove it",
    ),
    (_worker(env=[{"name": "A"}, {"name": "A"}]), "Duplicate value"),
    (_worker(env=[{"name": "a=b", "value": "x"}]), "spec.worker.env[0].name"),
    (_worker(startupTimeoutSeconds=1), "greater than or equal to 10"),
    (_worker(sharedMemorySize="lots"), "sharedMemorySize"),
    (_worker(serviceAccountName="a..b"), "spec.worker.serviceAccountName"),
    (_resources(limits={"cpu": "-1"}), "spec.worker.resources.limits.cpu"),
    (_resources(limits={"cpu": -1}), "greater than or equal to 0"),
    (_resources(limits={"gpu": 1}), _NAMES_OF_RESOURCES),
    (_resources(requests={"nvidia.com/": 1}), _NAMES_OF_RESOURCES),
    (
        _resources(limits={"nvidia.com/gpu": "500m"}),
        "resources: the quantity of a device must be a whole number",
    ),
    (
        _resources(limits={"memory": "1Gi"}, requests={"memory": "1025Mi"}),
        "resources: a request exceeds its limit; lower the request or raise the limit",
    ),
    (
        _resources("frontend", limits={"cpu": 1}, requests={"cpu": "1001m"}),
        "resources: a request exceeds its limit; lower the request or raise the limit",
    ),
    (
        _resources(requests={"nvidia.com/gpu": 1}),
        "resources: a device must be set in limits; remove it from requests",
    ),
    (
        _resources(limits={"nvidia.com/gpu": 2}, requests={"nvidia.com/gpu": 1}),
        "resources: a device must be set in limits; remove it from requests",
    ),
    # cache
    (
        {"cache": {"persistentVolumeClaim": {"claimName": "c"}, "emptyDir": {}}},
        "cache: persistentVolumeClaim and emptyDir are both set; remove one of them",
    ),
    (
        {"cache": {"volumeClaimTemplate": {"size": 1}, "emptyDir": {}}},
        "cache: volumeClaimTemplate and persistentVolumeClaim or emptyDir are both set; remove one of them",
    ),
    ({"cache": {"persistentVolumeClaim": {"claimName": "a b"}}}, "persistentVolumeClaim.claimName"),
    ({"cache": {"volumeClaimTemplate": {}}}, "spec.cache.volumeClaimTemplate.size: Required value"),
    (_claim(size="0Gi"), "cache.volumeClaimTemplate.size: must be greater than 0"),
    (_claim(size="lots"), "spec.cache.volumeClaimTemplate.size"),
    (_claim(storageClassName="A"), "spec.cache.volumeClaimTemplate.storageClassName"),
    (_claim(accessModes=["ReadOnlyMany"]), 'supported values: "ReadWriteOnce"'),
    (
        _claim(accessModes=["ReadWriteOncePod", "ReadWriteMany"]),
        _ONCE_POD,
    ),
    ({**_claim(), "replicas": 2}, _ONE_POD),
    ({**_claim(), "prefill": {}}, _ONE_POD),
    (
        {**_claim(accessModes=["ReadWriteOncePod"]), "strategy": {"rollingUpdate": {"maxSurge": 1}}},
        _ONE_POD,
    ),
    # healthCheck
    (
        {"healthCheck": {"level": "Minimal", "payload": {"prompt": "1"}}},
        "healthCheck: level and payload are both set; remove one of them",
    ),
    ({"healthCheck": {"level": "Tiny"}}, "supported values"),
    ({"healthCheck": {"mode": "Off"}}, "supported values"),
    ({"healthCheck": {"payload": {}}}, "payload"),
    ({"healthCheck": {"periodSeconds": 0}}, "greater than or equal to 1"),
    (
        {"healthCheck": {"expect": {"regex": "("}}},
        "healthCheck.expect.regex: must be a regular expression in RE2 syntax",
    ),
    (
        {**_model(type="Embedding"), "healthCheck": {"expect": {"regex": "."}}},
        "healthCheck.expect: a model of type Embedding generates no text; remove this field",
    ),
    # handlers
    ({"handlers": {"script": {}}}, "handlers.script: set exactly one of inline and configMapKeyRef"),
    (
        {"handlers": {"script": {"inline": "x", "configMapKeyRef": {"name": "c"}}}},
        "handlers.script: set exactly one of inline and configMapKeyRef",
    ),
    (
        {"handlers": {"ping": "model"}},
        _HANDLER.format("ping"),
    ),
    (
        {"handlers": {"invocations": "a:b:c"}},
        _HANDLER.format("invocations"),
    ),
    # frontend and strategy
    ({"frontend": {"image": " x"}}, "spec.frontend.image"),
    ({"frontend": {"replicas": 0}}, "greater than or equal to 1"),
    ({"frontend": {"mode": "none"}}, "supported values"),
    ({"frontend": {"routing": {"mode": "kv"}}}, "supported values"),
    ({"frontend": {"routing": {"sessionAffinitySeconds": 0}}}, "greater than or equal to 1"),
    (
        {"frontend": {"mode": "None", "routing": {"mode": "KV"}}},
        "frontend.routing: there is no frontend because frontend.mode is None; remove this field",
    ),
    (
        _model(type="Embedding") | {"frontend": {"routing": {"mode": "KV"}}},
        "frontend.routing.mode: a model of type Embedding has no KV cache to route by; set another mode",
    ),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}},
        _NEVER_REPLACED,
    ),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": "0%"}}},
        _NEVER_REPLACED,
    ),
    ({"strategy": {"rollingUpdate": {"maxUnavailable": -1}}}, "greater than or equal to 0"),
    ({"strategy": {"rollingUpdate": {"maxUnavailable": "5"}}}, "spec.strategy.rollingUpdate.maxUnavailable"),
    ({"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}, "maxUnavailable"),
]

REJECTED_CHANGES: Final[list[tuple[Object, Object, str]]] = [
    (
        _claim(storageClassName="a"),
        _claim(storageClassName="b"),
        f"cache.volumeClaimTemplate.storageClassName: {_FIXED}",
    ),
    (
        _claim(),
        _claim(accessModes=["ReadWriteMany"]),
        f"cache.volumeClaimTemplate.accessModes: {_FIXED}",
    ),
]
"""Specification, changed specification and message."""

_OF_WORKERS: Final = (
    "metadata.name: must not end with -workers, because the workers' Service of the endpoint without that "
    "suffix has this name; choose another name"
)
_OF_PREFILL: Final = (
    "metadata.name: must not end with -prefill, because the prefill workers' Service of the endpoint without "
    "that suffix has this name; choose another name"
)
REJECTED_NAMES: Final[list[tuple[str, str]]] = [
    (
        "e" * 41,
        (
            "metadata.name: must be at most 40 characters long, because the names of the endpoint's pods and "
            "Services contain it"
        ),
    ),
    *(
        (
            name,
            _NAME,
        )
        for name in ("1st", "a.b")
    ),
    *((name, _OF_WORKERS) for name in ("pair-workers", "a-workers-workers")),
    ("pair-prefill", _OF_PREFILL),
    ("Upper", "RFC 1123"),
]

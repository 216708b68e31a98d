"""What the API server refuses by the CRD alone, each with the sentence that kubectl shows.

A specification has ``model`` in it where a case does not say otherwise. A sentence of a CEL rule is given
whole: a unit test holds that no rule is without a case.
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


_FIXED: Final = "a claim keeps it; make another claim, and name it in cache.persistentVolumeClaim"
_MODEL_PATH: Final = (
    "worker.env: SAGEMAKER_MODEL_PATH must be an absolute path, given as a value: "
    "model.artifactsUri is fetched to a volume that is mounted there"
)
_ONE_POD: Final = (
    "cache.volumeClaimTemplate: a ReadWriteOnce volume is for one pod at a time: set accessModes to "
    "[ReadWriteMany], or replicas to at most 1 and maxSurge to 0 (where all pods run on one node, make the "
    "claim yourself and name it in cache.persistentVolumeClaim)"
)
_SCHEME: Final = (
    "model.uri: the scheme must be hf://, s3://, pvc:// or file://, "
    "for instance hf://HuggingFaceTB/SmolLM2-135M-Instruct"
)
_HUB: Final = (
    "model.uri: hf:// takes an organisation and a name, for instance hf://HuggingFaceTB/SmolLM2-135M-Instruct"
)
_NAMES_OF_RESOURCES: Final = (
    "resources: give cpu, memory, ephemeral-storage, hugepages-<size>, or a device as vendor.example/name, "
    "for instance nvidia.com/gpu"
)
_ONCE_POD: Final = (
    "cache.volumeClaimTemplate.accessModes: ReadWriteOncePod goes with no other mode; "
    "remove it, or the others"
)
_KEY: Final = {"name": "s", "key": "k"}
_ENV_SOURCE: Final = (
    "worker.env: valueFrom: name one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef"
)
_HANDLER: Final = (
    "handlers.{0}: give where:function, for instance model:{0}_handler, handlers.py:f, "
    "/opt/ml/model/handlers.py:f or package.module:f"
)
_NEVER_REPLACED: Final = (
    "strategy.rollingUpdate: maxUnavailable and maxSurge cannot both be 0: no worker could ever be replaced"
)
_NAME: Final = (
    "metadata.name: lower-case letters, digits and '-', beginning with a letter, "
    "since Services are named after it"
)

_ARGUMENT: Final = (
    "worker.env: {} is an engine argument that the operator sets, or the worker does not support; remove it"
)
_UNREACHED: Final = (
    "engine: {} (of engine.args or worker.env) is read by the server on port 8080, not at status.url; "
    "remove it, or set frontend.mode to None"
)

REFUSED: Final[list[tuple[Object, str]]] = [
    # model
    ({"model": {}}, "model.uri: Required value"),
    (_model(uri="HuggingFaceTB/SmolLM2"), _SCHEME),
    (_model(uri="gs://bucket/key"), _SCHEME),
    (
        _model(uri="s3://B/key"),
        "model.uri: s3:// takes a bucket and a prefix, for instance s3://my-bucket/my-model/",
    ),
    (
        _model(uri="file:///m", revision="v2"),
        "model.revision: only a model of the hub (hf://) has revisions; remove it",
    ),
    (_model(uri="hf://smollm"), _HUB),
    (_model(uri="hf://a/b/c"), _HUB),
    (
        _model(uri="pvc:///path"),
        "model.uri: pvc:// takes a claim and a path, for instance pvc://models/smollm",
    ),
    (
        _model(uri="file://opt/model"),
        "model.uri: file:// takes an absolute path, for instance file:///opt/models/smollm",
    ),
    (_model(uri="file:///opt/../etc"), "model.uri: '..' is not allowed in the path"),
    (_model(uri="pvc://claim/.."), "model.uri: '..' is not allowed in the path"),
    (_model(name="-x"), "spec.model.name"),
    (_model(type="Vision"), "supported values"),
    (_model(tokenSecretRef={}), "spec.model.tokenSecretRef.name: Required value"),
    (_model(tokenSecretRef={"name": "a_b"}), "spec.model.tokenSecretRef.name"),
    (_model(tokenSecretRef={"name": "a", "key": ".."}), "spec.model.tokenSecretRef.key"),
    (
        {**_model(tokenSecretRef={"name": "hf"}), **_worker(env=[{"name": "HF_TOKEN", "value": "x"}])},
        "model.tokenSecretRef: HF_TOKEN is set in worker.env too; remove one",
    ),
    (
        _model(artifactsUri="https://bucket/key"),
        "model.artifactsUri: give s3://bucket/prefix/, for instance s3://my-bucket/my-model/",
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
        "engine.args: --max-model-len and its value are two items; or write one with = between them",
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
        "engine.args: -n is short for an argument that the operator sets; remove it",
    ),
    (
        {"engine": {"args": ["-r1"]}},
        "engine.args: -r1 is short for an argument that the operator sets; remove it",
    ),
    (
        {"engine": {"args": ["-dpa=10.0.0.1"]}},
        "engine.args: -dpa is short for an argument that the operator sets; remove it",
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
        "worker.env: A has both value and valueFrom; remove one",
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
        "worker.env: resourceFieldRef.divisor: 1 or 1m for cpu, 1 or a unit of bytes for the rest",
    ),
    (_worker(envFrom=[{}]), "worker.envFrom: name one of configMapRef, secretRef"),
    (
        _worker(envFrom=[{"secretRef": {"name": "s"}, "configMapRef": {"name": "c"}}]),
        "worker.envFrom: name one of configMapRef, secretRef",
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
    (_resources(limits={"nvidia.com/gpu": "500m"}), "resources: devices are counted in whole numbers"),
    (
        _resources(limits={"memory": "1Gi"}, requests={"memory": "1025Mi"}),
        "resources: a request is above its limit; lower it, or raise the limit",
    ),
    (
        _resources("frontend", limits={"cpu": 1}, requests={"cpu": "1001m"}),
        "resources: a request is above its limit; lower it, or raise the limit",
    ),
    (
        _resources(requests={"nvidia.com/gpu": 1}),
        "resources: a device is asked for under limits; leave it out of requests",
    ),
    (
        _resources(limits={"nvidia.com/gpu": 2}, requests={"nvidia.com/gpu": 1}),
        "resources: a device is asked for under limits; leave it out of requests",
    ),
    # cache
    (
        {"cache": {"persistentVolumeClaim": {"claimName": "c"}, "emptyDir": {}}},
        "cache: set one of persistentVolumeClaim and emptyDir, not both",
    ),
    (
        {"cache": {"volumeClaimTemplate": {"size": 1}, "emptyDir": {}}},
        "cache: volumeClaimTemplate is set beside persistentVolumeClaim or emptyDir; set one of them",
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
    (
        {**_claim(accessModes=["ReadWriteOncePod"]), "strategy": {"rollingUpdate": {"maxSurge": 1}}},
        _ONE_POD,
    ),
    # healthCheck
    (
        {"healthCheck": {"level": "Minimal", "payload": {"prompt": "1"}}},
        "healthCheck: level and payload are both set; remove one (a level stands for a payload)",
    ),
    ({"healthCheck": {"level": "Tiny"}}, "supported values"),
    ({"healthCheck": {"mode": "Off"}}, "supported values"),
    ({"healthCheck": {"payload": {}}}, "payload"),
    ({"healthCheck": {"periodSeconds": 0}}, "greater than or equal to 1"),
    (
        {"healthCheck": {"expect": {"regex": "("}}},
        "healthCheck.expect.regex: not a regular expression (RE2 syntax)",
    ),
    (
        {**_model(type="Embedding"), "healthCheck": {"expect": {"regex": "."}}},
        "healthCheck.expect: a model of the type Embedding generates no text; remove it",
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
    ({"frontend": {"replicas": 0}}, "greater than or equal to 1"),
    ({"frontend": {"mode": "none"}}, "supported values"),
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

REFUSED_CHANGES: Final[list[tuple[Object, Object, str]]] = [
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
"""A specification, what becomes of it, and the sentence."""

_OF_WORKERS: Final = (
    "metadata.name: must not end with -workers, since the workers' Service of the endpoint without that "
    "ending has this name; choose another name"
)
REFUSED_NAMES: Final[list[tuple[str, str]]] = [
    (
        "e" * 41,
        "metadata.name: at most 40 characters, since the names of its pods and Services are made from it",
    ),
    *(
        (
            name,
            _NAME,
        )
        for name in ("1st", "a.b")
    ),
    *((name, _OF_WORKERS) for name in ("pair-workers", "a-workers-workers")),
    ("Upper", "RFC 1123"),
]

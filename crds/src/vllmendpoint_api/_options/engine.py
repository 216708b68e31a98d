"""The table of engine options that a VLLMEndpoint rejects, maps or passes to one server only.

tests/worker/test_option_table.py compares the table with the options of the installed Dynamo and vLLM.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["ENGINE_OPTIONS", "GMS", "NAMESPACE", "ONE_POD", "EngineOption", "OptionRule"]


class OptionRule(StrEnum):
    """When an option is rejected, and why."""

    OWNED = "Owned"
    """Rejected if an operator runs the worker, because it sets the option or its pods do not support it."""
    UNSUPPORTED = "Unsupported"
    """Always rejected, because in this worker it hangs or has no effect."""
    FRONTEND = "Frontend"
    """Rejected if ``frontend.mode`` is Managed, because it affects only vLLM's HTTP server on port 8080."""
    MAPPED = "Mapped"
    """Accepted. If ``frontend.mode`` is Managed, the worker passes it to both servers."""
    ROUTING = "Routing"
    """Rejected if ``frontend.routing`` is not the default, because a worker's router options override it."""
    KV_EVENTS = "KVEvents"
    """Rejected if ``frontend.routing.mode`` is KV: the operator sets the option, or needs its default."""
    LOCAL = "Local"
    """Accepted, although it affects only vLLM's HTTP server on port 8080, because it is harmless."""


@dataclass(frozen=True, slots=True)
class EngineOption:
    """One option of Dynamo or vLLM. ``instead`` is the alternative or the reason, as the end of a message."""

    rule: OptionRule
    instead: str
    short: tuple[str, ...] = ()
    """Single-dash forms. A form of one letter also accepts an attached value: ``-n2``."""
    env: tuple[str, ...] = ()
    """Environment variables of Dynamo or vLLM for this option."""
    switch: bool = False
    """It is a flag that is off by default. ``--no-...`` and ``false`` are accepted."""
    values: tuple[str, ...] = ()
    """If not empty, only these values are rejected."""
    only_disabled: bool = False
    """Only ``--no-...`` and ``false`` are rejected."""


def _owned(
    instead: str,
    *,
    short: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    switch: bool = False,
    values: tuple[str, ...] = (),
) -> EngineOption:
    return EngineOption(OptionRule.OWNED, instead, short, env, switch, values)


def _unsupported(
    instead: str, *, env: tuple[str, ...] = (), switch: bool = False, values: tuple[str, ...] = ()
) -> EngineOption:
    return EngineOption(OptionRule.UNSUPPORTED, instead, (), env, switch, values)


def _frontend(instead: str, *, env: tuple[str, ...] = (), switch: bool = False) -> EngineOption:
    return EngineOption(OptionRule.FRONTEND, instead, (), env, switch)


def _mapped(dynamo: str) -> EngineOption:
    return EngineOption(OptionRule.MAPPED, dynamo)


def _routing(instead: str, *, env: tuple[str, ...] = ()) -> EngineOption:
    return EngineOption(OptionRule.ROUTING, instead, (), env)


def _kv(instead: str, *, only_disabled: bool = False) -> EngineOption:
    return EngineOption(OptionRule.KV_EVENTS, instead, only_disabled=only_disabled)


def _local(why: str) -> EngineOption:
    return EngineOption(OptionRule.LOCAL, why)


NAMESPACE: Final = "the operator assigns a Dynamo namespace to each endpoint"
_NODES: Final = "multi-node workers are not supported yet"
ONE_POD: Final = "one pod runs all data-parallel ranks; set only --data-parallel-size"
_DISAGGREGATION: Final = "set spec.prefill instead"
_ENCODER: Final = "encode workers are not supported"
GMS: Final = "the GPU Memory Service requires Dynamo's own operator"
_SLEEP: Final = "the worker does not serve the sleep and wake-up routes"
_OMNI: Final = "only Dynamo's omni workers read it"
_SUPERVISOR: Final = "only the supervisor of 'vllm serve' reads it"
_TLS: Final = (
    "the worker's port 8080 serves plain HTTP; terminate TLS at a gateway, an ingress or a service mesh"
)
_FORMAT: Final = "status.url does not use it and responds in Dynamo's format"
_CORS: Final = "status.url does not use it; configure CORS at the ingress or gateway in front of port 8000"
_MODE_NONE: Final = "status.url does not use it; set frontend.mode to None to use vLLM's HTTP server"

ENGINE_OPTIONS: Final[dict[str, EngineOption]] = {
    # Options that the operator sets.
    "--model": _owned("set spec.model.uri instead"),
    "--served-model-name": _owned("set spec.model.name instead"),
    "--revision": _owned("set spec.model.revision instead"),
    "--config": _owned("set spec.engine.config instead"),
    "--namespace": _owned(NAMESPACE, env=("DYN_NAMESPACE",)),
    "--endpoint": _owned(NAMESPACE, env=("DYN_ENDPOINT",)),
    "--kv-state-endpoint": _owned(NAMESPACE, env=("DYN_KV_STATE_ENDPOINT",)),
    "--discovery-backend": _owned(
        "Dynamo discovers workers through Kubernetes", env=("DYN_DISCOVERY_BACKEND",)
    ),
    "--request-plane": _owned("the operator sets it to tcp", env=("DYN_REQUEST_PLANE",)),
    "--response-plane": _owned("the frontend uses tcp", env=("DYN_RESPONSE_PLANE",)),
    "--event-plane": _owned("the operator sets it to zmq", env=("DYN_EVENT_PLANE",)),
    "--port": _owned("the port is part of the Service"),
    "--host": _owned("the kubelet and the Service reach the worker at the pod's address"),
    "--disaggregation-mode": _owned(_DISAGGREGATION, env=("DYN_VLLM_DISAGGREGATION_MODE",)),
    "--is-prefill-worker": _owned(_DISAGGREGATION),
    "--is-decode-worker": _owned(_DISAGGREGATION),
    "--nnodes": _owned(_NODES, short=("-n",)),
    "--node-rank": _owned(_NODES, short=("-r",)),
    "--master-addr": _owned(_NODES),
    "--master-port": _owned(_NODES),
    "--data-parallel-rank": _owned(ONE_POD, short=("-dpn",), env=("VLLM_DP_RANK",)),
    "--data-parallel-start-rank": _owned(ONE_POD, short=("-dpr",)),
    "--data-parallel-size-local": _owned(ONE_POD, short=("-dpl",)),
    "--data-parallel-address": _owned(ONE_POD, short=("-dpa",), env=("VLLM_DP_MASTER_IP",)),
    "--data-parallel-rpc-port": _owned(ONE_POD, short=("-dpp",), env=("VLLM_DP_MASTER_PORT",)),
    "--data-parallel-hybrid-lb": _owned(ONE_POD, short=("-dph",), switch=True),
    "--data-parallel-external-lb": _owned(ONE_POD, short=("-dpe",), switch=True),
    "--data-parallel-multi-port-external-lb": _owned(ONE_POD, short=("-dpm",), switch=True),
    "--data-parallel-backend": _owned(ONE_POD, short=("-dpb",), values=("ray",)),
    "--distributed-executor-backend": _owned(_NODES, values=("external_launcher",)),
    # Options that contradict frontend.routing.
    "--router-mode": _routing("set spec.frontend.routing.mode instead", env=("DYN_ROUTER_MODE",)),
    "--kv-events-config": _kv("the operator sets it, because frontend.routing.mode is KV"),
    "--enable-prefix-caching": _kv(
        "frontend.routing.mode KV selects workers by the prefixes that they cache", only_disabled=True
    ),
    # Options that this worker does not support.
    "--headless": _unsupported(_NODES, env=("DYN_VLLM_HEADLESS",), switch=True),
    "--health-check-payload": _unsupported(
        "set spec.healthCheck.payload or DYN_HEALTH_CHECK_PAYLOAD instead"
    ),
    "--route-to-encoder": _unsupported(
        _ENCODER, env=("DYN_VLLM_ROUTE_TO_ENCODER", "DYN_ROUTE_TO_ENCODER"), switch=True
    ),
    "--embedding-transfer-mode": _unsupported(_ENCODER, env=("DYN_VLLM_EMBEDDING_TRANSFER_MODE",)),
    "--enable-rl": _unsupported(
        "the worker does not serve the routes for RL training", env=("DYN_ENABLE_RL",), switch=True
    ),
    "--gms-shadow-mode": _unsupported(GMS, env=("DYN_VLLM_GMS_SHADOW_MODE",), switch=True),
    "--load-format": _unsupported(GMS, values=("gms",)),
    "--enable-sleep-mode": _unsupported(_SLEEP, switch=True),
    "--use-vllm-tokenizer": _unsupported(
        "health check probes require Dynamo's tokenizer", env=("DYN_VLLM_USE_TOKENIZER",), switch=True
    ),
    "--realtime": _unsupported("realtime workers are not supported", env=("DYN_VLLM_REALTIME",), switch=True),
    "--classify-worker": _unsupported(
        "the worker detects the type from the model", env=("DYN_VLLM_CLASSIFY_WORKER",), switch=True
    ),
    "--embedding-worker-processes": _unsupported(
        "one process serves embeddings; increase replicas instead",
        env=("DYN_VLLM_EMBEDDING_WORKER_PROCESSES",),
    ),
    "--endpoint-types": _unsupported(
        "status.url would not serve the model", env=("DYN_ENDPOINT_TYPES",), values=("none",)
    ),
    "--model-express-url": _unsupported("vLLM's ModelExpress plugin reads the variable MODEL_EXPRESS_URL"),
    "--output-modalities": _unsupported(_OMNI, env=("DYN_OUTPUT_MODALITIES",)),
    "--media-output-fs-url": _unsupported(_OMNI, env=("DYN_MEDIA_OUTPUT_FS_URL",)),
    "--media-output-http-url": _unsupported(_OMNI, env=("DYN_MEDIA_OUTPUT_HTTP_URL",)),
    "--uds": _unsupported("the worker serves on a TCP port"),
    "--ssl-keyfile": _unsupported(_TLS),
    "--ssl-certfile": _unsupported(_TLS),
    "--ssl-ca-certs": _unsupported(_TLS),
    "--ssl-cert-reqs": _unsupported(_TLS),
    "--ssl-ciphers": _unsupported(_TLS),
    "--enable-ssl-refresh": _unsupported(_TLS, switch=True),
    "--data-parallel-supervisor-port": _unsupported(_SUPERVISOR),
    "--dp-supervisor-probe-interval-s": _unsupported(_SUPERVISOR),
    "--dp-supervisor-probe-timeout-s": _unsupported(_SUPERVISOR),
    "--dp-supervisor-probe-failure-threshold": _unsupported(_SUPERVISOR),
    # Options for vLLM's HTTP server and Dynamo's frontend.
    "--tool-call-parser": _mapped("--dyn-tool-call-parser"),
    "--enable-auto-tool-choice": _mapped("--dyn-tool-call-parser"),
    "--reasoning-parser": _mapped("--dyn-reasoning-parser"),
    "--chat-template": _mapped("--custom-jinja-template"),
    "--exclude-tools-when-tool-choice-none": _mapped("--exclude-tools-when-tool-choice-none"),
    # Options for vLLM's HTTP server only, which have no effect on Dynamo's frontend.
    "--api-key": _frontend(
        "status.url would remain open; restrict port 8000 with a NetworkPolicy, or authenticate at a gateway",
        env=("VLLM_API_KEY",),
    ),
    "--lora-modules": _frontend("status.url does not serve adapters; set frontend.mode to None"),
    "--middleware": _frontend("it does not run at status.url; use a gateway, or set frontend.mode to None"),
    "--root-path": _frontend("status.url does not use it; rewrite the path at the ingress or gateway"),
    "--allow-credentials": _frontend(_CORS, switch=True),
    "--allowed-origins": _frontend(_CORS),
    "--allowed-methods": _frontend(_CORS),
    "--allowed-headers": _frontend(_CORS),
    "--enable-request-id-headers": _frontend(
        "status.url does not use it; set the header at a gateway", switch=True
    ),
    "--chat-template-content-format": _frontend("Dynamo's frontend detects the format from the template"),
    "--trust-request-chat-template": _frontend(_MODE_NONE, switch=True),
    "--trust-request-mm-kwargs": _frontend(_MODE_NONE, switch=True),
    "--default-chat-template-kwargs": _frontend(
        "set --dyn-default-thinking-mode, or send chat_template_kwargs in each request"
    ),
    "--response-role": _frontend(_FORMAT),
    "--return-tokens-as-token-ids": _frontend(_FORMAT, switch=True),
    "--tool-parser-plugin": _frontend("Dynamo's frontend does not load plugins; set --dyn-tool-call-parser"),
    "--reasoning-parser-plugin": _frontend(
        "Dynamo's frontend does not load plugins; set --dyn-reasoning-parser"
    ),
    "--tool-strict-level": _frontend("set --dyn-structural-tag instead"),
    "--tool-server": _frontend(_MODE_NONE),
    "--enable-prompt-tokens-details": _frontend(_FORMAT, switch=True),
    "--enable-per-request-metrics": _frontend(_FORMAT, switch=True),
    "--enable-force-include-usage": _frontend(
        "set DYN_ENABLE_FORCE_INCLUDE_USAGE in frontend.podTemplate, or send stream_options", switch=True
    ),
    "--sse-keep-alive-interval": _frontend(
        "set DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS in frontend.podTemplate instead"
    ),
    "--cohere-is-reasoning-model": _frontend(_MODE_NONE),
    "--cohere-format": _frontend(_MODE_NONE),
    "--anthropic-disabled-thinking-effort": _frontend(_MODE_NONE),
    "--tokens-only": _frontend(_MODE_NONE, switch=True),
    "--enable-scale-out": _frontend(_MODE_NONE, switch=True),
    "--fingerprint-mode": _frontend(_FORMAT),
    "--fingerprint-value": _frontend(_FORMAT),
    # Options for vLLM's HTTP server only, which are harmless.
    "--max-log-len": _local("affects the prompts in its log"),
    "--enable-log-outputs": _local("affects its log"),
    "--enable-log-deltas": _local("affects its log"),
    "--log-error-stack": _local("affects its log"),
    "--uvicorn-log-level": _local("affects its log"),
    "--disable-uvicorn-access-log": _local("affects its log; the worker writes no access log"),
    "--disable-access-log-for-endpoints": _local("affects its log; the worker writes no access log"),
    "--enable-server-load-tracking": _local("affects its route /load"),
    "--enable-tokenizer-info-endpoint": _local("affects its route /tokenizer_info"),
    "--disable-fastapi-docs": _local("affects its routes /docs and /openapi.json"),
    "--enable-offline-docs": _local("affects its route /docs"),
    "--h11-max-incomplete-event-size": _local("affects its limit for headers"),
    "--h11-max-header-count": _local("affects its limit for headers"),
    "--enable-flash-late-interaction": _local("affects how it computes scores"),
}
"""Options by their long form. All other options are accepted."""

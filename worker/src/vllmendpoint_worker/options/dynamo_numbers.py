"""Checks the numbers that Dynamo reads from the environment. Pure.

For an invalid number, Dynamo ends the process minutes after the start, or uses a default without a warning.
The bounds were measured with the installed version. A contract test checks that the table contains every
numeric variable of Dynamo's parsers.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import PayloadSource, Problem, Reason
from vllmendpoint_worker.setting_origin import SettingOrigin

__all__ = ["NUMERIC_VARIABLES", "Bounds", "invalid_numbers"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """From ``least`` to ``most``, both included. ``most`` is None if there is no upper bound."""

    least: int
    most: int | None = None
    whole: bool = True
    note: str = ""
    optional: bool = False
    """The text ``None`` is valid."""

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        bounds = f"of {self.least} or more" if self.most is None else f"from {self.least} to {self.most}"
        return f"{kind} {bounds}{self.note}"

    def accept(self, text: str) -> bool:
        """Whether ``text`` is a number within the bounds."""
        if self.optional and text == "None":
            return True
        most = math.inf if self.most is None else self.most
        return bool(_PATTERNS[self.whole].fullmatch(text)) and self.least <= float(text) <= most


_PORT: Final = Bounds(0, 65_535)
_COUNT: Final = Bounds(1)
_SIZE: Final = Bounds(0)
_NUMBER: Final = Bounds(0, whole=False)
_OPTIONAL: Final = Bounds(0, whole=False, optional=True)
_PATTERNS: Final = {
    True: re.compile(r"-?[0-9]{1,19}"),
    False: re.compile(r"-?([0-9]{1,19}\.?[0-9]{0,19}|\.[0-9]{1,19})(e[-+]?[0-9]{1,2})?"),
}

_OTHER_WHOLE_NUMBERS: Final = """
DYN_AUDIT_CAPACITY DYN_AUDIT_JSONL_BUFFER_BYTES DYN_AUDIT_JSONL_FLUSH_INTERVAL_MS
DYN_AUDIT_JSONL_GZ_ROLL_BYTES DYN_AUDIT_JSONL_GZ_ROLL_LINES DYN_AUDIT_OTEL_MAX_PAYLOAD_BYTES
DYN_BENCH_GIANT_KV_REPEATS DYN_BENCH_GIANT_KV_THRESHOLD
DYN_FPM_JSONL_GZ_ROLL_BYTES DYN_FPM_MAX_SEGMENTS DYN_FPM_SAMPLE_INTERVAL_MS
DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS DYN_HTTP_CONCURRENCY DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS
DYN_HTTP_LISTEN_BACKLOG DYN_HTTP_MAX_CONNECTIONS DYN_HTTP_MAX_KEEPALIVE
DYN_KV_STATE_AGENT_HOST_DISCOVERY_TIMEOUT_SECS
DYN_LORA_ALLOCATION_BUCKETS_PER_SECOND DYN_LORA_ALLOCATION_SCALE_DOWN_COOLDOWN_TICKS
DYN_LORA_ALLOCATION_TIMESTEP_SECS
DYN_MM_HTTP_CONCURRENCY DYN_MM_HTTP_MAX_CONNECTIONS DYN_MM_HTTP_MAX_KEEPALIVE
DYN_MM_IMAGE_CACHE_SIZE DYN_MM_SHARED_IMAGE_CACHE_TTL_SECS DYN_MM_VIDEO_NUM_FRAMES
DYN_NATS_REQUEST_TIMEOUT_SECS DYN_NVTX
DYN_QUIC_RESPONSE_BATCH_INTERVAL_US DYN_QUIC_RESPONSE_BUFFER_CAPACITY
DYN_REQUEST_TRACE_CAPACITY DYN_REQUEST_TRACE_FILE_BUFFER_BYTES DYN_REQUEST_TRACE_FILE_FLUSH_INTERVAL_MS
DYN_REQUEST_TRACE_FILE_ROLL_BYTES DYN_REQUEST_TRACE_FILE_ROLL_LINES DYN_REQUEST_TRACE_JSONL_BUFFER_BYTES
DYN_REQUEST_TRACE_JSONL_FLUSH_INTERVAL_MS DYN_REQUEST_TRACE_JSONL_GZ_ROLL_BYTES
DYN_REQUEST_TRACE_JSONL_GZ_ROLL_LINES DYN_REQUEST_TRACE_OTEL_MAX_PAYLOAD_BYTES
DYN_REQUEST_TRACE_S3_FLUSH_INTERVAL_MS DYN_REQUEST_TRACE_S3_ROLL_UNCOMPRESSED_BYTES
DYN_RL_MAX_CONCURRENT_PROBES DYN_RL_REQUEST_TIMEOUT_SECS
DYN_RUNTIME_INHIBITED_DURATION_SECS DYN_SPLIT_ENCODE
DYN_TCP_CHANNEL_BUFFER DYN_TCP_HOST_IDLE_TTL_SECS DYN_TCP_SHRINK_MESSAGE_SIZE
DYN_TOKENIZER_CACHE_BYTES DYN_VLLM_ENCODER_KV_CACHE_MEMORY_BYTES DYN_VLLM_ENCODER_MAX_NUM_SEQS
DYN_VLLM_STREAM_INTERVAL
"""
_OTHER_NUMBERS: Final = """
DYN_ENGINE_HEALTH_CHECK_INTERVAL DYN_ENGINE_HEALTH_CHECK_TIMEOUT DYN_ENGINE_HEALTH_SHUTDOWN_TIMEOUT
DYN_FPM_GC_FREEZE_INTERVAL_S
DYN_HTTP_CONNECT_TIMEOUT DYN_HTTP_KEEPALIVE_TIMEOUT DYN_HTTP_POOL_TIMEOUT DYN_HTTP_TIMEOUT
DYN_LORA_ALLOCATION_EMA_ALPHA DYN_LORA_ALLOCATION_RATE_WINDOW_MULTIPLIER
DYN_MM_HTTP_CONNECT_TIMEOUT DYN_MM_HTTP_POOL_TIMEOUT DYN_MM_HTTP_READ_TIMEOUT
DYN_MM_MAX_DATA_URL_MB DYN_MM_MAX_FILE_SIZE_MB DYN_MM_NIXL_CLEANUP_TIMEOUT_S DYN_MM_NIXL_PROGRESS_DELAY_US
DYN_MM_SHARED_IMAGE_CACHE_CONNECT_TIMEOUT_SECS DYN_MM_SHARED_IMAGE_CACHE_IO_TIMEOUT_SECS
DYN_MULTIMODAL_LOADER_CACHE_GB DYN_PREFILL_DRAIN_TIMEOUT_S DYN_RL_INIT_WEIGHTS_TIMEOUT_S
DYN_VLLM_ENCODER_GPU_MEMORY_UTILIZATION
"""
"""Dynamo reads these variables where it uses them. Most invalid values are replaced by a default, with or
without a warning. Others end the import of Dynamo (``DYN_NVTX``) or let a request fail.
"""

NUMERIC_VARIABLES: Final[dict[str, Bounds]] = {
    **dict.fromkeys(_OTHER_WHOLE_NUMBERS.split(), _SIZE),
    **dict.fromkeys(_OTHER_NUMBERS.split(), _NUMBER),
    "DYN_HTTP_RPC_PORT": _PORT,
    "DYN_RL_PORT": _PORT,
    # Read by the runtime, which ends with an error such as "expected i16".
    "DYN_SYSTEM_PORT": Bounds(-32_768, 32_767, note=" (a negative number disables it)"),
    "DYN_RUNTIME_NUM_WORKER_THREADS": _COUNT,
    "DYN_RUNTIME_MAX_BLOCKING_THREADS": _COUNT,
    "DYN_COMPUTE_THREADS": _SIZE,
    "DYN_COMPUTE_STACK_SIZE": _SIZE,
    # Read by the runtime, which uses a default or panics.
    "DYN_TCP_RPC_PORT": _PORT,
    "DYN_TCP_RESPONSE_STREAM_PORT": _PORT,
    "DYN_TCP_WORK_QUEUE_SIZE": _COUNT,
    "DYN_TCP_WORKER_POOL_SIZE": _COUNT,
    "DYN_TCP_POOL_SIZE": _COUNT,
    "DYN_TCP_MAX_MESSAGE_SIZE": _COUNT,
    "DYN_TCP_LISTEN_BACKLOG": _COUNT,
    "DYN_TCP_CONNECT_TIMEOUT": _COUNT,
    "DYN_TCP_REQUEST_TIMEOUT": _COUNT,
    "DYN_TCP_GLOBAL_CONNECT_LIMIT": _COUNT,
    "DYN_DYNAMO_REQUEST_QUEUE_LIMIT": _SIZE,
    "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS": _SIZE,
    "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT": _SIZE,
    "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": _NUMBER,
    "DYN_ZMQ_IO_THREADS": _COUNT,
    "DYN_ZMQ_EVENT_SUBSCRIBER_CHANNEL_CAPACITY": _COUNT,
    # Read by the parsers.
    "DYN_FORWARDPASS_METRIC_PORT": Bounds(1_024, 49_151),
    "DYN_ENGINE_REQUEST_LIMIT": _COUNT,
    "DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS": _COUNT,
    "DYN_MULTIMODAL_EMBEDDING_CACHE_CAPACITY_GB": _NUMBER,
    "DYN_VLLM_EMBEDDING_WORKER_PROCESSES": _COUNT,
    "DYN_PREFILL_MAX_NEW_TOKEN_SAMPLES": Bounds(2),
    "DYN_PREFILL_MAX_KV_READ_TOKEN_SAMPLES": Bounds(2),
    "DYN_DECODE_MAX_KV_READ_TOKEN_SAMPLES": Bounds(2),
    "DYN_DECODE_MAX_BATCH_SIZE_SAMPLES": Bounds(2),
    "DYN_PREFIX_MAX_BATCH_SIZE_SAMPLES": _COUNT,
    "DYN_BENCHMARK_PREFILL_GRANULARITY": Bounds(1, 1_024),
    "DYN_BENCHMARK_PREFILL_KV_READ_GRANULARITY": Bounds(1, 1_024),
    "DYN_BENCHMARK_PREFILL_BATCH_GRANULARITY": Bounds(1, 1_024),
    "DYN_BENCHMARK_DECODE_LENGTH_GRANULARITY": Bounds(1, 1_024),
    "DYN_BENCHMARK_DECODE_BATCH_GRANULARITY": Bounds(1, 1_024),
    "DYN_BENCHMARK_WARMUP_ITERATIONS": _SIZE,
    "DYN_BENCHMARK_TIMEOUT": _COUNT,
    "DYN_BENCHMARK_MAX_BATCH_SIZE": _COUNT,
    # Routing settings that a worker publishes.
    "DYN_ROUTER_SESSION_AFFINITY_TTL_SECS": _COUNT,
    "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD": Bounds(0, 1, whole=False, optional=True),
    "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD": Bounds(0, optional=True),
    "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC": _OPTIONAL,
    "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT": _NUMBER,
    "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY": _NUMBER,
    "DYN_ROUTER_PREFILL_LOAD_SCALE": _NUMBER,
    "DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT": _NUMBER,
    "DYN_ROUTER_HOST_CACHE_HIT_WEIGHT": _NUMBER,
    "DYN_ROUTER_DISK_CACHE_HIT_WEIGHT": _NUMBER,
    "DYN_ROUTER_TEMPERATURE": _NUMBER,
    "DYN_ROUTER_TTL_SECS": _NUMBER,
    "DYN_ROUTER_QUEUE_THRESHOLD": _OPTIONAL,
    "DYN_ROUTER_EVENT_THREADS": _COUNT,
    "DYN_ROUTER_MIN_INITIAL_WORKERS": _SIZE,
    "DYN_SHARED_CACHE_MULTIPLIER": _NUMBER,
    "DYN_ROUTER_PREDICTED_TTL_SECS": _NUMBER,
}
"""Variable -> bounds. An empty variable is unset."""


def invalid_numbers(environ: Mapping[str, str]) -> list[Problem]:
    """One problem for each variable that Dynamo cannot read. No message repeats text that is not a number."""
    problems = []
    for variable, bounds in NUMERIC_VARIABLES.items():
        text = environ.get(variable, "").strip()
        if text and not bounds.accept(text):
            number = _PATTERNS[False].fullmatch(text)
            fault = f"is {text[:32]}, which Dynamo rejects" if number else "is not a number"
            origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable, confidential=True)
            problems.append(origin.violation(fault, f"Use {bounds}.", reason=Reason.INVALID_ENVIRONMENT))
    return problems

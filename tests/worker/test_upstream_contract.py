"""Every name and signature of Dynamo's and vLLM's internals that the worker uses, checked against the pinned
versions: an incompatible upgrade fails here instead of in a pod.
"""

import dataclasses
import hashlib
import inspect
import re
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo._core import Context, Endpoint
    from dynamo.common.utils.engine_response import normalize_finish_reason
    from dynamo.vllm import engine_monitor, handlers
    from vllm.config import KVTransferConfig, ModelConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import NixlBaseConnectorScheduler
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing, PoolingServing
    from vllm.entrypoints.pooling.scoring.serving import ServingScores
    from vllm.model_executor.models import ModelRegistry
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.sampling_params import SamplingParams
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import core_client
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerManager
    from vllm.v1.metrics.stats import (
        FinishedRequestStats,
        IterationStats,
        SchedulerIterationDetails,
        SchedulerStats,
    )
    from vllm.v1.request import RequestStatus

    from tests.worker.signatures import parameters
    from vllmendpoint_worker import upstream

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("function", "needed"),
    [
        (
            upstream._dynamo_worker.WorkerFactory.__init__,
            [
                "setup_vllm_engine_fn",
                "setup_kv_event_publisher_fn",
                "setup_kv_state_attachment_owner_fn",
                "register_vllm_model_fn",
                "setup_fpm_relay_fn",
                "setup_metrics_collection_fn",
                "state_agent_lifecycle",
            ],
        ),
        (
            upstream._dynamo_worker.WorkerFactory.create,
            ["runtime", "config", "shutdown_event", "shutdown_endpoints"],
        ),
        (
            upstream._dynamo_worker.WorkerFactory.register_engine_routes,
            ["runtime", "generate_endpoint", "handler", "lora_enabled"],
        ),
        (
            upstream._dynamo_worker.create_runtime,
            ["discovery_backend", "request_plane", "event_plane", "response_plane"],
        ),
        (
            upstream._dynamo_worker.graceful_shutdown_with_discovery,
            [
                "runtime",
                "endpoints",
                "shutdown_event",
                "drain_callback",
                "pre_shutdown_callback",
                "cleanup_callback",
            ],
        ),
        (upstream._dynamo_worker.get_grace_period_seconds, []),
        (upstream._dynamo_worker.dynamo_main.setup_vllm_engine, ["config", "stat_logger", "fpm_worker_id"]),
        (
            upstream._dynamo_worker.dynamo_main.register_vllm_model,
            ["model_input", "model_type", "generate_endpoint", "config"],
        ),
        (upstream._dynamo_worker.dynamo_main.setup_kv_event_publisher, ["config"]),
        (upstream._dynamo_worker.dynamo_main.setup_kv_state_attachment_owner, ["config"]),
        (upstream._dynamo_worker.dynamo_main.setup_fpm_relay, ["config"]),
        (upstream._dynamo_worker.dynamo_main.setup_metrics_collection, ["config"]),
        (upstream._dynamo_worker.dynamo_main.should_prefetch_model, ["config"]),
        (upstream._arguments.parse_args_with_model_fetch, ["argv"]),
        (upstream._arguments.configure_rl_logprobs_mode, ["config"]),
        (upstream._arguments.fetch_model, ["remote_name"]),
        (upstream._arguments.dump_config, ["dump_config_to", "config"]),
        (
            upstream._dynamo_worker.EmbeddingWorkerHandler.__init__,
            ["runtime", "engine", "config", "shutdown_event"],
        ),
        (upstream._dynamo_worker.EmbeddingWorkerHandler.generate, ["request", "context"]),
        (
            upstream._dynamo_worker.ClassifyWorkerHandler.__init__,
            ["runtime", "engine", "config", "model_config", "shutdown_event"],
        ),
        (upstream._dynamo_worker.ClassifyWorkerHandler.generate, ["request", "context"]),
        (ServingScores.__call__, ["args"]),
        (PoolingServing.__call__, ["request", "raw_request"]),
        (ModelConfig.get_pooling_task, ["supported_tasks"]),
        (ModelRegistry.is_transcription_only_model, ["architectures", "model_config"]),
        (upstream._dynamo_worker.EmbeddingWorkerHandler.cleanup, []),
        (upstream._dynamo_worker.StatLoggerFactory.__init__, ["endpoint", "embedding_worker"]),
        (upstream._dynamo_worker.VllmEmbeddingHealthCheckPayload.__init__, ["model_name"]),
        (
            upstream._dynamo_worker.register_engine_metrics_callback,
            ["endpoint", "registry", "namespace_name", "component_name", "endpoint_name", "model_name"],
        ),
        (AsyncEngineArgs.create_model_config, []),
        (upstream._http.register_api_routers, ["args", "app", "supported_tasks", "model_config"]),
        (upstream._http.attach_endpoint_plugins, ["app", "supported_tasks"]),
        (upstream._http.init_exception_handler, ["app"]),
        (upstream._http.init_entrypoints_middleware, ["args", "app", "supported_tasks"]),
        (upstream._http.init_app_state, ["engine_client", "state", "args", "supported_tasks"]),
        (upstream.get_max_tokens, ["max_model_len", "max_tokens", "input_length", "default_sampling_params"]),
        (upstream.ChatCompletionRequest.to_sampling_params, ["max_tokens", "default_sampling_params"]),
        (upstream.CompletionRequest.to_sampling_params, ["max_tokens", "default_sampling_params"]),
        (AsyncLLM.add_request, ["request_id", "prompt", "params", "data_parallel_rank"]),
        (AsyncLLM.generate, ["prompt", "sampling_params", "request_id", "data_parallel_rank"]),
        (AsyncLLM.encode, ["prompt", "pooling_params", "request_id", "tokenization_kwargs"]),
        (StatLoggerBase.record, ["scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"]),
    ],
)
def test_signatures(function: Any, needed: list[str]) -> None:
    assert [name for name in needed if name not in parameters(function)] == []


def test_members_of_the_engine_client_and_its_statistics() -> None:
    for name in ("get_num_unfinished_requests", "get_supported_tasks", "errored"):
        assert hasattr(AsyncLLM, name)
    for record, fields in (
        (SchedulerStats, {"iteration_details"}),
        (
            SchedulerIterationDetails,
            {
                "num_ctx_tokens",
                "num_generation_tokens",
                "num_encoder_output_tokens",
                "elapsed_ms",
                "is_dummy",
            },
        ),
        (FinishedRequestStats, {"request_id", "finish_reason"}),
    ):
        assert fields <= {field.name for field in dataclasses.fields(record)}
    assert "finished_requests" in vars(IterationStats())
    arguments = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert {
        "enable_logging_iteration_details",
        "served_model_name",
        "model",
        "disable_log_stats",
    } <= arguments
    assert {"temperature", "top_p", "top_k", "min_p", "stop", "max_tokens", "min_tokens"} <= set(
        SamplingParams.__struct_fields__
    )


@pytest.mark.parametrize("steps", ["_run_decode_worker", "_run_prefill_worker"])
def test_a_generating_worker_receives_its_handler_before_it_is_registered(steps: str) -> None:
    """The factory calls register_engine_routes, then register_vllm_model, then serves handler.generate."""
    source = inspect.getsource(getattr(upstream._dynamo_worker.WorkerFactory, steps))
    places = [
        source.index(text)
        for text in ("self.register_engine_routes(", "self.register_vllm_model(", "handler.generate,")
    ]
    assert places == sorted(places)


def test_members_of_dynamos_context_and_endpoint() -> None:
    for name in ("is_stopped", "is_killed", "id", "metadata"):
        assert hasattr(Context, name)
    context = Context(metadata={"key": "value"})
    assert "key" in context.metadata
    assert (context.is_stopped(), context.is_killed()) == (False, False)
    context.stop_generating()
    assert context.is_stopped()
    assert hasattr(Endpoint, "connection_id")


def test_an_aborted_request_has_the_finish_reason_cancelled() -> None:
    assert normalize_finish_reason("abort") == "cancelled"
    source = inspect.getsource(handlers.BaseWorkerHandler.generate_tokens)
    assert "normalize_finish_reason(finish_reason)" in source


def test_the_number_of_choices_is_where_dynamos_handler_reads_it() -> None:
    source = inspect.getsource(handlers.build_sampling_params)
    assert 'request.get("sampling_options")' in source
    assert 'extra_args.get("sampling_options")' in source


def test_dynamos_embedding_handler_has_two_forms_of_answers() -> None:
    source = inspect.getsource(upstream._dynamo_worker.EmbeddingWorkerHandler.generate)
    for text in ('request.get("token_ids")', '"embeddings": token_embeddings', '"object": "list"'):
        assert text in source


def test_upstream_shuts_the_runtime_down_before_it_exits_over_a_dead_engine() -> None:
    """``ShutdownInterceptor``, in the place of the runtime, prevents that exit. The worker exits later."""
    for module in (handlers, engine_monitor):
        source = inspect.getsource(module)
        ends = re.findall(r"^ +os\._exit\(", source, re.MULTILINE)
        shutdowns = re.findall(r"self\.runtime\.shutdown\(\)\n +os\._exit\(1\)", source)
        assert 0 < len(ends) == len(shutdowns), module


def test_upstreams_embedding_worker_has_the_steps_that_ours_replaces() -> None:
    """``_HookedFactory`` replaces upstream's steps. When they change, compare its own steps with them."""
    ours, theirs = upstream._dynamo_worker._HookedFactory, upstream._dynamo_worker.WorkerFactory
    assert parameters(ours._create_embedding_worker) == parameters(theirs._create_embedding_worker)
    assert "self._create_embedding_worker(" in inspect.getsource(theirs.create)
    _, _, steps = inspect.getsource(theirs._create_embedding_worker).split('"""')  # without the docstring
    assert hashlib.sha256(" ".join(steps.split()).encode()).hexdigest()[:16] == "ead58c5fb7c4f081", steps


def test_text_for_users_is_decoded_by_the_models_own_tokenizer() -> None:
    source = inspect.getsource(OnlineRenderer)
    assert "self.renderer.get_tokenizer()" in source
    assert "skip_special_tokens" in parameters(TokenizerLike.decode)
    assert SamplingParams().skip_special_tokens is True


def test_the_canarys_marker_is_upstreams() -> None:
    assert upstream.HEALTH_CHECK_KEY == "_HEALTH_CHECK"


def test_a_request_can_name_its_data_parallel_rank() -> None:
    """Dynamo's handlers take it from the routing; its pooling handlers do not, vLLM's client does."""
    source = inspect.getsource(handlers.DecodeWorkerHandler)
    assert 'self._to_local_dp_rank(routing.get("dp_rank"))' in source
    assert "self.add_request(" in inspect.getsource(AsyncLLM.encode)
    clients = inspect.getsource(core_client)
    for name in ("self.engine_ranks_managed", "self.core_engines:", "self.engine_inflight:"):
        assert name in clients


def test_scores_are_requested_with_the_probes_id() -> None:
    """``Scorer`` puts a client of its own in the place of vLLM's, and the request's id comes from it."""
    source = inspect.getsource(PoolingBaseServing._prepare_generators)
    assert "self.engine_client.encode(" in source
    assert "request_id=prompt_request_id" in source


def test_a_pooling_request_is_recognized_by_its_encoding() -> None:
    assert 'if "encoding_format" in request:' in inspect.getsource(
        upstream._dynamo_worker.ClassifyWorkerHandler.generate
    )


def test_the_workers_stat_logger_precedes_vllms_own() -> None:
    source = inspect.getsource(StatLoggerManager.__init__)
    assert source.index("extend(custom_stat_loggers)") < source.index("LoggingStatLogger")


def test_a_decode_handler_for_both_phases_has_the_state_of_the_workers_handler() -> None:
    """``two_phase_handler`` sets what only Dynamo's constructor of the decode handler sets."""
    source = inspect.getsource(handlers.DecodeWorkerHandler.__init__)
    assert {*re.findall(r"self\.(\w+)", source)} == {
        "_first_token_source",
        "_external_encoder_handoff_consumer",
    }
    prefill = inspect.getsource(handlers.PrefillWorkerHandler.__init__)
    assert re.findall(r"self\.(\w+)(?::[^=]+)? =", prefill) == []
    assert issubclass(handlers.PrefillWorkerHandler, handlers.BaseWorkerHandler)
    assert "mode = cast(DisaggregationMode, self.config.disaggregation_mode)" in inspect.getsource(
        handlers.DecodeWorkerHandler._generate_token_mode
    )


def test_dynamos_handlers_name_their_requests_to_vllm() -> None:
    """``NamingClient`` and ``LocalClient`` replace these methods of vLLM's client."""
    assert parameters(AsyncLLM.generate)[1:4] == ["prompt", "sampling_params", "request_id"]
    assert hasattr(AsyncLLM, "notify_kv_transfer_request_rejected")
    for source in map(inspect.getsource, (handlers.BaseWorkerHandler, handlers.PrefillWorkerHandler)):
        assert re.search(
            r"self\.engine_client\.generate\(\s+prompt,\s+sampling_params,\s+request_id,\s+\w+=", source
        )
    assert "self.engine_client.abort(request_id)" in inspect.getsource(
        handlers.BaseWorkerHandler._monitor_abort
    )


def test_a_chunk_of_a_prefill_worker_names_kv_blocks_unless_vllm_aborted_the_request() -> None:
    build = handlers.PrefillWorkerHandler._build_disaggregated_params
    assert build(None, None) is None
    assert build(None, {}) == {"kv_transfer_params": {}}
    source = inspect.getsource(handlers.PrefillWorkerHandler._generate_token_mode)
    assert '"disaggregated_params": self._prefill_disaggregated_params(' in source


def test_vllm_ends_a_request_with_an_error_if_it_cannot_read_the_kv_blocks() -> None:
    assert KVTransferConfig().kv_load_failure_policy == "fail"
    assert "RequestStatus.FINISHED_ERROR" in inspect.getsource(Scheduler.update_from_output)
    assert str(RequestStatus.get_finished_reason(RequestStatus.FINISHED_ERROR)) == "error"
    assert 'disaggregated_params.get("kv_transfer_params")' in inspect.getsource(
        handlers.DecodeWorkerHandler._generate_token_mode
    )


def test_vllm_counts_the_kv_blocks_that_wait_for_a_decode_worker() -> None:
    """The engine runs steps until they are read, and reports the used blocks of each step."""
    assert "kv_cache_usage" in {field.name for field in dataclasses.fields(SchedulerStats)}
    assert "len(self.requests) > (num_running + num_waiting)" in inspect.getsource(
        Scheduler.has_finished_requests
    )


def test_vllm_frees_kv_blocks_that_no_decode_worker_reads_after_half_a_minute() -> None:
    """docs/decisions/0043-prefill-and-decode.md relies on the default."""
    assert re.search(r'"kv_lease_duration", 30\b', inspect.getsource(NixlBaseConnectorScheduler.__init__))

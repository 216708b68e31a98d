"""Every name and signature of Dynamo's and vLLM's internals that the worker composes, held against the pinned
versions: an upgrade that moves one fails here, and not in a pod.
"""

import dataclasses
import hashlib
import inspect
import re
import types
import warnings
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from vllmendpoint_api import Level, ModelType, PayloadSource, Verdict, payload_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.llm.exceptions import HttpError
    from dynamo.vllm import engine_monitor, handlers, publisher
    from dynamo.vllm.errors import vllm_client_error_to_http_error
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing, PoolingServing
    from vllm.entrypoints.pooling.scoring.serving import ServingScores
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.exceptions import VLLMValidationError
    from vllm.model_executor.models import ModelRegistry
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.sampling_params import SamplingParams
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.engine import FinishReason, core_client
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerManager
    from vllm.v1.metrics.stats import (
        FinishedRequestStats,
        IterationStats,
        SchedulerIterationDetails,
        SchedulerStats,
    )

    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.engine.http_app import ReadinessMiddleware
    from vllmendpoint_worker.errors import EngineStartError
    from vllmendpoint_worker.handlers import install_sagemaker_routes
    from vllmendpoint_worker.options.arguments import clear_environment
    from vllmendpoint_worker.payload.validation import check_payload
    from vllmendpoint_worker.probing.progress import PROGRESS
    from vllmendpoint_worker.serving.health_route import HealthRoute, reaches_health
    from vllmendpoint_worker.setting_origin import SettingOrigin
    from vllmendpoint_worker.vllm_rejections import VLLMRejection

pytestmark = pytest.mark.timeout(120)


def test_vllm_classifies_rejected_requests_and_names_the_parameter() -> None:
    refused = VLLMValidationError("too many", parameter="logprobs", value=50)
    found = upstream.rejection_of(refused)
    assert found == upstream.rejection_of(vllm_client_error(refused))
    assert found is not None
    assert (found.sentence, found.parameter) == ("too many (parameter=logprobs, value=50)", "logprobs")
    assert upstream.rejection_of(HttpError(422, "no")) == VLLMRejection("no")
    assert upstream.rejection_of(ValueError("no")) == VLLMRejection("no")
    for fault in (HttpError(503, "no"), EngineDeadError(), RuntimeError("no"), KeyboardInterrupt(), None):
        assert upstream.rejection_of(fault) is None, fault
    assert upstream.rejection_in_response(create_error_response("no", param="tools")) == VLLMRejection(
        "no", "tools"
    )
    assert upstream.rejection_in_response(("conversation", ["inputs"])) is None


def vllm_client_error(error: Exception) -> Exception:
    """As Dynamo's handlers raise it."""
    try:
        raise vllm_client_error_to_http_error(error) from error
    except HttpError as raised:
        return raised


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


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


def test_a_generating_worker_receives_its_handler_before_it_is_registered() -> None:
    """The factory calls register_engine_routes, then register_vllm_model, then serves handler.generate."""
    source = inspect.getsource(upstream._dynamo_worker.WorkerFactory._run_decode_worker)
    places = [
        source.index(text)
        for text in ("self.register_engine_routes(", "self.register_vllm_model(", "handler.generate,")
    ]
    assert places == sorted(places)


def test_upstream_shuts_the_runtime_down_before_it_exits_over_a_dead_engine() -> None:
    """There we say why: ``ShutdownInterceptor`` stands for the runtime."""
    for module in (handlers, engine_monitor):
        source = inspect.getsource(module)
        ends = re.findall(r"^ +os\._exit\(", source, re.MULTILINE)
        told = re.findall(r"self\.runtime\.shutdown\(\)\n +os\._exit\(1\)", source)
        assert 0 < len(ends) == len(told), module


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


def test_every_health_check_of_vllm_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new GET route fails here: add it to HEALTH_PATHS where it means healthy, else to the list below."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    app = FastAPI(openapi_url=None)
    app.state.args = types.SimpleNamespace(enable_fault_tolerance=True)
    tasks: Any = ("generate", "transcription", "realtime", "render")
    upstream._http.register_api_routers(app.state.args, app, tasks, None)
    upstream._http.guard_health(app, lambda: False)
    routes = [route for route in app.router.routes if isinstance(route, APIRoute) and "GET" in route.methods]
    assert {route.path for route in routes if isinstance(route, HealthRoute)} == {"/health", "/ping"}
    information = {
        "/fault_tolerance/status",
        "/get_world_size",
        "/is_paused",
        "/is_sleeping",
        "/kv_event_sources",
        "/load",
        "/metrics",
        "/server_info",
        "/v1/models",
        "/v1/responses/{response_id}",
        "/version",
        "/weight_info",
    }
    assert {route.path for route in routes if not isinstance(route, HealthRoute)} == information
    assert all(
        isinstance(route, HealthRoute)
        for route in app.router.routes
        if getattr(route, "path", "") in ("/health", "/ping")
    )


def test_vllms_invocations_route_has_the_expected_wrappers() -> None:
    app = FastAPI(openapi_url=None)
    app.state.args = types.SimpleNamespace()
    upstream._http.register_api_routers(app.state.args, app, ("generate",), None)
    install_sagemaker_routes(app, loading=False)
    (route,) = (each for each in app.router.routes if getattr(each, "path", "") == "/invocations")
    assert [each.dependency.__name__ for each in route.dependencies] == ["validate_json_request"]
    inner = inspect.getclosurevars(route.endpoint).nonlocals["func"]
    dispatch = inspect.getclosurevars(inner).nonlocals["dispatch"]
    assert (dispatch.__module__, dispatch.__name__) == (
        "vllm.entrypoints.serve.sagemaker.api_router",
        "invocations",
    )
    assert parameters(dispatch) == ["raw_request"]


@pytest.mark.parametrize(("verdict", "healthy", "statuses"), [
    (Verdict.GENERATING, True, (200, 200, 200)),
    (Verdict.STALLED, False, (503, 200, 200)),
    (Verdict.DEAD, False, (503, 503, 1013)),
])  # fmt: skip
async def test_the_readiness_middleware_precedes_the_users_middleware(
    verdict: Verdict, healthy: bool, statuses: tuple[int, int, int]
) -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/ping", lambda raw_request: None, methods=["GET"])
    upstream._http.guard_health(app, lambda: healthy)
    sent: list[int] = []

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.extend(message[name] for name in ("status", "code") if name in message)

    readiness = ReadinessMiddleware(
        middleware,
        is_healthy=lambda: healthy,
        is_health_check=lambda scope: reaches_health(app, scope),
        verdict=lambda: verdict,
    )
    for kind, path in (("http", "/ping"), ("http", "/v1/models"), ("websocket", "/v1/realtime")):
        await readiness({"type": kind, "method": "GET", "path": path}, None, send)
    assert tuple(sent) == statuses


def test_request_fields_contain_the_guides_payloads() -> None:
    fields = upstream.request_fields()
    origin = SettingOrigin(PayloadSource.SPEC, "payload")
    for level in Level:
        for model_type in ModelType:
            assert check_payload(payload_for(level, model_type), origin, fields, model_type) == []
    assert len(check_payload({"prompt": "x", "promptt": "y"}, origin, fields, None)) == 1


def test_the_canarys_marker_is_upstreams() -> None:
    assert upstream.HEALTH_CHECK_KEY == "_HEALTH_CHECK"


async def test_the_canary_is_answered_from_the_verdict_and_other_requests_by_the_engine() -> None:
    asked: list[Any] = []

    async def generate(request: Any, context: Any) -> Any:
        asked.append((request, context))
        yield {"token_ids": [7]}

    healthy = True
    answer = upstream._dynamo_worker._answer_canary(generate, lambda: healthy)
    assert parameters(answer) == ["request", "context"]
    canary = {"token_ids": [1], "_HEALTH_CHECK": True}
    chunks = [chunk async for chunk in answer(canary, context="c")]
    assert [chunk["finish_reason"] for chunk in chunks] == ["stop"]
    healthy = False
    assert [chunk async for chunk in answer(canary, context="c")] == []
    assert asked == []
    assert [chunk async for chunk in answer({"token_ids": [1]}, context="c")] == [{"token_ids": [7]}]


async def test_the_download_ends_before_vllm_inspects_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def fetch(config: Any) -> None:
        done.append(f"fetched {config}")

    def inspect_model(engine_args: Any) -> upstream.ModelInspection:
        done.append(f"looked at {engine_args}")
        return upstream.ModelInspection("generate")

    monkeypatch.setattr(upstream._arguments, "_fetch", fetch)
    monkeypatch.setattr(upstream._arguments, "_inspect_model", inspect_model)

    class Config(str):
        embedding_worker = False
        engine_args = "the model"

    parsed = upstream.Arguments(Config("it"), None, ())
    prepared = upstream.prepare_engine(
        parsed, lambda: done.append("told"), lambda look: done.append(f"it {look.runner}s")
    )
    assert await prepared is parsed
    assert done == ["fetched it", "told", "looked at the model", "it generates"]


def test_arguments_are_split_between_engine_and_http_server() -> None:
    engine, frontend = upstream.split_frontend(
        [
            "--model",
            "m",
            "--chat-template",
            "t.jinja",
            "-tp",
            "2",
            "--api_key",
            "k1",
            "k2",
            "--max-model-len=64",
            "--allowed-origins",
            '["*"]',
            "--kv-cache-memory-bytes",
            "64M",
            "--seed",
            "-1",
        ]
    )
    assert engine == [
        "--model",
        "m",
        "-tp",
        "2",
        "--max-model-len=64",
        "--kv-cache-memory-bytes",
        "64M",
        "--seed",
        "-1",
    ]
    assert frontend == ["--chat-template", "t.jinja", "--api_key", "k1", "k2", "--allowed-origins", '["*"]']


def test_the_config_file_becomes_arguments() -> None:
    config = {
        "max_model_len": 64,
        "enforce-eager": True,
        "enable_prefix_caching": False,
        "served-model-name": ["a", "b"],
        "compilation-config": {"mode": 0},
        "quantization": None,
    }
    assert upstream.config_arguments(config) == [
        "--max-model-len",
        "64",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--served-model-name",
        "a",
        "b",
        "--compilation-config",
        '{"mode": 0}',
    ]


async def test_a_positional_argument_is_rejected() -> None:
    """In the operator's order of arguments; the other way round vLLM would take it for one more name."""
    with pytest.raises(EngineStartError, match="unrecognized arguments: 512"):
        await upstream.parse_arguments(
            ["--served-model-name", "m", "--model", "m", "512", "--seed", "1"], None
        )


def test_the_environment_is_converted_for_upstream() -> None:
    environ = {"DYN_HEALTH_CHECK_ENABLED": "1", "DYN_CANARY_WAIT_TIME": "0.5", "VLLM_PLUGINS": "a", "X": "y"}
    clear_environment(environ, ["DYN_HEALTH_CHECK_LEVEL"], ["ours"])
    assert environ["DYN_HEALTH_CHECK_ENABLED"] == "true"
    assert environ["DYN_CANARY_WAIT_TIME"].isdecimal()
    assert environ["DYN_HEALTH_CHECK_REQUEST_TIMEOUT"].isdecimal()
    assert environ["VLLM_PLUGINS"] == "a,ours"
    assert environ["X"] == "y"


def test_the_stat_logger_records_vllms_counts() -> None:
    logger = upstream.ProgressLogger(None)
    assert upstream.ProgressLogger(None, 1)
    assert PROGRESS.ranks == [0, 1]
    progress, other = PROGRESS.rank(0), PROGRESS.rank(1)
    before = (progress.tokens_scheduled, progress.user_requests_finished)
    details = SchedulerIterationDetails(1, 1, 7, 1, 3, 12.5)
    iteration = IterationStats()
    iteration.finished_requests.append(FinishedRequestStats(FinishReason.LENGTH, request_id="user"))
    iteration.finished_requests.append(FinishedRequestStats(FinishReason.ABORT, request_id="gone"))
    scheduler = SchedulerStats(iteration_details=details)
    logger.record(scheduler, iteration)
    logger.record(None, None)
    assert (progress.tokens_scheduled, progress.user_requests_finished) == (before[0] + 10, before[1] + 1)
    logger.record(SchedulerStats(iteration_details=details), iteration, engine_idx=1)
    assert (other.tokens_scheduled, other.user_requests_finished) == (10, 1)
    assert progress.tokens_scheduled == before[0] + 10
    assert scheduler.iteration_details is None, "vLLM's own logger would make a line of it"


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


def test_used_blocks_are_published_only_when_they_change() -> None:
    assert "self.inner.publish(" in inspect.getsource(publisher.DynamoStatLoggerPublisher.record)
    assert publisher.StatLoggerFactory(None).created_loggers == {}
    told: list[tuple[Any, ...]] = []
    inner = types.SimpleNamespace(publish=lambda *args, **kwargs: told.append((*args, kwargs)), other=1)
    changes = upstream._dynamo_worker.DeduplicatingPublisher(inner)
    for blocks in (0, 0, 3, 3, 0):
        changes.publish(0, kv_used_blocks=blocks)
    assert told == [(0, {"kv_used_blocks": blocks}) for blocks in (0, 3, 0)]
    assert changes.other == 1


@pytest.mark.parametrize("dead", [None, "vLLM reports EngineDeadError"])
def test_a_dead_engine_is_reported_before_upstream_ends_the_process(dead: str | None) -> None:
    called: list[str] = []
    engine = types.SimpleNamespace(dead=lambda: dead, on_died=lambda: called.append("died"))
    runtime = types.SimpleNamespace(shutdown=lambda: called.append("shutdown"), endpoint="theirs")
    words = upstream._engine.ShutdownInterceptor(runtime, engine)
    assert words.endpoint == "theirs"
    words.shutdown()
    assert called == (["died", "shutdown"] if dead else ["shutdown"])

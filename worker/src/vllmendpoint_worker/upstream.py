"""The only importer of ``dynamo.*`` and of vLLM's launchers, request models and renderers.

Most of what is named here is no public interface of theirs. The versions are pinned, nothing of theirs is
rebound, and ``tests/worker/test_upstream_contract.py`` holds every name and signature used, so that an
upgrade fails there and not in a pod. Importing this module takes 10-25 s: it is imported late.
"""

import asyncio
import contextlib
import copy
import dataclasses
import io
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dynamo._core import Context
from dynamo.common.config_dump import dump_config
from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup
from dynamo.common.model_fetch import fetch_model, needs_local_model_path
from dynamo.common.utils.graceful_shutdown import get_grace_period_seconds, graceful_shutdown_with_discovery
from dynamo.common.utils.runtime import create_runtime
from dynamo.health_check import HEALTH_CHECK_KEY
from dynamo.vllm import main as dynamo_main
from dynamo.vllm.args import Config, configure_rl_logprobs_mode, parse_args_with_model_fetch
from dynamo.vllm.backend_args import DynamoVllmArgGroup
from dynamo.vllm.constants import DisaggregationMode
from dynamo.vllm.handlers import EmbeddingWorkerHandler
from dynamo.vllm.state_agent import StateAgentLifecycle
from dynamo.vllm.worker_factory import WorkerFactory
from fastapi import FastAPI
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.routers import register_api_routers
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.entrypoints.launchers.launcher import NoSignalServer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.loggers import StatLoggerBase

from vllmendpoint_api import ModelType

from . import arguments
from .errors import EngineStartError
from .payload import RequestFields
from .progress import PROGRESS

__all__ = [
    "HEALTH_CHECK_KEY",
    "Arguments",
    "ChatCompletionRequest",
    "CompletionRequest",
    "EmbeddingCompletionRequest",
    "Gate",
    "Hooks",
    "HttpApp",
    "NoSignalServer",
    "ProgressLogger",
    "SamplingParams",
    "Shutdown",
    "WorkerEngine",
    "build_http_app",
    "config_arguments",
    "dynamo_main",
    "get_max_tokens",
    "grace_seconds",
    "parse_arguments",
    "prepare_engine",
    "request_fields",
    "serve",
    "split_frontend",
]

logger = logging.getLogger(__name__)

EMBEDDING_FIELDS: Final = frozenset(
    {
        "input",
        "model",
        "dimensions",
        "encoding_format",
        "truncate_prompt_tokens",
        "add_special_tokens",
        "user",
    }
)
"""What Dynamo's embedding handler reads; it drops the rest of vLLM's fields in silence."""

Gate = Callable[[], bool]
"""Whether the worker may be called healthy now."""


def request_fields() -> RequestFields:
    """Names that vLLM's own request models know."""
    return RequestFields(
        completion=_names(CompletionRequest),
        chat=_names(ChatCompletionRequest),
        embedding=_names(EmbeddingCompletionRequest) & EMBEDDING_FIELDS,
    )


def _names(model: Any) -> frozenset[str]:
    fields: Mapping[str, Any] = model.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    return frozenset(fields) | aliases


# --- arguments
# -------------------------------------------------------------------------------------------------


def config_arguments(config: Mapping[str, Any]) -> list[str]:
    """The config file as arguments, the way vLLM's own ``--config`` turns it into them."""
    return arguments.from_config(config, _flags(make_arg_parser))


@dataclass(frozen=True, slots=True)
class Arguments:
    """``dynamo``: the parsed worker configuration; ``frontend``: the arguments of vLLM's HTTP server."""

    dynamo: Any
    frontend: list[str]


async def parse_arguments(argv: Sequence[str], model_type: ModelType | None) -> Arguments:
    """Split off vLLM's frontend flags, which Dynamo's parser refuses, and parse the rest.

    Raises EngineStartError with the parser's own sentence.
    """
    engine_argv, frontend = split_frontend(argv)
    if model_type is ModelType.EMBEDDING and "--embedding-worker" not in engine_argv:
        engine_argv.append("--embedding-worker")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = await parse_args_with_model_fetch(engine_argv)
    except SystemExit as exit_:
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        message = lines[-1].partition("error: ")[2] or lines[-1] if lines else f"exit {exit_.code}"
        raise EngineStartError(message[:512]) from None
    except (ValueError, TypeError, FileNotFoundError, NotImplementedError) as error:
        raise EngineStartError(
            str(error).splitlines()[0][:512] if str(error) else type(error).__name__
        ) from error
    _refuse_unsupported(config)
    # The verdict's second signal; without it vLLM does not say what the scheduler schedules.
    config.engine_args.enable_logging_iteration_details = True
    logging.getLogger("vllm.v1.metrics.loggers").addFilter(_no_iteration_lines)
    return Arguments(config, frontend)


def _no_iteration_lines(record: logging.LogRecord) -> bool:
    """The iteration details are wanted, one log line an engine step is not."""
    return not str(record.msg).startswith("%sIteration(")


def split_frontend(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The engine's arguments and the HTTP server's; a flag that both know (a few are) goes to both."""
    frontend = _flags(FrontendArgs.add_cli_args)
    engine = (
        _flags(DynamoRuntimeArgGroup().add_arguments)
        | _flags(DynamoVllmArgGroup().add_arguments)
        | _flags(lambda parser: AsyncEngineArgs.add_cli_args(parser, async_args_only=False))
    )
    return arguments.split(argv, engine, frontend)


def _flags(add_arguments: Callable[[Any], Any]) -> frozenset[str]:
    parser = FlexibleArgumentParser(add_help=False)
    add_arguments(parser)
    return frozenset(parser._option_string_actions)


def _refuse_unsupported(config: Any) -> None:
    unsupported = {
        "--headless": config.headless,
        "--realtime": config.realtime,
        "--classify-worker": config.classify_worker,
        "--use-vllm-tokenizer": config.use_vllm_tokenizer,
        "--disaggregation-mode": config.disaggregation_mode != DisaggregationMode.AGGREGATED,
        "--embedding-worker-processes": config.embedding_worker_processes > 1,
        "DYN_SNAPSHOT_CONTROL_DIR": bool(os.environ.get("DYN_SNAPSHOT_CONTROL_DIR")),
    }
    for name, used in unsupported.items():
        if used:
            raise EngineStartError(f"{name} is not supported by this worker yet")


async def prepare_engine(parsed: Arguments) -> None:
    """What ``dynamo.vllm.main.worker`` does between parsing and the runtime: names, model download."""
    config: Config = parsed.dynamo
    dump_config(config.dump_config_to, config)
    if not config.served_model_name:
        config.served_model_name = config.engine_args.served_model_name = config.model
    configure_rl_logprobs_mode(config)
    if needs_local_model_path(config.model):
        config.engine_args.model = await fetch_model(config.model)
    elif dynamo_main.should_prefetch_model(config):
        await fetch_model(config.model)


# --- the worker
# ------------------------------------------------------------------------------------------------


class Hooks(Protocol):
    """What the worker does at the points where upstream's composition lets it in."""

    def runtime_made(self, shutdown: "Shutdown") -> None:
        """The runtime stands; signals stay the worker's: upstream's handlers are not installed."""
        ...

    def engine_loaded(self, engine: "WorkerEngine") -> None: ...

    async def before_register(self) -> None:
        """The engine and its handler stand; nothing is registered yet."""
        ...

    def registered(self) -> None: ...


class Shutdown:
    """Dynamo's graceful shutdown: unregister, grace period, stop the endpoints, end the engine."""

    def __init__(self, runtime: Any, endpoints: list[Any], event: asyncio.Event, lifecycle: Any) -> None:
        self._runtime = runtime
        self._endpoints = endpoints
        self._event = event
        self._lifecycle = lifecycle

    async def run(self, cleanup: Callable[[], Any]) -> None:
        """``cleanup`` is awaited (30 s at most) after the grace period, before the runtime goes."""
        await graceful_shutdown_with_discovery(
            self._runtime,
            self._endpoints,
            shutdown_event=self._event,
            pre_shutdown_callback=self._lifecycle.close,
            cleanup_callback=cleanup,
        )


def grace_seconds() -> float:
    """``DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS``, default 5: between unregistering and the end."""
    return float(get_grace_period_seconds())


async def serve(parsed: Arguments, hooks: Hooks, gate: Gate) -> None:
    """Run Dynamo's worker until it is shut down: upstream's ``main.worker``, with our hooks between its
    steps.
    """
    config = parsed.dynamo
    event = asyncio.Event()
    endpoints: list[Any] = []
    lifecycle = StateAgentLifecycle()
    runtime, _ = create_runtime(
        discovery_backend=config.discovery_backend,
        request_plane=config.request_plane,
        event_plane=config.event_plane,
        response_plane=config.response_plane,
    )
    hooks.runtime_made(Shutdown(runtime, endpoints, event, lifecycle))
    engine = WorkerEngine(config, event)

    def setup(*args: Any, **kwargs: Any) -> Any:
        result = dynamo_main.setup_vllm_engine(*args, **kwargs)  # blocks the event loop for the whole load
        engine.loaded(result[0], result[1], result[2])
        hooks.engine_loaded(engine)
        return result

    async def register(*args: Any, **kwargs: Any) -> None:
        if config.embedding_worker:
            engine.use(
                EmbeddingWorkerHandler(
                    runtime=runtime, engine=engine.client, config=config, shutdown_event=event
                )
            )
        await hooks.before_register()
        await dynamo_main.register_vllm_model(*args, **kwargs)
        hooks.registered()

    factory = _Factory(
        engine,
        gate,
        setup_vllm_engine_fn=setup,
        setup_kv_event_publisher_fn=dynamo_main.setup_kv_event_publisher,
        setup_kv_state_attachment_owner_fn=dynamo_main.setup_kv_state_attachment_owner,
        register_vllm_model_fn=register,
        setup_fpm_relay_fn=dynamo_main.setup_fpm_relay,
        setup_metrics_collection_fn=dynamo_main.setup_metrics_collection,
        state_agent_lifecycle=lifecycle,
    )
    await factory.create(runtime, config, event, endpoints)


class _Factory(WorkerFactory):  # type: ignore[misc]  # upstream is not typed
    """Catches the request handler, and leaves out the unauthenticated ``/engine/*`` routes.

    ``POST /engine/control/sleep`` or ``pause_generation`` on the system port would stop the engine for anyone
    who reaches it.
    """

    def __init__(self, engine: "WorkerEngine", gate: Gate, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._engine = engine
        self._gate = gate

    def register_engine_routes(
        self, runtime: Any, generate_endpoint: Any, handler: Any, lora_enabled: bool = False
    ) -> None:
        del runtime, generate_endpoint, lora_enabled
        self._engine.use(handler)
        # The factory serves ``handler.generate``: the canary's requests are answered from our verdict there.
        handler.generate = _answer_canary(handler.generate, self._gate)


def _answer_canary(generate: Any, gate: Gate) -> Any:
    """Upstream's canary costs the engine nothing: where its marker is seen, our verdict answers.

    Dynamo passes the context by the name ``context``.
    """

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, Mapping) and request.get(HEALTH_CHECK_KEY) is True:
            if gate():
                yield {"index": 0, "token_ids": [0], "finish_reason": "stop"}
            return  # an empty stream is "not ready" to the canary; an error would be logged every second
        async for chunk in generate(request, context):
            yield chunk

    return answer


class WorkerEngine:
    """The engine client and Dynamo's request handler, as the prober and the HTTP server need them."""

    def __init__(self, config: Any, shutdown_event: asyncio.Event) -> None:
        self.config = config
        self.client: Any = None
        self.vllm_config: Any = None
        self.default_sampling: dict[str, Any] = {}
        self._shutdown_event = shutdown_event
        self._generate: Any = None
        self._handler: Any = None

    def loaded(self, client: Any, vllm_config: Any, default_sampling: Any) -> None:
        self.client = client
        self.vllm_config = vllm_config
        self.default_sampling = dict(default_sampling or {})

    def use(self, handler: Any) -> None:
        """Keep the handler alive and its own ``generate``, without the canary's answer."""
        self._handler = handler
        self._generate = handler.generate

    @property
    def max_model_len(self) -> int:
        return int(self.vllm_config.model_config.max_model_len)

    @property
    def model_names(self) -> list[str]:
        return [self.config.served_model_name, *(self.config.served_model_aliases or [])]

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Dynamo's own handler, called as Dynamo calls it. It may change the request: it gets a copy."""
        stream: AsyncIterator[Mapping[str, Any]] = self._generate(
            copy.deepcopy(dict(request)), Context(id=request_id)
        )
        return stream

    def in_flight(self) -> int:
        return int(self.client.get_num_unfinished_requests()) if self.client is not None else 0

    def dead(self) -> str | None:
        """vLLM's ``errored`` turns true when the core is gone, and when we shut it down ourselves."""
        if self.client is None or self._shutdown_event.is_set() or not self.client.errored:
            return None
        return "vLLM reports EngineDeadError"

    async def tasks(self) -> tuple[str, ...]:
        return tuple(await self.client.get_supported_tasks())


# --- vLLM's HTTP app over Dynamo's engine client
# ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpApp:
    """``app``: vLLM's routes; ``renderer``: vLLM's own, for the probe's prompt."""

    app: Any
    renderer: Any
    max_event_bytes: int
    max_headers: int


async def build_http_app(engine: WorkerEngine, frontend_argv: Sequence[str]) -> HttpApp:
    """vLLM's routes, middleware and exception handlers around Dynamo's engine client.

    Built from the parts of ``vllm.entrypoints.launchers.app.build_app`` without the SageMaker bootstrap,
    whose override of ``/ping`` and ``/invocations`` depends on FastAPI's version.
    """
    args = _http_arguments(engine, frontend_argv)
    tasks: Any = await engine.tasks()
    documented: dict[str, Any] = {"openapi_url": None} if args.disable_fastapi_docs else {}
    app = FastAPI(**documented)
    app.state.args = args
    app.root_path = args.root_path or ""
    register_api_routers(args, app, tasks, engine.client.model_config)
    attach_endpoint_plugins(app, tasks)
    init_exception_handler(app)
    init_entrypoints_middleware(args, app, tasks)
    await init_app_state(engine.client, app.state, args, tasks)
    return HttpApp(
        app, app.state.online_renderer, args.h11_max_incomplete_event_size, args.h11_max_header_count
    )


def _http_arguments(engine: WorkerEngine, frontend_argv: Sequence[str]) -> Any:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(list(frontend_argv))
    config = engine.config
    for field in dataclasses.fields(config.engine_args):
        setattr(args, field.name, getattr(config.engine_args, field.name))
    args.served_model_name = engine.model_names
    if args.chat_template is None:
        args.chat_template = config.custom_jinja_template
    return args


# --- what the scheduler does ---

_ENDED_WELL = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION})


class ProgressLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not typed
    """vLLM's ``vllm.stat_logger_plugins`` entry point, loaded where the engine client is.

    Hands over the tokens of each step (``--enable-logging-iteration-details``) and the requests that
    ended.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config, engine_index
        PROGRESS.attached = True

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        del mm_cache_stats, engine_idx
        details = scheduler_stats.iteration_details if scheduler_stats is not None else None
        if details is not None and not details.is_dummy:
            tokens = (
                details.num_ctx_tokens + details.num_generation_tokens + details.num_encoder_output_tokens
            )
            PROGRESS.step(tokens, details.elapsed_ms / 1000.0)
        if iteration_stats is not None and iteration_stats.finished_requests:
            PROGRESS.finished(
                (request.request_id or "", request.finish_reason in _ENDED_WELL)
                for request in iteration_stats.finished_requests
            )

    def log_engine_initialized(self) -> None:
        """Nothing to log."""

"""The engine's arguments: parsed by Dynamo's and vLLM's own parsers, split between engine and HTTP server."""

import asyncio
import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from dynamo._core import get_reasoning_parser_names, get_tool_parser_names
from dynamo.common.config_dump import dump_config
from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup
from dynamo.common.model_fetch import fetch_model, needs_local_model_path
from dynamo.vllm import main as dynamo_main
from dynamo.vllm.args import Config, configure_rl_logprobs_mode, parse_args_with_model_fetch
from dynamo.vllm.backend_args import DynamoVllmArgGroup
from dynamo.vllm.constants import DisaggregationMode
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.pooling.protocol import PoolingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllmendpoint_api import ModelType
from vllmendpoint_worker.errors import EngineStartError
from vllmendpoint_worker.model_data.hub import download_snapshot
from vllmendpoint_worker.model_data.worker_set import worker_set
from vllmendpoint_worker.options import arguments
from vllmendpoint_worker.options.shared_options import ParserNames
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.payload.model_type import RUNNER_GENERATE, RUNNER_POOLING

__all__ = [
    "EMBEDDING_FIELDS",
    "Arguments",
    "ModelInspection",
    "config_arguments",
    "option_names",
    "parse_arguments",
    "parsers",
    "prepare_engine",
    "request_fields",
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

CLASSIFICATION_FIELDS: Final = frozenset(
    {
        "input",
        "model",
        "use_activation",
        "truncate_prompt_tokens",
        "truncation_side",
        "add_special_tokens",
        "priority",
        "cache_salt",
        "mm_processor_kwargs",
        "user",
    }
)
"""What Dynamo's classify handler reads."""

POOLING_FIELDS: Final = CLASSIFICATION_FIELDS | {"task", "encoding_format", "embed_dtype", "endianness"}


def request_fields() -> RequestFields:
    """Names that vLLM's own request models know."""
    return RequestFields(
        completion=_names(CompletionRequest),
        chat=_names(ChatCompletionRequest),
        embedding=_names(EmbeddingCompletionRequest) & EMBEDDING_FIELDS,
        classification=_names(ClassificationCompletionRequest) & CLASSIFICATION_FIELDS,
        pooling=_names(PoolingCompletionRequest) & POOLING_FIELDS,
        rerank=_names(RerankRequest),
        score=frozenset().union(*(_names(request) for request in get_args(ScoreRequest))),
    )


def _names(model: Any) -> frozenset[str]:
    fields: Mapping[str, Any] = model.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    return frozenset(fields) | aliases


def config_arguments(config: Mapping[str, Any]) -> list[str]:
    """The config file as arguments, the way vLLM's own ``--config`` turns it into them."""
    return arguments.config_to_arguments(config, _flags(make_arg_parser))


@dataclass(frozen=True, slots=True)
class Arguments:
    """``dynamo``: the parsed worker configuration; ``frontend``: the arguments of vLLM's HTTP server;
    ``given``: what both were parsed from; ``more``: what the server gets besides.
    """

    dynamo: Any
    frontend: list[str]
    given: Sequence[str]
    more: Sequence[str] = ()


def parsers() -> tuple[ParserNames, ParserNames]:
    """vLLM's parsers of tool calls and reasoning, and Dynamo's."""
    return (
        ParserNames(
            frozenset(ToolParserManager.list_registered()),
            frozenset(ReasoningParserManager.list_registered()),
        ),
        ParserNames(frozenset(get_tool_parser_names()), frozenset(get_reasoning_parser_names())),
    )


async def parse_arguments(
    argv: Sequence[str], model_type: ModelType | None, more: Sequence[str] = ()
) -> Arguments:
    """Split off vLLM's frontend flags, which Dynamo's parser refuses, and parse the rest. ``more``: what
    vLLM's HTTP server gets besides.

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
    return Arguments(config, [*frontend, *more], tuple(argv), tuple(more))


def split_frontend(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The engine's arguments and the HTTP server's; a flag that both know (a few are) goes to both."""
    frontend = _flags(FrontendArgs.add_cli_args)
    engine = frozenset(_engine_names())
    return arguments.split_by_server(argv, engine, frontend)


def option_names() -> dict[str, str]:
    """Every option of engine and HTTP server, ``-tp`` and ``--no-...`` too -> the parser's name for it."""
    return _names_of(FrontendArgs.add_cli_args) | _engine_names()


def _engine_names() -> dict[str, str]:
    return (
        _names_of(DynamoRuntimeArgGroup().add_arguments)
        | _names_of(DynamoVllmArgGroup().add_arguments)
        | _names_of(lambda parser: AsyncEngineArgs.add_cli_args(parser, async_args_only=False))
    )


def _names_of(add_arguments: Callable[[Any], Any]) -> dict[str, str]:
    parser = FlexibleArgumentParser(add_help=False)
    add_arguments(parser)
    return {option: action.dest for option, action in parser._option_string_actions.items()}


def _flags(add_arguments: Callable[[Any], Any]) -> frozenset[str]:
    return frozenset(_names_of(add_arguments))


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


@dataclass(frozen=True, slots=True)
class ModelInspection:
    """What vLLM tells of a model before it loads it. ``runner``: ``generate`` or ``pooling``."""

    runner: str
    only_transcribes: bool = False


async def prepare_engine(
    parsed: Arguments, downloaded: Callable[[], None], looked: Callable[[ModelInspection], None]
) -> Arguments:
    """What ``dynamo.vllm.main.worker`` does between parsing and the runtime: names, model download.

    ``downloaded`` is called once the model is on this machine: vLLM's look at it takes ten seconds, and what
    fails in it is no download. ``looked`` is called with what vLLM tells, and may raise. Returns the
    arguments to go on with: a model that vLLM pools is given Dynamo's embedding worker, which upstream wants
    to be told of (``--embedding-worker``). Raises EngineStartError.
    """
    folder = await _fetch(parsed.dynamo)
    downloaded()
    look = await asyncio.to_thread(_look, parsed.dynamo.engine_args)
    if look is not None:
        looked(look)
    if not parsed.dynamo.embedding_worker and look is not None and look.runner == RUNNER_POOLING:
        logger.info("vLLM pools this model: it is served by one of Dynamo's pooling workers")
        parsed = await parse_arguments(parsed.given, ModelType.EMBEDDING, parsed.more)
        folder = await _fetch(parsed.dynamo)
    await _join_worker_set(parsed, folder)
    return parsed


async def _join_worker_set(parsed: Arguments, folder: str) -> None:
    """Below the revision's Dynamo namespace, which the operator has set, one for workers with equal cards."""
    if not os.environ.get("DYN_NAMESPACE_WORKER_SUFFIX"):
        return
    config = parsed.dynamo
    templates = [Path(config.custom_jinja_template)] if config.custom_jinja_template else []
    suffix = await asyncio.to_thread(worker_set, Path(folder), parsed.given, *templates)
    config.namespace = f"{config.namespace}-{suffix}"
    logger.info("The worker's Dynamo namespace is %s", config.namespace)


def _look(engine_args: AsyncEngineArgs) -> ModelInspection | None:
    """vLLM's own choice of runner, told from the model's configuration."""
    try:
        config = engine_args.create_model_config()
        transcribes = config.registry.is_transcription_only_model(config.architectures, config)
        return ModelInspection(config.runner_type, config.runner_type == RUNNER_GENERATE and transcribes)
    except Exception as error:  # noqa: BLE001  (of whatever kind: it is the engine's start that fails of it)
        logger.info("vLLM tells no runner before the engine's start (%s)", type(error).__name__)
        return None


async def _fetch(config: Config) -> str:
    """The folder of the model on this machine."""
    dump_config(config.dump_config_to, config)
    if not config.served_model_name:
        config.served_model_name = config.engine_args.served_model_name = config.model
    configure_rl_logprobs_mode(config)
    if needs_local_model_path(config.model):
        config.engine_args.model = await fetch_model(config.model)
        return str(config.engine_args.model)
    if dynamo_main.should_prefetch_model(config):
        if (revision := config.engine_args.revision) is None:
            return str(await fetch_model(config.model))
        # The folder, and not the name: the frontend's tokenizer comes from what is registered.
        config.model = await asyncio.to_thread(download_snapshot, config.model, revision)
        config.engine_args.model = config.model
    return str(config.model)

"""Parses the engine's arguments with Dynamo's and vLLM's parsers, and prepares the model.

The arguments are split between the engine and the HTTP server.
"""

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
from dynamo.common.configuration.groups.router_args import add_worker_router_arguments
from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup
from dynamo.common.model_fetch import fetch_model, needs_local_model_path
from dynamo.vllm import main as dynamo_main
from dynamo.vllm.args import (
    Config,
    _uses_nixl_connector,
    configure_rl_logprobs_mode,
    parse_args_with_model_fetch,
)
from dynamo.vllm.backend_args import DynamoVllmArgGroup
from dynamo.vllm.constants import DisaggregationMode
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.pooling.protocol import PoolingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.platforms import current_platform
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

from ._phases import runs_one_phase

__all__ = [
    "EMBEDDING_FIELDS",
    "Arguments",
    "ModelInspection",
    "SideChannel",
    "config_arguments",
    "option_names",
    "parse_arguments",
    "parsers",
    "prepare_engine",
    "request_fields",
    "runs_on_cpu",
    "side_channel",
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
"""Fields that Dynamo's embedding handler reads. It ignores other fields of vLLM without an error."""

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
"""Fields that Dynamo's classify handler reads."""

POOLING_FIELDS: Final = CLASSIFICATION_FIELDS | {"task", "encoding_format", "embed_dtype", "endianness"}


def request_fields() -> RequestFields:
    """Names of the fields of vLLM's request models, by form of the request."""
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
    """The config file as arguments, converted as vLLM's ``--config`` does."""
    return arguments.config_to_arguments(config, _flags(make_arg_parser))


@dataclass(frozen=True, slots=True)
class Arguments:
    """Parsed arguments.

    ``dynamo``: the configuration of Dynamo's worker; ``frontend``: the arguments of vLLM's HTTP server;
    ``argv``: the arguments that both were parsed from; ``extra_frontend``: additional arguments of the
    server.
    """

    dynamo: Any
    frontend: list[str]
    argv: Sequence[str]
    extra_frontend: Sequence[str] = ()


def parsers() -> tuple[ParserNames, ParserNames]:
    """Names of vLLM's parsers of tool calls and reasoning, and of Dynamo's."""
    return (
        ParserNames(
            frozenset(ToolParserManager.list_registered()),
            frozenset(ReasoningParserManager.list_registered()),
        ),
        ParserNames(frozenset(get_tool_parser_names()), frozenset(get_reasoning_parser_names())),
    )


async def parse_arguments(
    argv: Sequence[str], model_type: ModelType | None, extra_frontend: Sequence[str] = ()
) -> Arguments:
    """Remove vLLM's frontend flags, which Dynamo's parser rejects, and parse the rest.

    ``extra_frontend``: additional arguments of vLLM's HTTP server. Raises EngineStartError with the parser's
    message.
    """
    engine_argv, frontend = split_frontend(argv)
    if model_type is ModelType.EMBEDDING and "--embedding-worker" not in engine_argv:
        engine_argv.append("--embedding-worker")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config = await parse_args_with_model_fetch(engine_argv)
    except SystemExit as exit_:
        lines = [line for line in errors.getvalue().splitlines() if line.strip()]
        message = lines[-1].partition("error: ")[2] or lines[-1] if lines else f"exit {exit_.code}"
        raise EngineStartError(message[:512]) from None
    except (ValueError, TypeError, FileNotFoundError, NotImplementedError, RuntimeError) as error:
        raise EngineStartError(
            str(error).splitlines()[0][:512] if str(error) else type(error).__name__
        ) from error
    _refuse_unsupported(config)
    # The verdict needs the scheduled tokens, which vLLM counts only with this option.
    config.engine_args.enable_logging_iteration_details = True
    return Arguments(config, [*frontend, *extra_frontend], tuple(argv), tuple(extra_frontend))


def split_frontend(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The engine's arguments and the HTTP server's. A flag that both have is passed to both."""
    frontend = _flags(FrontendArgs.add_cli_args)
    engine = frozenset(_engine_names())
    return arguments.split_by_server(argv, engine, frontend)


def option_names() -> dict[str, str]:
    """The parser's name for every option of engine and HTTP server, including ``-tp`` and ``--no-...``."""
    return _names_of(FrontendArgs.add_cli_args) | _engine_names()


def _engine_names() -> dict[str, str]:
    return (
        _names_of(add_worker_router_arguments)
        | _names_of(DynamoRuntimeArgGroup().add_arguments)
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
        "--disaggregation-mode encode": config.disaggregation_mode == DisaggregationMode.ENCODE,
        "--embedding-worker-processes": config.embedding_worker_processes > 1,
        "DYN_SNAPSHOT_CONTROL_DIR": bool(os.environ.get("DYN_SNAPSHOT_CONTROL_DIR")),
    }
    for name, used in unsupported.items():
        if used:
            raise EngineStartError(f"{name} is not supported by this worker yet")


@dataclass(frozen=True, slots=True)
class ModelInspection:
    """vLLM's inspection of a model's configuration. ``runner``: ``generate`` or ``pooling``."""

    runner: str
    only_transcribes: bool = False


async def prepare_engine(
    parsed: Arguments, on_downloaded: Callable[[], None], on_inspected: Callable[[ModelInspection], None]
) -> Arguments:
    """The steps of ``dynamo.vllm.main.worker`` between parsing and the runtime: names and model download.

    ``on_downloaded`` is called when the model is on this machine, before vLLM inspects it, which takes ten
    seconds. ``on_inspected`` is called with the result, unless vLLM has none, and may raise. Returns the
    arguments to continue with: a model that vLLM pools needs Dynamo's ``--embedding-worker``. Raises
    EngineStartError.
    """
    folder = await _fetch(parsed.dynamo)
    on_downloaded()
    inspection = await asyncio.to_thread(_inspect_model, parsed.dynamo.engine_args)
    if inspection is not None:
        on_inspected(inspection)
    pools = inspection is not None and inspection.runner == RUNNER_POOLING
    if pools and not parsed.dynamo.embedding_worker:
        logger.info("vLLM pools this model, so a pooling worker of Dynamo serves it")
        parsed = await parse_arguments(parsed.argv, ModelType.EMBEDDING, parsed.extra_frontend)
        folder = await _fetch(parsed.dynamo)
    await _join_worker_set(parsed, folder)
    return parsed


def runs_on_cpu() -> bool:
    """Whether vLLM runs the model on the CPU."""
    return bool(current_platform.is_cpu())


@dataclass(frozen=True, slots=True)
class SideChannel:
    """The addresses at which NIXL offers the KV cache of this worker. ``ports``: one for each rank."""

    host: str
    ports: Sequence[int]


def side_channel(parsed: Arguments) -> SideChannel | None:
    """None if the engine does not use NIXL. Dynamo's parser has set the host if the user has not."""
    engine_args = parsed.dynamo.engine_args
    config = engine_args.kv_transfer_config
    if config is None or not (config.has_connector("NixlConnector") or _uses_nixl_connector(engine_args)):
        return None
    first = envs.VLLM_NIXL_SIDE_CHANNEL_PORT
    return SideChannel(envs.VLLM_NIXL_SIDE_CHANNEL_HOST, range(first, first + engine_args.data_parallel_size))


async def _join_worker_set(parsed: Arguments, folder: str) -> None:
    """Extend the revision's Dynamo namespace, so that only workers with an equal model card share it. The
    operator turns this on.

    Prefill and decode workers of one revision must share it, too, and their arguments differ. So their
    namespace depends only on the files of the model card.
    """
    if not os.environ.get("DYN_NAMESPACE_WORKER_SUFFIX"):
        return
    config = parsed.dynamo
    templates = [Path(config.custom_jinja_template)] if config.custom_jinja_template else []
    argv = () if runs_one_phase(config) else parsed.argv
    suffix = await asyncio.to_thread(worker_set, Path(folder), argv, *templates)
    config.namespace = f"{config.namespace}-{suffix}"
    logger.info("Joined a worker set: dynamo_namespace=%s", config.namespace)


def _inspect_model(engine_args: AsyncEngineArgs) -> ModelInspection | None:
    """The runner that vLLM selects from the model's configuration; None if the configuration is not valid."""
    try:
        config = engine_args.create_model_config()
        transcribes = config.registry.is_transcription_only_model(config.architectures, config)
        return ModelInspection(config.runner_type, config.runner_type == RUNNER_GENERATE and transcribes)
    except Exception as error:  # noqa: BLE001  (the engine reports this error when it starts)
        logger.info("vLLM cannot inspect the model before the engine starts: error=%s", type(error).__name__)
        return None


async def _fetch(config: Config) -> str:
    """Download the model if needed. Returns its folder on this machine."""
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
        # The folder instead of the name, because the frontend loads the tokenizer of the registered model.
        config.model = await asyncio.to_thread(download_snapshot, config.model, revision)
        config.engine_args.model = config.model
    return str(config.model)

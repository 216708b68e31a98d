"""Composes Dynamo's worker and vLLM's HTTP server, and is the only importer of ``dynamo.*`` and vLLM's parts.

Imports ``payload``, ``probing``, ``options``, ``model_data`` and ``serving``; its own import takes 10-25 s,
so it is imported late. Most names are not public in Dynamo and vLLM. Their versions are pinned, and
``tests/worker/test_upstream_contract.py`` checks every name and signature, so an incompatible upgrade fails
there. See docs/decisions/0026-composition-of-dynamo-and-vllm.md.
"""

from vllm.entrypoints.launchers.launcher import NoSignalServer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.pooling.protocol import PoolingCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.sampling_params import SamplingParams

from ._arguments import (
    Arguments,
    ModelInspection,
    SideChannel,
    config_arguments,
    option_names,
    parse_arguments,
    parsers,
    prepare_engine,
    request_fields,
    runs_on_cpu,
    side_channel,
    split_frontend,
)
from ._dynamo_worker import HEALTH_CHECK_KEY, HealthSource, Hooks, Shutdown, grace_seconds, serve
from ._engine import WorkerEngine
from ._http import HttpApp, build_http_app
from ._progress import ProgressLogger
from ._rejections import rejection_in_response, rejection_of
from ._scores import score_request

__all__ = [
    "HEALTH_CHECK_KEY",
    "Arguments",
    "ChatCompletionRequest",
    "ClassificationCompletionRequest",
    "CompletionRequest",
    "EmbeddingCompletionRequest",
    "HealthSource",
    "Hooks",
    "HttpApp",
    "ModelInspection",
    "NoSignalServer",
    "PoolingCompletionRequest",
    "ProgressLogger",
    "SamplingParams",
    "Shutdown",
    "SideChannel",
    "WorkerEngine",
    "build_http_app",
    "config_arguments",
    "get_max_tokens",
    "grace_seconds",
    "option_names",
    "parse_arguments",
    "parsers",
    "prepare_engine",
    "rejection_in_response",
    "rejection_of",
    "request_fields",
    "runs_on_cpu",
    "score_request",
    "serve",
    "side_channel",
    "split_frontend",
]

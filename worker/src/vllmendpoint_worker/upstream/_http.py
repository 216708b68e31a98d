"""Builds vLLM's own HTTP application over Dynamo's engine client."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_asgi_app
from starlette.routing import Mount
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.routers import register_api_routers
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllmendpoint_worker.serving.health_route import guarded

from ._engine import WorkerEngine

__all__ = ["HEALTH_PATHS", "HttpApp", "build_http_app", "guard_health"]

HEALTH_PATHS: Final = ("/health", "/ping")
"""vLLM's health checks. Other routes (``/load``, ``/version``, ``/v1/models``) only return information."""


@dataclass(frozen=True, slots=True)
class HttpApp:
    """vLLM's HTTP application.

    ``renderer``: vLLM's own, for the probe's prompt; ``loads_adapters``: whether LoRA adapters can be loaded
    at run time.
    """

    app: Any
    renderer: Any
    max_event_bytes: int
    loads_adapters: bool


async def build_http_app(
    engine: WorkerEngine,
    frontend_argv: Sequence[str],
    metrics: CollectorRegistry,
    is_healthy: Callable[[], bool],
) -> HttpApp:
    """vLLM's routes, middleware and exception handlers around Dynamo's engine client.

    ``/metrics`` also serves ``metrics``, and vLLM's health checks answer 503 while ``is_healthy`` returns
    false. Built from the functions that ``vllm.entrypoints.launchers.app.build_app`` calls, without the
    SageMaker bootstrap, whose override of ``/ping`` and ``/invocations`` depends on FastAPI's version.
    """
    args = _http_arguments(engine, frontend_argv)
    tasks: Any = await engine.tasks()
    documented: dict[str, Any] = {"openapi_url": None} if args.disable_fastapi_docs else {}
    app = FastAPI(**documented)
    app.state.args = args
    app.root_path = args.root_path or ""
    # The process's own registry. vLLM's get_prometheus_registry() would read files, because Dynamo sets
    # PROMETHEUS_MULTIPROC_DIR, but only after the import of prometheus_client, so the files are not written.
    route = Mount("/metrics", make_asgi_app(_CombinedRegistry(REGISTRY, metrics)))
    route.path_regex = re.compile("^/metrics(?P<path>.*)$")  # as vLLM does: no redirect to /metrics/
    app.router.routes.append(route)  # before vLLM's routes: the first match answers
    register_api_routers(args, app, tasks, engine.client.model_config)
    attach_endpoint_plugins(app, tasks)
    guard_health(app, is_healthy)
    init_exception_handler(app)
    init_entrypoints_middleware(args, app, tasks)
    await init_app_state(engine.http_client, app.state, args, tasks)
    engine.set_scores(getattr(app.state, "serving_scores", None))
    loads_adapters = bool(args.enable_lora and envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)
    return HttpApp(app, app.state.online_renderer, args.h11_max_incomplete_event_size, loads_adapters)


def guard_health(app: FastAPI, is_healthy: Callable[[], bool]) -> None:
    """Replace vLLM's health checks by guarded ones."""
    routes = app.router.routes
    for index, route in enumerate(routes):
        if isinstance(route, APIRoute) and route.path in HEALTH_PATHS:
            routes[index] = guarded(route, is_healthy)


class _CombinedRegistry(CollectorRegistry):
    """Several registries, read as one."""

    def __init__(self, *registries: Any) -> None:
        super().__init__()
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        for registry in self._registries:
            yield from registry.collect()

    def restricted_registry(self, names: Iterable[str]) -> Any:
        return _CombinedRegistry(*(registry.restricted_registry(names) for registry in self._registries))


def _http_arguments(engine: WorkerEngine, frontend_argv: Sequence[str]) -> Any:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(list(frontend_argv))
    config = engine.config
    reasoning = args.reasoning_parser
    for field in dataclasses.fields(config.engine_args):
        setattr(args, field.name, getattr(config.engine_args, field.name))
    args.served_model_name = engine.model_names
    if reasoning:  # only the HTTP server has this option
        args.structured_outputs_config = dataclasses.replace(
            args.structured_outputs_config, reasoning_parser=reasoning
        )
    if args.chat_template is None:
        args.chat_template = config.custom_jinja_template
    return args

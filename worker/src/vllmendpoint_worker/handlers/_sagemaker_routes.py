"""vLLM's SageMaker routes, as SageMaker's package documents them.

``/invocations`` honors the ``model`` of the body, and ``/adapters`` serves SageMaker's adapter components.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from vllmendpoint_worker.config.handler_config import Route

from .loading._standards import default_handler
from .loading._standards_registry import (
    ADAPTER_HEADER,
    ADAPTER_TYPES,
    adapter_route,
    registered_default,
    with_sessions,
)

__all__ = ["LOADING_DISABLED", "adapter_routes", "install_sagemaker_routes"]

LOADING_DISABLED: Final = (
    "Loading and unloading of LoRA adapters at run time is turned off: add --enable-lora to the engine's "
    "arguments and set VLLM_ALLOW_RUNTIME_LORA_UPDATING=true in the worker's environment, which opens "
    "/adapters and /v1/load_lora_adapter to everybody who reaches this port."
)


def install_sagemaker_routes(app: FastAPI, *, loading: bool) -> None:
    """Correct vLLM's ``/invocations`` and add ``/adapters``.

    Unless ``loading`` of adapters is turned on, ``/adapters`` answers 404 with the reason.
    """
    routes = app.router.routes
    index, route = next(
        (index, route)
        for index, route in enumerate(routes)
        if isinstance(route, APIRoute) and route.endpoint is default_handler(Route.INVOCATIONS)
    )
    routes[index] = APIRoute(
        route.path,
        with_sessions(_dispatch_by_model()),
        methods=route.methods,
        dependencies=route.dependencies,
        responses=route.responses,
        name=route.name,
    )
    defaults = {type_: registered_default(type_) for type_ in ADAPTER_TYPES} if loading else {}
    routes += adapter_routes({type_: defaults.get(type_) or _loading_disabled for type_ in ADAPTER_TYPES})


def adapter_routes(handlers: Mapping[str, Callable[..., Any]]) -> list[APIRoute]:
    """One route for each handler of adapters in ``handlers``, which has MHCS's handler types as keys."""
    routes = []
    for type_ in ADAPTER_TYPES:
        if type_ in handlers:
            path, method = adapter_route(type_)
            routes.append(APIRoute(path, handlers[type_], methods=[method], response_model=None))
    return routes


def _dispatch_by_model() -> Callable[..., Any]:
    """vLLM's dispatch by the form of the body, which keeps the body's ``model``.

    vLLM wraps the dispatch in ``@inject_adapter_id("model")``, which replaces ``model`` by the adapter of the
    header, or by null if the header is missing. Without the header, the wrapped function is called directly.
    """
    injecting = registered_default("inject_adapter_id")
    dispatch = inspect.getclosurevars(injecting).nonlocals["func"]

    async def invocations(raw_request: Request) -> Any:
        return await (injecting if raw_request.headers.get(ADAPTER_HEADER) else dispatch)(raw_request)

    return invocations


async def _loading_disabled(raw_request: Request) -> Response:
    del raw_request
    error = {"message": LOADING_DISABLED, "type": "NotFoundError", "param": None, "code": 404}
    return JSONResponse({"error": error}, status_code=404)

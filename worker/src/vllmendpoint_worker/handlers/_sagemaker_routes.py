"""vLLM's own SageMaker routes, as the standards package documents them: the model of ``/invocations``, and
``/adapters`` for SageMaker's adapter components.
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

__all__ = ["LOADING_CLOSED", "adapter_routes", "install_sagemaker_routes"]

LOADING_CLOSED: Final = (
    "Loading and unloading of LoRA adapters at run time is turned off: add --enable-lora to the engine's "
    "arguments and set VLLM_ALLOW_RUNTIME_LORA_UPDATING=true in the worker's environment, which opens "
    "/adapters and /v1/load_lora_adapter to everybody who reaches this port."
)


def install_sagemaker_routes(app: FastAPI, *, loading: bool) -> None:
    """Correct vLLM's ``/invocations`` and add ``/adapters``, which answers 404 with the reason unless
    ``loading`` of adapters is turned on.
    """
    routes = app.router.routes
    at, route = next(
        (at, route)
        for at, route in enumerate(routes)
        if isinstance(route, APIRoute) and route.endpoint is default_handler(Route.INVOCATIONS)
    )
    routes[at] = APIRoute(
        route.path,
        with_sessions(_by_model()),
        methods=route.methods,
        dependencies=route.dependencies,
        responses=route.responses,
        name=route.name,
    )
    defaults = {type_: registered_default(type_) for type_ in ADAPTER_TYPES} if loading else {}
    routes += adapter_routes({type_: defaults.get(type_) or _closed for type_ in ADAPTER_TYPES})


def adapter_routes(handlers: Mapping[str, Callable[..., Any]]) -> list[APIRoute]:
    """One route for each handler of adapters among ``handlers``."""
    routes = []
    for type_ in ADAPTER_TYPES:
        if type_ in handlers:
            path, method = adapter_route(type_)
            routes.append(APIRoute(path, handlers[type_], methods=[method], response_model=None))
    return routes


def _by_model() -> Callable[..., Any]:
    """vLLM's dispatch by the form of the body, with the body's ``model``.

    vLLM wraps it in ``@inject_adapter_id("model")``, which replaces ``model`` by the header's adapter, and by
    null where there is no such header. Without the header, the function inside is called as it is.
    """
    injecting = registered_default("inject_adapter_id")
    dispatch = inspect.getclosurevars(injecting).nonlocals["func"]

    async def invocations(raw_request: Request) -> Any:
        return await (injecting if raw_request.headers.get(ADAPTER_HEADER) else dispatch)(raw_request)

    return invocations


async def _closed(raw_request: Request) -> Response:
    del raw_request
    error = {"message": LOADING_CLOSED, "type": "NotFoundError", "param": None, "code": 404}
    return JSONResponse({"error": error}, status_code=404)

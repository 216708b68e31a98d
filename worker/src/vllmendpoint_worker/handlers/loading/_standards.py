"""``model_hosting_container_standards`` (MHCS), SageMaker's own package: only this module and
``_standards_registry`` import it.

Its resolver decides between environment, decorator and function name; what it gets wrong for a server that
swaps handlers is corrected from outside: its registries are process-global, so they are emptied before a load
and put back where the load fails; importing it sets the root logger's level, so levels are put back too.
The names used are held by ``tests/unit/worker/handlers/test_handlers_contract.py``.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from vllmendpoint_api import HandlerSource
from vllmendpoint_worker.config.handler_config import ENV_SCRIPT, HandlerConfig, HandlerReference, Route
from vllmendpoint_worker.config.handler_path import HandlerPath, PathKind
from vllmendpoint_worker.errors import WorkerError
from vllmendpoint_worker.handlers._error_boundary import reported

from ._modules import PREFIX, Source, imported, names_of
from ._process_state import logging_kept
from ._signature import UnfitHandlerError, accepts
from ._standards_registry import in_force

with logging_kept():
    from model_hosting_container_standards.common.custom_code_ref_resolver.file_loader import FileLoader
    from model_hosting_container_standards.common.custom_code_ref_resolver.function_loader import (
        FunctionLoader,
    )
    from model_hosting_container_standards.common.fastapi.middleware.core import create_middleware_object
    from model_hosting_container_standards.common.fastapi.middleware.registry import middleware_registry
    from model_hosting_container_standards.common.fastapi.middleware.source.base import BaseMiddlewareLoader
    from model_hosting_container_standards.common.fastapi.middleware.source.decorator_loader import (
        decorator_loader,
    )
    from model_hosting_container_standards.common.handler.registry import handler_registry
    from model_hosting_container_standards.common.handler.resolver import (
        GenericHandlerResolver,
    )
    from model_hosting_container_standards.common.handler.resolver import (
        HandlerConfig as StandardHandlerConfig,
    )
    from model_hosting_container_standards.exceptions import (
        HandlerFileNotFoundError,
        HandlerNotCallableError,
        HandlerNotFoundError,
        MiddlewareError,
        ModuleLoadError,
    )
    from model_hosting_container_standards.sagemaker.handler_resolver import SageMakerHandlerConfig
    from model_hosting_container_standards.sagemaker.sagemaker_loader import SageMakerFunctionLoader

__all__ = [
    "MIDDLEWARES",
    "HandlerFileNotFoundError",
    "HandlerNotCallableError",
    "HandlerNotFoundError",
    "LoadFailedError",
    "MiddlewareError",
    "ModuleLoadError",
    "Resolution",
    "Scripts",
    "create_middleware_object",
    "default_handler",
    "emptied_registries",
    "resolve",
]

MIDDLEWARES: Final = ("throttle", "pre_post_process")
"""MHCS's two, the first outermost: throttle, vLLM's own, pre and post processing."""

_TYPES: Final = {Route.PING: "ping", Route.INVOCATIONS: "invoke"}
"""MHCS's names of the two handlers."""

FUNCTION_NAMES: Final = {
    route: SageMakerHandlerConfig.HANDLER_TYPE_TO_FUNCTION_NAME[type_] for route, type_ in _TYPES.items()
}

MOVED: Final = {
    ("vllm.entrypoints.openai.api_server", "health"): (
        "vllm.entrypoints.serve.instrumentator.health",
        "health",
    ),
}
"""What the guide names and vLLM has moved since."""


def default_handler(route: Route) -> Any:
    """vLLM's own handler of a route, None where vLLM's app has not been built."""
    return handler_registry.get_framework_default(_TYPES[route])


@contextmanager
def emptied_registries() -> Iterator[None]:
    """MHCS's global registries are empty inside, and as they were afterwards."""
    held: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (store, dict(store))
        for store in (
            handler_registry._decorator_handlers,
            middleware_registry._middlewares,
            decorator_loader.__dict__,
        )
    ]
    loader = SageMakerFunctionLoader._default_function_loader
    handler_registry._decorator_handlers.clear()
    middleware_registry.clear_middlewares()
    decorator_loader.clear()
    try:
        with in_force({}):
            yield
    finally:
        SageMakerFunctionLoader._default_function_loader = loader
        for store, content in held:
            store.clear()
            store.update(content)


class _Files(FileLoader):  # type: ignore[misc]  # MHCS is not typed
    """Registers what it loads in ``sys.modules``, as dataclasses with postponed annotations need it."""

    def __init__(self, wanted: HandlerConfig, generation: int) -> None:
        super().__init__([str(wanted.folder)])
        self._wanted = wanted
        self._generation = generation
        self._before: frozenset[str] = frozenset()
        """The modules that were there when the first file was loaded."""
        self.loaded: dict[str, ModuleType] = {}

    def _find_file(self, filename: str) -> Path | None:
        script = self._wanted.script
        path = Path(filename) if Path(filename).is_absolute() else self._wanted.folder / filename
        if script is not None and path in (script.path, self._wanted.script_path):
            return script.path
        return path if path.is_file() else None

    def _load_regular_module(self, file_path: Path) -> ModuleType:
        script = self._wanted.script
        mine = script is not None and file_path == script.path
        self._before = self._before or frozenset(sys.modules)
        if not mine and (found := imported(file_path, self._before)) is not None:
            return found
        content = script.content if mine and script is not None else file_path.read_bytes()
        name = f"{PREFIX}{self._generation}_{len(self.loaded)}_{file_path.stem}"
        spec = importlib.util.spec_from_loader(name, Source(name, str(file_path), content))
        if spec is None or spec.loader is None:
            raise ModuleLoadError(str(file_path), "no module can be made of it")
        module = importlib.util.module_from_spec(spec)
        names = names_of(file_path, self._wanted.script_path if mine else None)
        sys.modules.update(dict.fromkeys([name, *names], module))
        self.loaded[name] = module
        spec.loader.exec_module(module)
        return module


class Scripts(FunctionLoader):  # type: ignore[misc]  # MHCS is not typed
    """Loads functions by their path; the script is the module ``model``."""

    def __init__(self, wanted: HandlerConfig, generation: int) -> None:
        script = wanted.script.path if wanted.script is not None else wanted.script_path
        super().__init__([str(wanted.folder)], {"model": str(script)})
        self.file_loader = _Files(wanted, generation)

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        """What was loaded from files, by the names in ``sys.modules``."""
        loaded: dict[str, ModuleType] = self.file_loader.loaded
        return loaded

    def function(self, choice: HandlerReference) -> Callable[..., Any]:
        """Raises LoadFailedError."""
        with _failing(choice.source, choice.field):
            return self._function(choice.path)

    def _function(self, path: HandlerPath) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = self.load_function(path.text)
        except HandlerNotFoundError:
            moved = MOVED.get((path.where, path.attribute)) if path.kind is PathKind.MODULE else None
            if moved is None:
                raise
            found = self.load_function(":".join(moved))
        return found


class LoadFailedError(WorkerError):
    """What was named at ``field`` cannot be loaded; ``__cause__`` is what was raised."""

    def __init__(self, source: HandlerSource, field_: str) -> None:
        self.source = source
        self.field = field_
        super().__init__(field_)


@contextmanager
def _failing(source: HandlerSource, field_: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # sys.exit() in a script must not end its thread unseen
        raise LoadFailedError(source, field_) from error


@dataclass(slots=True)
class Resolution:
    """What MHCS's resolver chose, and from where."""

    handlers: dict[Route, tuple[HandlerSource, Callable[..., Any]]] = field(default_factory=dict)
    middleware: dict[str, Any] = field(default_factory=dict)
    """Name to MHCS's ``MiddlewareInfo``."""
    registered: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Handlers of sessions and adapters that the script has registered, by MHCS's names."""
    considered: dict[Route, list[str]] = field(default_factory=dict)
    """For the log at DEBUG: one line a level that was looked at."""


class _Config(StandardHandlerConfig):  # type: ignore[misc]  # MHCS is not typed
    """CR above environment, in the place that MHCS gives to the environment."""

    def __init__(self, wanted: HandlerConfig, scripts: Scripts, decorated: Mapping[str, Any]) -> None:
        self._wanted = wanted
        self._scripts = scripts
        self._decorated = decorated
        self.chosen: dict[Route, HandlerReference] = {}

    def get_env_handler(self, handler_type: str) -> Callable[..., Any] | None:
        route = _route(handler_type)
        choice = self._wanted.references.get(route)
        if choice is None:
            return None
        found = self._scripts.function(choice)
        # Only the script's decorators count: the guide's "only loads and scans this file".
        handler_registry._decorator_handlers.clear()
        handler_registry._decorator_handlers.update(self._decorated)
        self.chosen[route] = choice
        return found

    def get_customer_script_handler(self, handler_type: str) -> Callable[..., Any] | None:
        script = self._wanted.script
        if script is None:
            return None
        name = FUNCTION_NAMES[_route(handler_type)]
        try:
            found: Callable[..., Any] = self._scripts.load_function(f"model:{name}")
        except HandlerNotCallableError as error:
            raise LoadFailedError(script.source, name) from error
        return found


def resolve(wanted: HandlerConfig, scripts: Scripts) -> Resolution:
    """Load and choose, by MHCS's own resolver. Call inside :func:`emptied_registries`.

    Raises LoadFailedError from what MHCS or the customer's code raised, ``SystemExit`` too.
    """
    if (script := wanted.script) is not None:
        named = {HandlerSource.SPEC: "handlers.script", HandlerSource.ENVIRONMENT: ENV_SCRIPT}
        with _failing(script.source, named.get(script.source, "the script")):
            scripts.load_module_from_file(str(script.path))
    decorated = dict(handler_registry._decorator_handlers)
    registered = dict(handler_registry._handlers)
    for choice in wanted.middleware:
        scripts.function(choice)  # MHCS logs a bad one and goes on; here it is an error
    SageMakerFunctionLoader._default_function_loader = scripts
    config = _Config(wanted, scripts, decorated)
    resolver = GenericHandlerResolver(config, handler_registry)
    result = Resolution(registered=registered)
    for route, type_ in _TYPES.items():
        found = resolver.resolve_handler(type_)
        source = HandlerSource.DEFAULT
        if route in config.chosen:
            source = config.chosen[route].source
        elif found is not None:
            source = HandlerSource.DECORATOR if type_ in decorated else HandlerSource.FUNCTION
        if found is not None:
            result.handlers[route] = (source, found)
        result.considered[route] = _considered(wanted, route, source, decorated=type_ in decorated)
    with _reporting():
        middleware_registry.load_middlewares(scripts)
    result.middleware = {
        name: info for name in MIDDLEWARES if (info := middleware_registry.get_middleware(name)) is not None
    }
    for name, info in result.middleware.items():
        if not info.is_class:
            _refuse_other_parameters(
                info.middleware, f"the middleware {name}", "the request and call_next", 2
            )
    return result


@contextmanager
def _reporting() -> Iterator[None]:
    """MHCS answers 500 where pre- or post-processing fails, and leaves no trace: its errors are reported."""
    combine = BaseMiddlewareLoader._create_pre_post_middleware

    def combined(self: Any, before: Any, after: Any, name: str, prefix: str) -> Any:
        for function, subject in ((before, "the request"), (after, "the response")):
            if function is not None:
                _refuse_other_parameters(function, f"the processing of {subject}", subject, 1)
        return combine(self, reported(before), reported(after), name, prefix)

    BaseMiddlewareLoader._create_pre_post_middleware = combined
    try:
        yield
    finally:
        BaseMiddlewareLoader._create_pre_post_middleware = combine


def _refuse_other_parameters(function: Callable[..., Any], what: str, takes: str, count: int) -> None:
    if not accepts(function, count):
        name = getattr(function, "__qualname__", type(function).__qualname__)
        error = UnfitHandlerError(f"({name}) has other parameters", f"take {takes}")
        raise LoadFailedError(HandlerSource.DECORATOR, what) from error


def _considered(wanted: HandlerConfig, route: Route, source: HandlerSource, *, decorated: bool) -> list[str]:
    choice = wanted.references.get(route)
    named = f"{choice.field} names {choice.path.text}" if choice else "neither the spec nor the environment"
    lines = [named, f"decorator in the script: {'found' if decorated else 'none'}"]
    if source in (HandlerSource.FUNCTION, HandlerSource.DEFAULT):
        found = "found" if source is HandlerSource.FUNCTION else "none"
        lines.append(f"function {FUNCTION_NAMES[route]} in the script: {found}")
    return [*lines, f"selected: {source.value}"]


def _route(handler_type: str) -> Route:
    return next(route for route, type_ in _TYPES.items() if type_ == handler_type)

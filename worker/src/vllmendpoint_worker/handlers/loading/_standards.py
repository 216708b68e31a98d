"""Resolves handlers with SageMaker's package ``model_hosting_container_standards`` (MHCS).

Only this module and ``_standards_registry`` import MHCS. Its resolver decides between environment, decorator
and function name. It is not written for handlers that change, so this module corrects it from outside: its
registries are global to the process, so they are emptied before a load and restored afterwards. Its import
sets the root logger's level, which is restored too. The names of MHCS that this module uses are checked by
``tests/unit/worker/handlers/test_handlers_contract.py``.
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

from ._error_reporting import report_errors
from ._modules import MODULE_PREFIX, UncachedSourceLoader, find_imported, import_names
from ._process_state import preserve_logging
from ._signature import UnsupportedSignatureError, accepts
from ._standards_registry import use_registered

with preserve_logging():
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
    "ScriptLoader",
    "create_middleware_object",
    "default_handler",
    "empty_registries",
    "resolve",
]

MIDDLEWARES: Final = ("throttle", "pre_post_process")
"""MHCS's middlewares. The first is outermost, then follow vLLM's own, then pre- and post-processing."""

_TYPES: Final = {Route.PING: "ping", Route.INVOCATIONS: "invoke"}
"""MHCS's names for the two handlers."""

FUNCTION_NAMES: Final = {
    route: SageMakerHandlerConfig.HANDLER_TYPE_TO_FUNCTION_NAME[type_] for route, type_ in _TYPES.items()
}

MOVED_FUNCTIONS: Final = {
    ("vllm.entrypoints.openai.api_server", "health"): (
        "vllm.entrypoints.serve.instrumentator.health",
        "health",
    ),
}
"""Functions that docs/guide/custom-handlers.md names and vLLM has renamed since."""


def default_handler(route: Route) -> Any:
    """vLLM's own handler of a route; None before vLLM's application is built."""
    return handler_registry.get_framework_default(_TYPES[route])


@contextmanager
def empty_registries() -> Iterator[None]:
    """Empty MHCS's global registries, and restore them afterwards."""
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
        with use_registered({}):
            yield
    finally:
        SageMakerFunctionLoader._default_function_loader = loader
        for store, content in held:
            store.clear()
            store.update(content)


class _ScriptFileLoader(FileLoader):  # type: ignore[misc]  # MHCS is not typed
    """Adds the modules that it loads to ``sys.modules``, which dataclasses with postponed annotations
    need.
    """

    def __init__(self, config: HandlerConfig, generation: int) -> None:
        super().__init__([str(config.folder)])
        self._config = config
        self._generation = generation
        self._before: frozenset[str] = frozenset()
        """Names of the modules that existed when the first file was loaded."""
        self.loaded: dict[str, ModuleType] = {}

    def _find_file(self, filename: str) -> Path | None:
        script = self._config.script
        path = Path(filename) if Path(filename).is_absolute() else self._config.folder / filename
        if script is not None and path in (script.path, self._config.script_path):
            return script.path
        return path if path.is_file() else None

    def _load_regular_module(self, file_path: Path) -> ModuleType:
        script = self._config.script
        is_script = script is not None and file_path == script.path
        self._before = self._before or frozenset(sys.modules)
        if not is_script and (found := find_imported(file_path, self._before)) is not None:
            return found
        content = script.content if is_script and script is not None else file_path.read_bytes()
        name = f"{MODULE_PREFIX}{self._generation}_{len(self.loaded)}_{file_path.stem}"
        spec = importlib.util.spec_from_loader(name, UncachedSourceLoader(name, str(file_path), content))
        if spec is None or spec.loader is None:
            raise ModuleLoadError(str(file_path), "it has no module loader")
        module = importlib.util.module_from_spec(spec)
        names = import_names(file_path, self._config.script_path if is_script else None)
        sys.modules.update(dict.fromkeys([name, *names], module))
        self.loaded[name] = module
        spec.loader.exec_module(module)
        return module


class ScriptLoader(FunctionLoader):  # type: ignore[misc]  # MHCS is not typed
    """Loads functions by their path; the script is the module ``model``."""

    def __init__(self, config: HandlerConfig, generation: int) -> None:
        script = config.script.path if config.script is not None else config.script_path
        super().__init__([str(config.folder)], {"model": str(script)})
        self.file_loader = _ScriptFileLoader(config, generation)

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        """Modules that were loaded from files, by their names in ``sys.modules``."""
        loaded: dict[str, ModuleType] = self.file_loader.loaded
        return loaded

    def function(self, reference: HandlerReference) -> Callable[..., Any]:
        """Raises LoadFailedError."""
        with _convert_errors(reference.source, reference.field):
            return self._function(reference.path)

    def _function(self, path: HandlerPath) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = self.load_function(path.text)
        except HandlerNotFoundError:
            renamed = (
                MOVED_FUNCTIONS.get((path.location, path.attribute)) if path.kind is PathKind.MODULE else None
            )
            if renamed is None:
                raise
            found = self.load_function(":".join(renamed))
        return found


class LoadFailedError(WorkerError):
    """The object that the setting ``field`` names cannot be loaded. ``__cause__`` is the original error."""

    def __init__(self, source: HandlerSource, field_: str) -> None:
        self.source = source
        self.field = field_
        super().__init__(field_)


@contextmanager
def _convert_errors(source: HandlerSource, field_: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # sys.exit() in a script must not end its thread without a report
        raise LoadFailedError(source, field_) from error


@dataclass(slots=True)
class Resolution:
    """The result of MHCS's resolver."""

    handlers: dict[Route, tuple[HandlerSource, Callable[..., Any]]] = field(default_factory=dict)
    middleware: dict[str, Any] = field(default_factory=dict)
    """MHCS's ``MiddlewareInfo`` by name."""
    registered: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Handlers of sessions and adapters that the script has registered, by MHCS's names."""
    steps: dict[Route, list[str]] = field(default_factory=dict)
    """For the log at DEBUG: one entry for each level that was considered."""


class _ResolverConfig(StandardHandlerConfig):  # type: ignore[misc]  # MHCS is not typed
    """Resolves references of the spec before those of the environment, at MHCS's level of the environment."""

    def __init__(self, config: HandlerConfig, scripts: ScriptLoader, decorated: Mapping[str, Any]) -> None:
        self._config = config
        self._scripts = scripts
        self._decorated = decorated
        self.chosen: dict[Route, HandlerReference] = {}

    def get_env_handler(self, handler_type: str) -> Callable[..., Any] | None:
        route = _route(handler_type)
        reference = self._config.references.get(route)
        if reference is None:
            return None
        found = self._scripts.function(reference)
        # Only the script's decorators count (docs/guide/custom-handlers.md, "Decorators").
        handler_registry._decorator_handlers.clear()
        handler_registry._decorator_handlers.update(self._decorated)
        self.chosen[route] = reference
        return found

    def get_customer_script_handler(self, handler_type: str) -> Callable[..., Any] | None:
        script = self._config.script
        if script is None:
            return None
        name = FUNCTION_NAMES[_route(handler_type)]
        try:
            found: Callable[..., Any] = self._scripts.load_function(f"model:{name}")
        except HandlerNotCallableError as error:
            raise LoadFailedError(script.source, name) from error
        return found


def resolve(config: HandlerConfig, scripts: ScriptLoader) -> Resolution:
    """Load the functions and select handlers with MHCS's own resolver. Call inside :func:`empty_registries`.

    Raises LoadFailedError from every error of MHCS or of the customer's code, including ``SystemExit``.
    """
    if (script := config.script) is not None:
        named = {HandlerSource.SPEC: "handlers.script", HandlerSource.ENVIRONMENT: ENV_SCRIPT}
        with _convert_errors(script.source, named.get(script.source, "the script")):
            scripts.load_module_from_file(str(script.path))
    decorated = dict(handler_registry._decorator_handlers)
    registered = dict(handler_registry._handlers)
    for reference in config.middleware:
        scripts.function(reference)  # MHCS only logs an invalid one
    SageMakerFunctionLoader._default_function_loader = scripts
    resolver_config = _ResolverConfig(config, scripts, decorated)
    resolver = GenericHandlerResolver(resolver_config, handler_registry)
    result = Resolution(registered=registered)
    for route, type_ in _TYPES.items():
        found = resolver.resolve_handler(type_)
        source = HandlerSource.DEFAULT
        if route in resolver_config.chosen:
            source = resolver_config.chosen[route].source
        elif found is not None:
            source = HandlerSource.DECORATOR if type_ in decorated else HandlerSource.FUNCTION
        if found is not None:
            result.handlers[route] = (source, found)
        result.steps[route] = _explain_selection(config, route, source, decorated=type_ in decorated)
    with _report_processing_errors():
        middleware_registry.load_middlewares(scripts)
    result.middleware = {
        name: info for name in MIDDLEWARES if (info := middleware_registry.get_middleware(name)) is not None
    }
    for name, info in result.middleware.items():
        if not info.is_class:
            _check_parameters(info.middleware, f"the middleware {name}", "the request and call_next", 2)
    return result


@contextmanager
def _report_processing_errors() -> Iterator[None]:
    """Report errors of pre- and post-processing, for which MHCS answers 500 without a log line."""
    combine = BaseMiddlewareLoader._create_pre_post_middleware

    def combined(self: Any, before: Any, after: Any, name: str, prefix: str) -> Any:
        for function, subject in ((before, "the request"), (after, "the response")):
            if function is not None:
                _check_parameters(function, f"the processing of {subject}", subject, 1)
        return combine(self, report_errors(before), report_errors(after), name, prefix)

    BaseMiddlewareLoader._create_pre_post_middleware = combined
    try:
        yield
    finally:
        BaseMiddlewareLoader._create_pre_post_middleware = combine


def _check_parameters(function: Callable[..., Any], what: str, takes: str, count: int) -> None:
    if not accepts(function, count):
        name = getattr(function, "__qualname__", type(function).__qualname__)
        error = UnsupportedSignatureError(f"({name}) has other parameters", f"Take {takes}.")
        raise LoadFailedError(HandlerSource.DECORATOR, what) from error


def _explain_selection(
    config: HandlerConfig, route: Route, source: HandlerSource, *, decorated: bool
) -> list[str]:
    reference = config.references.get(route)
    named = (
        f"{reference.field} names {reference.path.text}"
        if reference
        else "neither the spec nor the environment names a handler"
    )
    lines = [named, f"decorator in the script: {'found' if decorated else 'none'}"]
    if source in (HandlerSource.FUNCTION, HandlerSource.DEFAULT):
        found = "found" if source is HandlerSource.FUNCTION else "none"
        lines.append(f"function {FUNCTION_NAMES[route]} in the script: {found}")
    return [*lines, f"selected: {source.value}"]


def _route(handler_type: str) -> Route:
    return next(route for route, type_ in _TYPES.items() if type_ == handler_type)

"""Determines how a custom handler is called: the parameters that FastAPI provides, and how they are passed.

Every example of docs/guide/custom-handlers.md works as printed: an unannotated parameter is the request,
which FastAPI itself would treat as a query parameter and answer 422. A handler that no request of SageMaker
can satisfy is rejected when it is loaded. Pure.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from fastapi import Request, params
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.errors import WorkerError

__all__ = ["Binding", "UnsupportedSignatureError", "accepts", "bind_signature", "is_async", "source_location"]

_REQUEST_NAMES: Final = ("request", "req", "raw_request")
"""An unannotated parameter with one of these names is the request, even if it has a default."""

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class UnsupportedSignatureError(WorkerError):
    """No request can satisfy the handler's parameters. ``fault`` completes a sentence that begins with the
    handler, ``fix`` is a sentence.
    """

    def __init__(self, fault: str, fix: str) -> None:
        self.fault = fault
        self.fix = fix
        super().__init__(f"{fault}. {fix}")


@dataclass(frozen=True, slots=True)
class Binding:
    """How a handler is called.

    ``signature``: for FastAPI, keyword-only; ``positional``: the parameters that are passed by position. The
    others are passed by name.
    """

    signature: inspect.Signature
    positional: tuple[str, ...] = ()

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of a call. ``values``: from FastAPI, by parameter."""
        named = {name: value for name, value in values.items() if name not in self.positional}
        return [values[name] for name in self.positional], named


def bind_signature(function: Callable[..., Any], route: Route) -> Binding:
    """The binding of a handler. Raises UnsupportedSignatureError."""
    if inspect.isclass(function):
        raise UnsupportedSignatureError("is a class", "Name a function, or an instance that can be called.")
    described, signature = _find_declaration(function)
    parameters = _resolve_parameters(described, signature)
    _reject_unsatisfiable(parameters, route)
    names = [parameter.name for parameter in parameters]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    positional = tuple(parameter.name for parameter in parameters if parameter.kind is not keyword_only)
    for passed in (positional, ()):
        if accepts(function, len(passed), [name for name in names if name not in passed]):
            shown = [parameter.replace(kind=keyword_only) for parameter in parameters]
            return Binding(inspect.Signature(shown), passed)
    raise UnsupportedSignatureError(
        f"does not take the parameters of the function that it wraps ({', '.join(names)})",
        "Declare the parameters that the wrapper takes, for example the request.",
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns an awaitable immediately."""
    plain = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)


def source_location(function: Callable[..., Any]) -> tuple[str, int] | None:
    """File and line of the handler's own code; None for a built-in function."""
    plain = function.func if isinstance(function, functools.partial) else function
    plain = inspect.unwrap(plain)
    hidden = _wrapped_function(plain) if _has_only_variadic(plain) else None
    code = _code(hidden) or _code(plain)
    return (code.co_filename, code.co_firstlineno) if code is not None else None


def _code(function: Any) -> types.CodeType | None:
    for candidate in (function, vars(type(function)).get("__call__")):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, types.CodeType):
            return code
    return None


# --- find the parameters ---


def _signature(function: Callable[..., Any], *, follow: bool) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=follow)
    except ValueError:  # a built-in function without a signature
        return None


def _find_declaration(function: Callable[..., Any]) -> tuple[Callable[..., Any], inspect.Signature]:
    """The function that declares the parameters, and its signature.

    This is the handler itself if it names its parameters. A wrapper with variadic parameters passes them on
    to the function that ``functools.wraps`` names, otherwise to the only function that it refers to.
    """
    own = _signature(function, follow=False)
    if own is not None and not _has_variadic(own):
        return function, _without_bound_arguments(function, own)
    followed = _signature(function, follow=True)
    if own is not None and followed is not None and followed != own:
        return inspect.unwrap(function), _without_bound_arguments(function, followed)
    if own is None or all(parameter.kind in _VARIADIC for parameter in own.parameters.values()):
        if (hidden := _wrapped_function(function)) is not None:
            return _without_instance(function, *_find_declaration(hidden))
        takes = [parameter.kind for parameter in own.parameters.values()] if own is not None else []
        if own is not None and inspect.Parameter.VAR_POSITIONAL not in takes:
            raise UnsupportedSignatureError(
                "takes keyword arguments of any name, so the request cannot be passed",
                "Name the parameter, or put functools.wraps on the decorator.",
            )
        return function, inspect.Signature(
            [inspect.Parameter("request", inspect.Parameter.POSITIONAL_ONLY, annotation=Request)]
        )
    return function, _without_bound_arguments(function, own)


def _without_instance(
    wrapper: Callable[..., Any], function: Callable[..., Any], signature: inspect.Signature
) -> tuple[Callable[..., Any], inspect.Signature]:
    """``signature`` without the first parameter if ``wrapper`` is a bound method, which passes its
    instance.
    """
    parameters = list(signature.parameters.values())
    return function, signature.replace(parameters=parameters[1 if inspect.ismethod(wrapper) else 0 :])


def _has_variadic(signature: inspect.Signature) -> bool:
    return any(parameter.kind in _VARIADIC for parameter in signature.parameters.values())


def _has_only_variadic(function: Callable[..., Any]) -> bool:
    signature = _signature(function, follow=False)
    return signature is not None and all(
        parameter.kind in _VARIADIC for parameter in signature.parameters.values()
    )


def _without_bound_arguments(function: Callable[..., Any], signature: inspect.Signature) -> inspect.Signature:
    """``signature`` without the arguments that ``functools.partial`` has bound: a client must not set
    them.
    """
    bound = function.keywords if isinstance(function, functools.partial) else {}
    kept = [parameter for name, parameter in signature.parameters.items() if name not in bound]
    return signature.replace(parameters=kept)


def _wrapped_function(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that a wrapper without ``functools.wraps`` passes the request on to.

    The wrapper refers to it in its closure or, if it is a callable object, in an attribute. Of several
    functions, the one that takes parameters, or else the one of these that is a coroutine function.
    """
    cells = getattr(function, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells if _has_content(cell)] or list(
        _attributes(function).values()
    )
    kinds = (types.FunctionType, types.MethodType, functools.partial)
    found = [item for item in held if isinstance(item, kinds) and item is not function]
    for fits in (_has_parameters, is_async):
        found = found if len(found) == 1 else [item for item in found if fits(item)]
    return found[0] if len(found) == 1 else None


def _has_parameters(function: Callable[..., Any]) -> bool:
    signature = _signature(function, follow=False)
    return signature is None or bool(signature.parameters)


def _has_content(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell
        return False


def _attributes(function: Callable[..., Any]) -> dict[str, Any]:
    return {} if inspect.isroutine(function) else dict(getattr(function, "__dict__", {}))


# --- resolve their types ---


def _resolve_parameters(
    function: Callable[..., Any], signature: inspect.Signature
) -> list[inspect.Parameter]:
    """Parameters with resolved annotations. The request's parameter is annotated as ``Request``."""
    hints = _hints(function)
    parameters = [
        parameter.replace(annotation=_without_none(hints.get(parameter.name, parameter.annotation)))
        for parameter in signature.parameters.values()
        if parameter.kind not in _VARIADIC
    ]
    takes_request = any(_is_request(parameter.annotation) for parameter in parameters)
    for index, parameter in enumerate(parameters):
        if _is_request(parameter.annotation):
            parameters[index] = parameter.replace(default=inspect.Parameter.empty)
        elif _is_untyped(parameter) and not _has_declared_source(parameter):
            required = parameter.default is inspect.Parameter.empty
            if not takes_request and (required or parameter.name in _REQUEST_NAMES):
                takes_request = True
                parameters[index] = parameter.replace(annotation=Request, default=inspect.Parameter.empty)
    return parameters


def _is_untyped(parameter: inspect.Parameter) -> bool:
    """Whether a parameter has no type, so that it may be the request."""
    if parameter.annotation in (Any, object):
        return parameter.name in _REQUEST_NAMES
    return parameter.annotation is inspect.Parameter.empty


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    plain = function.func if isinstance(function, functools.partial) else function
    target = plain if inspect.isroutine(plain) else type(plain).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}  # FastAPI reports annotations that it does not support


def _without_none(annotation: Any) -> Any:
    """``Request | None`` as ``Request``."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        if len(rest) == 1 and _is_request(rest[0]):
            return rest[0]
    return annotation


def _is_request(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return inspect.isclass(annotation) and issubclass(annotation, HTTPConnection)


def _has_declared_source(parameter: inspect.Parameter) -> bool:
    """Whether it declares its source for FastAPI: ``Query()``, ``Header()``, ``Depends()``."""
    annotated = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    kinds = (params.Param, params.Body, params.Depends)
    return any(isinstance(item, kinds) for item in (parameter.default, *annotated))


# --- reject parameters that no request provides ---


def _reject_unsatisfiable(parameters: list[inspect.Parameter], route: Route) -> None:
    first = parameters[0] if parameters else None
    if first is not None and first.name in ("self", "cls") and len(parameters) > 1:
        raise UnsupportedSignatureError(
            "is a method that needs an instance", "Make it a staticmethod or a plain function."
        )
    for parameter in parameters:
        required = parameter.default is inspect.Parameter.empty
        if required and parameter.annotation is inspect.Parameter.empty:
            raise UnsupportedSignatureError(
                f"takes {parameter.name} besides the request, without a type",
                "Annotate it, give it a default, or take only the request.",
            )
    dependant = _build_dependant(parameters, route)
    filled = _provided_names(dependant)
    if unknown := [parameter.name for parameter in parameters if parameter.name not in filled]:
        raise UnsupportedSignatureError(
            f"takes {', '.join(unknown)}, which FastAPI provides for no HTTP request",
            "Take only the request.",
        )
    declared = {parameter.name for parameter in parameters if _has_declared_source(parameter)}
    needed = _required_names(dependant)
    if route is not Route.PING:
        own = {field.name for field in (*dependant.query_params, *dependant.path_params)}
        needed = [name for name in needed if name in own - declared]
    if needed:
        either = "" if route is Route.PING else ", declare it with fastapi.Query()"
        raise UnsupportedSignatureError(
            f"needs {', '.join(needed)}, which a request of {route.value} from SageMaker does not have",
            f"Give it a default{either}, or take only the request.",
        )


def _build_dependant(parameters: list[inspect.Parameter], route: Route) -> Any:
    async def endpoint() -> None: ...

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    endpoint.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    try:
        return APIRoute(route.value, endpoint, response_model=None).dependant
    except Exception as error:  # FastAPI and pydantic may raise any error for a customer's annotations
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UnsupportedSignatureError(
            f"has parameters that FastAPI refuses ({first})", "Take only the request."
        ) from error


def _provided_names(dependant: Any) -> set[str]:
    names = {
        dependant.request_param_name,
        dependant.http_connection_param_name,
        dependant.response_param_name,
        dependant.background_tasks_param_name,
        dependant.security_scopes_param_name,
        *(dependency.name for dependency in dependant.dependencies),
    }
    return {name for name in (*names, *(field.name for field in _fields(dependant))) if name}


def _fields(dependant: Any) -> list[Any]:
    return [
        *dependant.path_params,
        *dependant.query_params,
        *dependant.header_params,
        *dependant.cookie_params,
        *dependant.body_params,
    ]


def _required_names(dependant: Any) -> list[str]:
    """Names of the fields that a request must have, including those of dependencies."""
    own = [field.name for field in _fields(dependant) if field.field_info.is_required()]
    return own + [name for dependency in dependant.dependencies for name in _required_names(dependency)]


def accepts(function: Callable[..., Any], positional: int, named: Iterable[str] = ()) -> bool:
    """Whether the function itself, not one that it wraps, accepts these arguments. ``positional``: their
    number.
    """
    own = _signature(function, follow=False)
    if own is None:
        return True
    try:
        own.bind(*[None] * positional, **dict.fromkeys(named))
    except TypeError:
        return False
    return True

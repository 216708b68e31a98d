"""How a custom handler is called: the parameters that FastAPI fills in, and how they are passed on. Pure.

Every example of the guide works as printed: an unannotated parameter is the request, where FastAPI itself
would take a query parameter and answer 422. A handler that no request of SageMaker's could ever satisfy is
refused when it is loaded.
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

__all__ = ["Binding", "UnfitHandlerError", "accepts", "binding_of", "defined_in", "is_async"]

_REQUEST_NAMES: Final = ("request", "req", "raw_request")
"""An unannotated parameter of such a name is the request even where it has a default."""

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class UnfitHandlerError(WorkerError):
    """No request could satisfy the handler's parameters. ``what`` and ``fix`` finish a sentence that begins
    with the handler.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}: {fix}")


@dataclass(frozen=True, slots=True)
class Binding:
    """``signature``: for FastAPI, keyword-only; ``positional``: the parameters that are passed by position,
    the others are passed by name.
    """

    signature: inspect.Signature
    positional: tuple[str, ...] = ()

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the call, from what FastAPI has filled in."""
        named = {name: value for name, value in values.items() if name not in self.positional}
        return [values[name] for name in self.positional], named


def binding_of(function: Callable[..., Any], route: Route) -> Binding:
    """Raises UnfitHandlerError."""
    if inspect.isclass(function):
        raise UnfitHandlerError("is a class", "name a function, or an instance that can be called")
    described, signature = _described(function)
    parameters = _typed(described, signature)
    _refuse_unsatisfiable(parameters, route)
    names = [parameter.name for parameter in parameters]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    positional = tuple(parameter.name for parameter in parameters if parameter.kind is not keyword_only)
    for passed in (positional, ()):
        if accepts(function, len(passed), [name for name in names if name not in passed]):
            shown = [parameter.replace(kind=keyword_only) for parameter in parameters]
            return Binding(inspect.Signature(shown), passed)
    raise UnfitHandlerError(
        f"does not take the parameters of the function that it wraps ({', '.join(names)})",
        "give the wrapper the parameters that it takes, the request for instance",
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns at once, and what it returns is to be awaited."""
    plain = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)


def defined_in(function: Callable[..., Any]) -> tuple[str, int] | None:
    """File and line of the handler's own code; None for a builtin."""
    plain = function.func if isinstance(function, functools.partial) else function
    plain = inspect.unwrap(plain)
    hidden = _hidden(plain) if _only_variadic(plain) else None
    code = _code(hidden) or _code(plain)
    return (code.co_filename, code.co_firstlineno) if code is not None else None


def _code(function: Any) -> types.CodeType | None:
    for candidate in (function, vars(type(function)).get("__call__")):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, types.CodeType):
            return code
    return None


# --- which parameters there are ---


def _signature(function: Callable[..., Any], *, follow: bool) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=follow)
    except ValueError:  # a builtin that has none
        return None


def _described(function: Callable[..., Any]) -> tuple[Callable[..., Any], inspect.Signature]:
    """The function that says which parameters there are, and these.

    A wrapper that names its parameters is believed. One that takes anything passes it on: to what
    ``functools.wraps`` names, else to the one function that it holds.
    """
    own = _signature(function, follow=False)
    if own is not None and not _variadic(own):
        return function, _free(function, own)
    followed = _signature(function, follow=True)
    if own is not None and followed is not None and followed != own:
        return inspect.unwrap(function), _free(function, followed)
    if own is None or all(parameter.kind in _VARIADIC for parameter in own.parameters.values()):
        if (hidden := _hidden(function)) is not None:
            return _of_hidden(function, *_described(hidden))
        takes = [parameter.kind for parameter in own.parameters.values()] if own is not None else []
        if own is not None and inspect.Parameter.VAR_POSITIONAL not in takes:
            raise UnfitHandlerError(
                "takes keyword arguments of any name, so that it does not say which one is the request",
                "name the parameter, or put functools.wraps on the decorator",
            )
        return function, inspect.Signature(
            [inspect.Parameter("request", inspect.Parameter.POSITIONAL_ONLY, annotation=Request)]
        )
    return function, _free(function, own)


def _of_hidden(
    wrapper: Callable[..., Any], function: Callable[..., Any], signature: inspect.Signature
) -> tuple[Callable[..., Any], inspect.Signature]:
    """A bound method passes its instance on as the first argument."""
    parameters = list(signature.parameters.values())
    return function, signature.replace(parameters=parameters[1 if inspect.ismethod(wrapper) else 0 :])


def _variadic(signature: inspect.Signature) -> bool:
    return any(parameter.kind in _VARIADIC for parameter in signature.parameters.values())


def _only_variadic(function: Callable[..., Any]) -> bool:
    signature = _signature(function, follow=False)
    return signature is not None and all(
        parameter.kind in _VARIADIC for parameter in signature.parameters.values()
    )


def _free(function: Callable[..., Any], signature: inspect.Signature) -> inspect.Signature:
    """Without what ``functools.partial`` has bound by name: a client must not be able to set it."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    kept = [parameter for name, parameter in signature.parameters.items() if name not in bound]
    return signature.replace(parameters=kept)


def _hidden(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that a wrapper without ``functools.wraps`` passes the request on to: the one that it holds
    in its closure, or as an attribute of an object that can be called. Of several, the one that takes
    parameters, or the one of these that is a coroutine function.
    """
    cells = getattr(function, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells if _filled(cell)] or list(_attributes(function).values())
    kinds = (types.FunctionType, types.MethodType, functools.partial)
    found = [item for item in held if isinstance(item, kinds) and item is not function]
    for fits in (_takes_something, is_async):
        found = found if len(found) == 1 else [item for item in found if fits(item)]
    return found[0] if len(found) == 1 else None


def _takes_something(function: Callable[..., Any]) -> bool:
    signature = _signature(function, follow=False)
    return signature is None or bool(signature.parameters)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # empty
        return False


def _attributes(function: Callable[..., Any]) -> dict[str, Any]:
    return {} if inspect.isroutine(function) else dict(getattr(function, "__dict__", {}))


# --- what they are ---


def _typed(function: Callable[..., Any], signature: inspect.Signature) -> list[inspect.Parameter]:
    """Postponed annotations resolved; what is the request is annotated so."""
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
        elif _says_nothing(parameter) and not _declared(parameter):
            required = parameter.default is inspect.Parameter.empty
            if not takes_request and (required or parameter.name in _REQUEST_NAMES):
                takes_request = True
                parameters[index] = parameter.replace(annotation=Request, default=inspect.Parameter.empty)
    return parameters


def _says_nothing(parameter: inspect.Parameter) -> bool:
    """Whether nothing says what a parameter is: it may be the request."""
    if parameter.annotation in (Any, object):
        return parameter.name in _REQUEST_NAMES
    return parameter.annotation is inspect.Parameter.empty


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    plain = function.func if isinstance(function, functools.partial) else function
    target = plain if inspect.isroutine(plain) else type(plain).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}  # FastAPI says what it cannot make of them


def _without_none(annotation: Any) -> Any:
    """``Request | None`` is the request."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        if len(rest) == 1 and _is_request(rest[0]):
            return rest[0]
    return annotation


def _is_request(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return inspect.isclass(annotation) and issubclass(annotation, HTTPConnection)


def _declared(parameter: inspect.Parameter) -> bool:
    """Whether it says itself where FastAPI is to take it from: ``Query()``, ``Header()``, ``Depends()``."""
    annotated = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    kinds = (params.Param, params.Body, params.Depends)
    return any(isinstance(item, kinds) for item in (parameter.default, *annotated))


# --- which of them nothing could fill in ---


def _refuse_unsatisfiable(parameters: list[inspect.Parameter], route: Route) -> None:
    first = parameters[0] if parameters else None
    if first is not None and first.name in ("self", "cls") and len(parameters) > 1:
        raise UnfitHandlerError(
            "is a method that needs an instance", "make it a staticmethod or a plain function"
        )
    for parameter in parameters:
        required = parameter.default is inspect.Parameter.empty
        if required and parameter.annotation is inspect.Parameter.empty:
            raise UnfitHandlerError(
                f"takes {parameter.name} besides the request and does not say what it is",
                "annotate it, give it a default, or take the request alone",
            )
    dependant = _read_by_fastapi(parameters, route)
    filled = _filled_in(dependant)
    if lacking := [parameter.name for parameter in parameters if parameter.name not in filled]:
        raise UnfitHandlerError(
            f"takes {', '.join(lacking)}, which FastAPI fills in for no HTTP request",
            "take one parameter, the request",
        )
    declared = {parameter.name for parameter in parameters if _declared(parameter)}
    needed = _needed(dependant)
    if route is not Route.PING:
        own = {field.name for field in (*dependant.query_params, *dependant.path_params)}
        needed = [name for name in needed if name in own - declared]
    if needed:
        either = "" if route is Route.PING else ", declare it with fastapi.Query()"
        raise UnfitHandlerError(
            f"needs {', '.join(needed)}, which a request of {route.value} from SageMaker does not have",
            f"give it a default{either}, or take the request alone",
        )


def _read_by_fastapi(parameters: list[inspect.Parameter], route: Route) -> Any:
    async def endpoint() -> None: ...

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    endpoint.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    try:
        return APIRoute(route.value, endpoint, response_model=None).dependant
    except Exception as error:  # what FastAPI and pydantic make of a customer's annotations
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UnfitHandlerError(
            f"has parameters that FastAPI refuses ({first})", "take one, the request"
        ) from error


def _filled_in(dependant: Any) -> set[str]:
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


def _needed(dependant: Any) -> list[str]:
    """What must be in a request for this to be called, for its dependencies too."""
    own = [field.name for field in _fields(dependant) if field.field_info.is_required()]
    return own + [name for dependency in dependant.dependencies for name in _needed(dependency)]


def accepts(function: Callable[..., Any], positional: int, named: Iterable[str] = ()) -> bool:
    """Whether the function itself, not what it wraps, can be called so."""
    own = _signature(function, follow=False)
    if own is None:
        return True
    try:
        own.bind(*[None] * positional, **dict.fromkeys(named))
    except TypeError:
        return False
    return True

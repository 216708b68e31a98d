"""MHCS's handlers of sessions and adapters, which it looks up while a request runs.

Its registry is process-global. Here it depends on the context, so that they change with the script that has
registered them. The names used are held by ``tests/unit/worker/handlers/test_handlers_contract.py``.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from ._process_state import logging_kept

with logging_kept():
    from model_hosting_container_standards.common.handler.registry import handler_registry
    from model_hosting_container_standards.common.transforms.base_factory import create_transform_decorator
    from model_hosting_container_standards.sagemaker.lora.constants import (
        LoRAHandlerType,
        SageMakerLoRAApiHeader,
    )
    from model_hosting_container_standards.sagemaker.lora.routes import get_lora_route_config
    from model_hosting_container_standards.sagemaker.sessions.transform import SessionApiTransform

__all__ = [
    "ADAPTER_HEADER",
    "ADAPTER_TYPES",
    "SESSION_TYPES",
    "adapter_route",
    "in_force",
    "registered_default",
    "with_sessions",
]

ADAPTER_TYPES: Final = (LoRAHandlerType.REGISTER_ADAPTER.value, LoRAHandlerType.UNREGISTER_ADAPTER.value)
"""MHCS's names of the handlers of ``POST /adapters`` and ``DELETE /adapters/{adapter_name}``."""

SESSION_TYPES: Final = ("create_session", "close_session")
"""MHCS's names of the handlers of ``NEW_SESSION`` and ``CLOSE``, requests to ``/invocations``."""

ADAPTER_HEADER: Final[str] = SageMakerLoRAApiHeader.ADAPTER_IDENTIFIER

_IN_FORCE: ContextVar[Mapping[str, Any]] = ContextVar("registered handlers")


class _Registered(MutableMapping[str, Any]):
    """MHCS's registry of the handlers of sessions and adapters.

    In the context of a request it holds what that request's generation has registered, in the context of a
    load what the load registers, and elsewhere what vLLM registers.
    """

    def __init__(self, default: dict[str, Any]) -> None:
        self.default = default

    @property
    def _current(self) -> Any:
        return _IN_FORCE.get(self.default)

    def __getitem__(self, name: str) -> Any:
        return self._current[name]

    def __setitem__(self, name: str, handler: Any) -> None:
        self._current[name] = handler

    def __delitem__(self, name: str) -> None:
        del self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)


_REGISTERED: Final = _Registered(handler_registry._handlers)
handler_registry._handlers = _REGISTERED


@contextmanager
def in_force(registered: Mapping[str, Any]) -> Iterator[None]:
    """Inside, MHCS finds these handlers of sessions and adapters."""
    token = _IN_FORCE.set(registered)
    try:
        yield
    finally:
        with suppress(ValueError):  # a load that hangs is given up in another context than its own
            _IN_FORCE.reset(token)


def registered_default(type_: str) -> Any:
    """The handler that vLLM has registered, None where there is none."""
    return _REGISTERED.default.get(type_)


def adapter_route(type_: str) -> tuple[str, str]:
    """Path and method of a handler of adapters."""
    config = get_lora_route_config(type_)
    return config.path, config.method


class _Sessions(SessionApiTransform):  # type: ignore[misc]  # MHCS is not typed
    """MHCS's, which remembers from its first request whether a script has handlers of sessions; here the
    next generation may have others.
    """

    def _check_use_default_manager(self) -> bool:
        self._use_default_manager = None
        return bool(super()._check_use_default_manager())


def with_sessions(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What MHCS's ``@stateful_session_manager()`` makes of an invocation handler."""
    decorate = create_transform_decorator("stateful_session_manager", lambda _: _Sessions)
    wrapped: Callable[..., Any] = decorate({}, {})(handler)
    return wrapped

"""The registry of SageMaker's package (MHCS) for handlers of sessions and adapters.

MHCS looks these handlers up while a request runs, in a registry of the whole process. Here the registry
depends on the context, so each request uses the handlers that its own script has registered. The names of
MHCS that this module uses are checked by ``tests/unit/worker/handlers/test_handlers_contract.py``.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from ._process_state import preserve_logging

with preserve_logging():
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
    "registered_default",
    "use_registered",
    "with_sessions",
]

ADAPTER_TYPES: Final = (LoRAHandlerType.REGISTER_ADAPTER.value, LoRAHandlerType.UNREGISTER_ADAPTER.value)
"""MHCS's names for the handlers of ``POST /adapters`` and ``DELETE /adapters/{adapter_name}``."""

SESSION_TYPES: Final = ("create_session", "close_session")
"""MHCS's names for the handlers of ``NEW_SESSION`` and ``CLOSE``, requests to ``/invocations``."""

ADAPTER_HEADER: Final[str] = SageMakerLoRAApiHeader.ADAPTER_IDENTIFIER

_ACTIVE: ContextVar[Mapping[str, Any]] = ContextVar("registered handlers")


class _ContextRegistry(MutableMapping[str, Any]):
    """MHCS's registry of handlers, by context.

    In a request it contains the handlers that the request's generation has registered, in a load those that
    the load registers, and otherwise those that vLLM registers.
    """

    def __init__(self, default: dict[str, Any]) -> None:
        self.default = default

    @property
    def _current(self) -> Any:
        return _ACTIVE.get(self.default)

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


_REGISTRY: Final = _ContextRegistry(handler_registry._handlers)
handler_registry._handlers = _REGISTRY


@contextmanager
def use_registered(registered: Mapping[str, Any]) -> Iterator[None]:
    """Inside, MHCS uses these handlers of sessions and adapters."""
    token = _ACTIVE.set(registered)
    try:
        yield
    finally:
        with suppress(ValueError):  # a load that hangs is given up in another context
            _ACTIVE.reset(token)


def registered_default(type_: str) -> Any:
    """The handler that vLLM has registered; None if there is none."""
    return _REGISTRY.default.get(type_)


def adapter_route(type_: str) -> tuple[str, str]:
    """Path and method of a handler of adapters."""
    config = get_lora_route_config(type_)
    return config.path, config.method


class _Sessions(SessionApiTransform):  # type: ignore[misc]  # MHCS is not typed
    """MHCS's transform, which caches at its first request whether a script has handlers of sessions. The next
    generation may have others, so this class does not cache.
    """

    def _check_use_default_manager(self) -> bool:
        self._use_default_manager = None
        return bool(super()._check_use_default_manager())


def with_sessions(handler: Callable[..., Any]) -> Callable[..., Any]:
    """``handler`` of ``/invocations`` as MHCS's ``@stateful_session_manager()`` decorates it."""
    decorate = create_transform_decorator("stateful_session_manager", lambda _: _Sessions)
    wrapped: Callable[..., Any] = decorate({}, {})(handler)
    return wrapped

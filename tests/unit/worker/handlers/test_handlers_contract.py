"""What the worker uses of SageMaker's package beyond its documented names: an upgrade that moves one fails
here, and not in a pod.
"""

import inspect
import threading
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import pytest
from model_hosting_container_standards.common.handler.registry import HandlerRegistry

from vllmendpoint_worker.config.handler_config import HANDLER_VARIABLES, MIDDLEWARE_VARIABLES, Route
from vllmendpoint_worker.handlers.loading import _standards, _standards_registry


def test_the_version_of_the_standards_package_is_supported() -> None:
    assert version("model-hosting-container-standards").startswith("0.1.")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (_standards.GenericHandlerResolver, ["config", "registry"]),
        (_standards.GenericHandlerResolver.resolve_handler, ["self", "handler_type"]),
        (_standards.StandardHandlerConfig.get_env_handler, ["self", "handler_type"]),
        (_standards.StandardHandlerConfig.get_customer_script_handler, ["self", "handler_type"]),
        (_standards.FunctionLoader, ["search_paths", "module_aliases"]),
        (_standards.FunctionLoader.load_function, ["self", "spec"]),
        (_standards.FunctionLoader.load_module_from_file, ["self", "file_path"]),
        (_standards.FileLoader._find_file, ["self", "filename"]),
        (_standards.FileLoader._load_regular_module, ["self", "file_path"]),
        (_standards.create_middleware_object, ["middleware_info"]),
        (_standards.middleware_registry.load_middlewares, ["function_loader"]),
        (_standards.middleware_registry.get_middleware, ["name"]),
        (_standards.middleware_registry.clear_middlewares, []),
        (_standards.decorator_loader.clear, []),
        (
            _standards.BaseMiddlewareLoader._create_pre_post_middleware,
            ["self", "pre_process_func", "post_process_func", "middleware_name", "log_prefix"],
        ),
    ],
)
def test_signatures(function: object, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters  # type: ignore[arg-type]


def test_all_registries_are_emptied_and_restored() -> None:
    assert isinstance(HandlerRegistry()._handlers, dict), "_Registered stands for it"
    assert isinstance(_standards.handler_registry._decorator_handlers, dict)
    assert isinstance(_standards.middleware_registry._middlewares, dict)
    fields = {"pre_fn", "post_fn", "pre_post_middleware", "throttle_middleware"}
    assert set(vars(_standards.decorator_loader)) == fields
    assert hasattr(_standards.SageMakerFunctionLoader, "_default_function_loader")
    _standards.handler_registry._decorator_handlers["ping"] = before = object()
    try:
        with _standards.empty_registries():
            assert not _standards.handler_registry._decorator_handlers
            _standards.handler_registry._decorator_handlers["ping"] = object()
        assert _standards.handler_registry._decorator_handlers == {"ping": before}
    finally:
        _standards.handler_registry._decorator_handlers.clear()


def test_handlers_that_a_load_registers_are_visible_only_in_its_context() -> None:
    registry = _standards.handler_registry
    registry.set_handler("create_session", print)
    try:
        with _standards.empty_registries():
            assert registry.list_handlers() == []
            assert registry.get_handler("create_session") is None
            assert not registry.has_handler("create_session")
            registry.set_handler("create_session", repr)
            registry.set_handler("close_session", repr)
            registry.remove_handler("close_session")
            assert registry.list_handlers() == ["create_session"]
            seen: list[Any] = []
            other = threading.Thread(target=lambda: seen.append(registry.get_handler("create_session")))
            other.start()
            other.join()
            assert seen == [print]
        assert registry.get_handler("create_session") is print
    finally:
        registry.remove_handler("create_session")


def test_a_load_abandoned_in_another_context_is_reverted() -> None:
    """Another thread closes what the load's thread has opened."""
    stack = ExitStack()
    opening = threading.Thread(target=lambda: stack.enter_context(_standards.empty_registries()))
    opening.start()
    opening.join()
    stack.close()


def test_routes_and_headers_of_sessions_and_adapters() -> None:
    assert {
        type_: _standards_registry.adapter_route(type_) for type_ in _standards_registry.ADAPTER_TYPES
    } == {
        "register_adapter": ("/adapters", "POST"),
        "unregister_adapter": ("/adapters/{adapter_name}", "DELETE"),
    }
    assert _standards_registry.ADAPTER_HEADER == "X-Amzn-SageMaker-Adapter-Identifier"
    assert list(
        inspect.signature(_standards_registry.SessionApiTransform._check_use_default_manager).parameters
    ) == ["self"]
    source = inspect.getsource(_standards_registry.SessionApiTransform)
    assert source.count("_use_default_manager = ") == 2, "set once, and remembered"


def test_names_that_the_guide_uses_exist() -> None:
    assert _standards.FUNCTION_NAMES == {
        Route.PING: "custom_sagemaker_ping_handler",
        Route.INVOCATIONS: "custom_sagemaker_invocation_handler",
    }
    from model_hosting_container_standards.common.fastapi.config import FastAPIEnvVars
    from model_hosting_container_standards.sagemaker.config import SageMakerDefaults, SageMakerEnvVars

    known = {value for name, value in vars(FastAPIEnvVars).items() if name.startswith("CUSTOM_")}
    assert known == {*HANDLER_VARIABLES.values(), *MIDDLEWARE_VARIABLES}
    assert (SageMakerEnvVars.CUSTOM_SCRIPT_FILENAME, SageMakerEnvVars.SAGEMAKER_MODEL_PATH) == (
        "CUSTOM_SCRIPT_FILENAME",
        "SAGEMAKER_MODEL_PATH",
    )
    assert SageMakerDefaults.SCRIPT_FILENAME == "model.py"

"""vLLM's HTTP application as the worker builds it: health checks, SageMaker's routes, rejections."""

import inspect
import types
import warnings
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from vllmendpoint_api import Level, ModelType, PayloadSource, Verdict, payload_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.llm.exceptions import HttpError
    from dynamo.vllm.errors import vllm_client_error_to_http_error
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError

    from tests.worker.signatures import parameters
    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.engine.http_app import ReadinessMiddleware
    from vllmendpoint_worker.handlers import install_sagemaker_routes
    from vllmendpoint_worker.payload.validation import check_payload
    from vllmendpoint_worker.serving.health_route import HealthRoute, reaches_health
    from vllmendpoint_worker.setting_origin import SettingOrigin
    from vllmendpoint_worker.vllm_rejections import VLLMRejection

pytestmark = pytest.mark.timeout(120)


def test_vllm_classifies_rejected_requests_and_names_the_parameter() -> None:
    refused = VLLMValidationError("too many", parameter="logprobs", value=50)
    found = upstream.rejection_of(refused)
    assert found == upstream.rejection_of(vllm_client_error(refused))
    assert found is not None
    assert (found.message, found.parameter) == ("too many (parameter=logprobs, value=50)", "logprobs")
    assert upstream.rejection_of(HttpError(422, "no")) == VLLMRejection("no")
    assert upstream.rejection_of(ValueError("no")) == VLLMRejection("no")
    for fault in (HttpError(503, "no"), EngineDeadError(), RuntimeError("no"), KeyboardInterrupt(), None):
        assert upstream.rejection_of(fault) is None, fault
    assert upstream.rejection_in_response(create_error_response("no", param="tools")) == VLLMRejection(
        "no", "tools"
    )
    assert upstream.rejection_in_response(("conversation", ["inputs"])) is None


def vllm_client_error(error: Exception) -> Exception:
    """As Dynamo's handlers raise it."""
    try:
        raise vllm_client_error_to_http_error(error) from error
    except HttpError as raised:
        return raised


def test_every_health_check_of_vllm_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new GET route fails here: add it to HEALTH_PATHS where it means healthy, else to the list below."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    app = FastAPI(openapi_url=None)
    app.state.args = types.SimpleNamespace(enable_fault_tolerance=True)
    tasks: Any = ("generate", "transcription", "realtime", "render")
    upstream._http.register_api_routers(app.state.args, app, tasks, None)
    upstream._http.guard_health(app, lambda: False)
    routes = [route for route in app.router.routes if isinstance(route, APIRoute) and "GET" in route.methods]
    assert {route.path for route in routes if isinstance(route, HealthRoute)} == {"/health", "/ping"}
    information = {
        "/fault_tolerance/status",
        "/get_world_size",
        "/is_paused",
        "/is_sleeping",
        "/kv_event_sources",
        "/load",
        "/metrics",
        "/server_info",
        "/v1/models",
        "/v1/responses/{response_id}",
        "/version",
        "/weight_info",
    }
    assert {route.path for route in routes if not isinstance(route, HealthRoute)} == information
    assert all(
        isinstance(route, HealthRoute)
        for route in app.router.routes
        if getattr(route, "path", "") in ("/health", "/ping")
    )


def test_vllms_invocations_route_has_the_expected_wrappers() -> None:
    app = FastAPI(openapi_url=None)
    app.state.args = types.SimpleNamespace()
    upstream._http.register_api_routers(app.state.args, app, ("generate",), None)
    install_sagemaker_routes(app, loading=False)
    (route,) = (each for each in app.router.routes if getattr(each, "path", "") == "/invocations")
    assert [each.dependency.__name__ for each in route.dependencies] == ["validate_json_request"]
    inner = inspect.getclosurevars(route.endpoint).nonlocals["func"]
    dispatch = inspect.getclosurevars(inner).nonlocals["dispatch"]
    assert (dispatch.__module__, dispatch.__name__) == (
        "vllm.entrypoints.serve.sagemaker.api_router",
        "invocations",
    )
    assert parameters(dispatch) == ["raw_request"]


@pytest.mark.parametrize(("verdict", "healthy", "statuses"), [
    (Verdict.GENERATING, True, (200, 200, 200)),
    (Verdict.STALLED, False, (503, 200, 200)),
    (Verdict.DEAD, False, (503, 503, 1013)),
])  # fmt: skip
async def test_the_readiness_middleware_precedes_the_users_middleware(
    verdict: Verdict, healthy: bool, statuses: tuple[int, int, int]
) -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/ping", lambda raw_request: None, methods=["GET"])
    upstream._http.guard_health(app, lambda: healthy)
    sent: list[int] = []

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.extend(message[name] for name in ("status", "code") if name in message)

    readiness = ReadinessMiddleware(
        middleware,
        is_healthy=lambda: healthy,
        is_health_check=lambda scope: reaches_health(app, scope),
        verdict=lambda: verdict,
    )
    for kind, path in (("http", "/ping"), ("http", "/v1/models"), ("websocket", "/v1/realtime")):
        await readiness({"type": kind, "method": "GET", "path": path}, None, send)
    assert tuple(sent) == statuses


def test_request_fields_contain_the_guides_payloads() -> None:
    fields = upstream.request_fields()
    origin = SettingOrigin(PayloadSource.SPEC, "payload")
    for level in Level:
        for model_type in ModelType:
            assert check_payload(payload_for(level, model_type), origin, fields, model_type) == []
    assert len(check_payload({"prompt": "x", "promptt": "y"}, origin, fields, None)) == 1

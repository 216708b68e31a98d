"""Every form of a path that leads to one of vLLM's health checks is recognized."""

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Mount

from tests.unit.worker.handlers_served import Served
from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.serving.health_route import guarded, reaches_health


class Health:
    """vLLM's health checks, guarded, below a root path. ``healthy`` stands for the verdict."""

    def __init__(self, root_path: str = "") -> None:
        self.healthy = True
        self.app = app = FastAPI()
        app.root_path = root_path

        async def health(raw_request: Request) -> Response:
            return Response("vLLM's own")

        self.function = health
        app.router.routes.append(Mount("/metrics", FastAPI()))
        app.add_api_route("/health", health, methods=["GET"])
        app.add_api_route("/ping", health, methods=["POST"])
        app.add_api_route("/ping", health, methods=["GET"])
        app.add_api_route("/v1/models", lambda: "vLLM's models", methods=["GET"])
        routes = app.router.routes
        for at, route in enumerate(routes):
            if isinstance(route, APIRoute) and route.path != "/v1/models":
                routes[at] = guarded(route, lambda: self.healthy)

    async def request(self, method: str, path: str) -> tuple[int, bool]:
        """The status, and whether the request is recognized as a health check."""
        recognized: list[bool] = []

        async def app(scope: dict[str, object], receive: object, send: object) -> None:
            recognized.append(reaches_health(self.app, dict(scope)))
            await self.app(scope, receive, send)  # type: ignore[arg-type]

        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            status = (await client.request(method, path)).status_code
        return status, recognized[0]


@pytest.mark.parametrize("root_path", ["", "/prod", "/a/b"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/ping"),
        ("POST", "/ping"),
        ("GET", "/health"),
        ("GET", "/ping/"),
        ("POST", "/ping//"),
        ("GET", "/health///"),
        ("GET", "/%70ing"),
        ("GET", "/ping%2F"),
        ("GET", "/health?deep=1"),
    ],
)
async def test_every_form_of_a_health_path_follows_the_verdict(
    method: str, path: str, root_path: str
) -> None:
    health = Health(root_path)
    for prefix in {"", root_path}:
        health.healthy = True
        assert await health.request(method, prefix + path) == (200, True)
        health.healthy = False
        assert await health.request(method, prefix + path) == (503, True)


@pytest.mark.parametrize("path", ["/pingx", "/x/ping", "//ping", "/ping/x", "/v1/models", "/metrics/ping"])
async def test_other_paths_are_not_health_checks(path: str) -> None:
    health = Health("/prod")
    health.healthy = False
    for prefix in ("", "/prod"):
        status, recognized = await health.request("GET", prefix + path)
        assert (status, recognized) == (200 if path == "/v1/models" else 404, False)


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/ping"), ("POST", "/health"), ("HEAD", "/health/")])
async def test_a_method_that_vllm_does_not_allow_is_not_a_success(method: str, path: str) -> None:
    health = Health()
    health.healthy = False
    assert await health.request(method, path) == (405, False)


# --- together with handlers ---


@pytest.fixture
def behind(served: Served) -> Health:
    health = Health("/prod")
    served.manager.attach(health.app)
    return health


@pytest.mark.parametrize("path", ["/ping", "/ping/", "/prod/ping"])
async def test_a_custom_ping_handler_answers_every_form_of_its_path(
    served: Served, behind: Health, path: str
) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'custom'\n")
    await served.start()
    behind.healthy = False
    answer = await served.request(path, method="GET")
    assert (answer.status_code, answer.json()) == (200, "custom")
    assert (await served.request("/health", method="GET")).status_code == 503


async def test_vllms_own_health_function_as_the_ping_handler_follows_the_verdict(
    served: Served, behind: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    import handlers_served

    monkeypatch.setattr(handlers_served, "health", behind.function, raising=False)
    served.spec(ping="handlers_served:health")
    await served.start()
    assert served.manager.report().ping.handler == "handlers_served:health"
    assert served.manager.custom_endpoint(Route.PING) is None
    for path in ("/ping", "/prod/ping/"):
        behind.healthy = True
        assert (await served.request(path, method="GET")).text == "vLLM's own"
        behind.healthy = False
        assert (await served.request(path, method="GET")).status_code == 503

"""A running prober of routes with a fake HTTP server, on virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from vllmendpoint_api import RouteState, names
from vllmendpoint_worker.frontend.discovery import Scope
from vllmendpoint_worker.frontend.probing.prober import RouteProber
from vllmendpoint_worker.frontend.settings import SettingsFile
from vllmendpoint_worker.frontend.state import FrontendState

from .fake_frontend import FakeFrontend
from .virtual_time import LoopClock

__all__ = ["Probed", "now", "probing"]


class Probed:
    """A running prober."""

    def __init__(self, frontend: FakeFrontend, folder: Path, **health_check: Any) -> None:
        self.frontend = frontend
        self.folder = folder
        self.settings(**health_check)
        self.state = FrontendState(worker_version="1", clock=LoopClock())
        self.unresponsive: list[float] = []
        self.prober = RouteProber(
            frontend,
            self.state,
            SettingsFile({names.ENV_SETTINGS_DIR: str(folder)}),
            scope=Scope(),
            on_unresponsive=lambda: self.unresponsive.append(now()),
            clock=LoopClock(),
        )

    def settings(self, **health_check: Any) -> None:
        text = json.dumps({"healthCheck": health_check, "newField": 1})
        (self.folder / names.SETTINGS_FILE).write_text(text)

    @property
    def states(self) -> list[RouteState]:
        return [RouteState(route.state) for route in self.state.report().routes]

    async def until(self, condition: Callable[[], Any], seconds: float = 100.0) -> float:
        """Seconds until ``condition`` holds."""
        began = now()
        while not condition():
            assert now() - began < seconds, self.state.report()
            await asyncio.sleep(0.01)
        return now() - began


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def probing(frontend: FakeFrontend, folder: Path, **health_check: Any) -> AsyncIterator[Probed]:
    probed = Probed(frontend, folder, **health_check)
    task = asyncio.create_task(probed.prober.run())
    try:
        yield probed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

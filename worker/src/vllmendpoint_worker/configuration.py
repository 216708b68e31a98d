"""The configuration in force: loaded, merged, translated; kept while a newer one is refused.

Between the pure modules and the running worker: it publishes what it decides on the board, and hands a new
health check to whoever runs it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from vllmendpoint_api import (
    ConfigurationReport,
    ConfigurationState,
    ModelType,
    PayloadSource,
    Problem,
    Stage,
)

from .board import Board
from .config_sources import ConfigSources, Loaded
from .errors import ConfigurationRefusedError, TranslationError
from .merge import Refused, Resolved, merge
from .payload import Origin, RequestFields

__all__ = ["POLL_SECONDS", "Configuration", "model_conflict", "translation_problem"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often the files' ``stat`` is compared; a change is in force within this and the time of a reload."""


class Configuration:
    """``fields`` and ``model_type`` sharpen the check as they become known during the start."""

    def __init__(self, sources: ConfigSources, board: Board) -> None:
        self._sources = sources
        self._board = board
        self._signature: tuple[object, ...] = ()
        self.fields: RequestFields | None = None
        self.model_type: ModelType | None = sources.model_type()[0]
        self.resolved: Resolved | None = None

    @property
    def engine_arguments(self) -> list[str]:
        """The engine's arguments as given, without ``--config``."""
        return self._sources.engine_arguments

    async def accepted(self, check: Callable[[Loaded], Awaitable[None]]) -> Loaded:
        """Load until ``check`` accepts; while it refuses, stay up, say why, and watch the files."""
        while True:
            loaded = await self.load()
            try:
                await check(loaded)
            except ConfigurationRefusedError as error:
                self.refuse(error.problems, loaded, first=True)
            else:
                self._board.update(started=False, why_not_ready="the worker is starting")
                return loaded
            await self.changed()

    async def preflight(self) -> None:
        """What can be told before anything heavy is imported: the report says it within a second."""

        async def light(loaded: Loaded) -> None:
            self.check(loaded)

        await self.accepted(light)

    def check(self, loaded: Loaded) -> None:
        """Raises ConfigurationRefusedError."""
        self.merge(loaded)
        if (problem := model_conflict(loaded, self.engine_arguments)) is not None:
            raise ConfigurationRefusedError([problem])

    async def load(self) -> Loaded:
        """Read everything, off the loop. The signature is taken first: a change in between is seen later."""
        signature = await asyncio.to_thread(self._sources.signature)
        loaded = await asyncio.to_thread(self._sources.load)
        self._signature = signature
        return loaded

    def merge(self, loaded: Loaded) -> Resolved:
        """Raises ConfigurationRefusedError."""
        result = merge(loaded.sources, self.fields, self.model_type)
        if isinstance(result, Refused):
            raise ConfigurationRefusedError(result.problems)
        return result

    async def changed(self) -> None:
        """Return when a file has changed since the last load."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if await asyncio.to_thread(self._sources.signature) != self._signature:
                return

    def accept(self, resolved: Resolved, loaded: Loaded, notes: tuple[str, ...] = ()) -> None:
        """Put on the board and log what is in force now."""
        self.resolved = resolved
        self._board.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.RESOLVED,
                settings_hash=loaded.settings_hash,
                warnings=(*loaded.warnings, *notes)[:16],
            ),
            health_check=resolved.report(),
        )
        shown = "not shown, it may hold a secret" if resolved.confidential else dict(resolved.payload)
        logger.info(
            "Health check payload: source=%s level=%s mode=%s payload=%s",
            resolved.source,
            resolved.level,
            resolved.mode,
            shown,
        )

    def refuse(self, problems: tuple[Problem, ...], loaded: Loaded, *, first: bool) -> None:
        """Say what is wrong. At the first start the worker stays up, unready, and counts as started."""
        for problem in problems:
            logger.error(
                "Configuration refused (%s, %s): %s", problem.reason, problem.source, problem.message
            )
        self._board.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.REFUSED,
                settings_hash=loaded.settings_hash,
                problems=problems[:16],
                warnings=loaded.warnings[:16],
            )
        )
        if first:
            self._board.stage(Stage.REFUSED, problems[0].message if problems else "")
            self._board.update(started=True, why_not_ready="the configuration is refused")


def translation_problem(resolved: Resolved, error: TranslationError) -> Problem:
    """What vLLM refused, said of the setting the payload came from."""
    return resolved.origin.problem(str(error), "correct the payload", field=error.field)


def model_conflict(loaded: Loaded, argv: list[str]) -> Problem | None:
    """The model named twice and differently is refused, not merged (design, section 4)."""
    configured = loaded.engine_config.get("model")
    given = [
        argv[index + 1] if argument == "--model" else argument.removeprefix("--model=")
        for index, argument in enumerate(argv)
        if argument.startswith("--model=") or (argument == "--model" and index + 1 < len(argv))
    ]
    if configured is None or not given or str(configured) == given[-1]:
        return None
    origin = Origin(PayloadSource.CONFIG_FILE, "model")
    return origin.problem(
        "of the config file differs from the model that the worker was given",
        "remove it from the config file",
        reason="InvalidConfigFile",
    )

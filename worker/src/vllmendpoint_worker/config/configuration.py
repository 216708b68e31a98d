"""The configuration in force: loaded, merged, translated; kept while a newer one is refused.

Between the pure modules and the running worker: it publishes what it decides in the worker state, and hands
a new health check to whoever runs it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from vllmendpoint_api import (
    ConfigurationReport,
    ConfigurationState,
    FrontendMode,
    ModelType,
    Problem,
    Stage,
)
from vllmendpoint_worker.errors import ConfigurationRejectedError, TranslationError
from vllmendpoint_worker.options.conflicts import find_conflicts, negative_flags
from vllmendpoint_worker.options.rules import rejected_options
from vllmendpoint_worker.options.shared_options import ParserNames, share_options
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.process.run_blocking import run_blocking
from vllmendpoint_worker.serving.state import WorkerState
from vllmendpoint_worker.vllm_rejections import VLLMRejection, find_rejected_field, publishable_message

from .custom_default import CUSTOM_DEFAULT
from .handler_config import HandlerConfig
from .merge import ABSENT, Rejected, Resolved, merge
from .sources import ConfigSources, LoadedConfiguration

__all__ = ["POLL_SECONDS", "Configuration", "rejected_by_vllm", "translation_problem", "with_custom_default"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often the files' ``stat`` is compared; a change is in force within this and the time of a reload."""

_MAX_READS: Final = 5

RELOAD_POSTPONED: Final = (
    "The engine has not answered the changed health check yet: the one before stays in force, and the "
    "changed one is tried again. See status.workers for the engine; a longer healthCheck.timeoutSeconds, or "
    "a payload that asks for less, may help."
)


class Configuration:
    """``fields``, ``option_names``, ``parsers`` and ``model_type`` sharpen the check as they become known
    during the start.
    """

    def __init__(self, sources: ConfigSources, state: WorkerState) -> None:
        self._sources = sources
        self._state = state
        self._signature: dict[Path, object] = {}
        self._custom_default = CUSTOM_DEFAULT.version
        self.fields: RequestFields | None = None
        self.option_names: Mapping[str, str] = {}
        self.parsers: tuple[ParserNames, ParserNames] | None = None
        self.model_type: ModelType | None = sources.model_type()[0]
        self.resolved: Resolved | None = None

    async def wait_until_accepted(
        self, check: Callable[[LoadedConfiguration], Awaitable[None]]
    ) -> LoadedConfiguration:
        """Load until ``check`` accepts; while it refuses, stay up, say why, and watch the files."""
        while True:
            loaded = await self.load()
            try:
                await check(loaded)
            except ConfigurationRejectedError as error:
                self.publish_rejected(error.problems, loaded, first=True)
            else:
                self._state.update(started=False, not_ready_reason="the worker is starting")
                if self._state.snapshot.configuration.state == ConfigurationState.REJECTED:
                    self._state.update(configuration=ConfigurationReport(settings_hash=loaded.settings_hash))
                return loaded
            await self.wait_for_change()

    async def stay_rejected(self, problems: Sequence[Problem]) -> NoReturn:
        """Stay up, unready, and say why: only another pod mends this, no change of the files."""

        async def check(loaded: LoadedConfiguration) -> None:
            del loaded
            raise ConfigurationRejectedError(problems)

        await self.wait_until_accepted(check)
        raise AssertionError("the check accepts nothing")

    async def preflight(self, *, handlers: bool = True) -> LoadedConfiguration:
        """What can be told before anything heavy is imported: the report says it within a second.

        Without ``handlers``: before the model's data, which may hold them, is there.
        """

        async def light(loaded: LoadedConfiguration) -> None:
            self.check(loaded if handlers else replace(loaded, handler_problems=()))

        return await self.wait_until_accepted(light)

    def check(self, loaded: LoadedConfiguration) -> None:
        """Raises ConfigurationRejectedError."""
        self.merge(loaded)
        engine = loaded.engine
        problems = [
            *engine.problems,
            *engine.shared.problems,
            *rejected_options(engine.options, self.option_names, engine.frontend_mode),
            *find_conflicts(engine.options, self.option_names),
        ]
        if problems:
            raise ConfigurationRejectedError(problems)

    async def load(self) -> LoadedConfiguration:
        """Read everything, off the loop, and again where a file changed meanwhile, or more were named:
        settings and script come together. What changes without end is read as it is, and seen to change.
        """
        for _ in range(_MAX_READS):
            self._custom_default = CUSTOM_DEFAULT.version
            self._signature = await run_blocking(self._sources.fingerprints)
            loaded = self._with_parsed_options(await run_blocking(self._sources.load))
            if self._signature == await run_blocking(self._sources.fingerprints):
                break
        return loaded

    def pending_handlers(self) -> HandlerConfig | None:
        """The handlers that are wanted by a change which is not taken up yet; None where there is none, or it
        is refused. Reads files: not on the event loop.
        """
        if self._sources.fingerprints() == self._signature:
            return None
        loaded = self._sources.load()
        return None if loaded.handler_problems else loaded.handlers

    def _with_parsed_options(self, loaded: LoadedConfiguration) -> LoadedConfiguration:
        """With what the options mean to the engine's parsers, once these are imported."""
        if self.parsers is None:
            return loaded
        engine = loaded.engine
        arguments, warnings = negative_flags(engine.options, self.option_names)
        if engine.frontend_mode is FrontendMode.MANAGED:
            engine = replace(engine, shared=share_options(engine.options, self.option_names, *self.parsers))
        return replace(
            loaded,
            warnings=(*loaded.warnings, *warnings, *engine.shared.warnings),
            engine=replace(engine, arguments=(*arguments, *engine.arguments)),
        )

    def merge(self, loaded: LoadedConfiguration) -> Resolved:
        """Raises ConfigurationRejectedError."""
        result = merge(loaded.sources, self.fields, self.model_type)
        problems = result.problems if isinstance(result, Rejected) else ()
        if isinstance(result, Rejected) or loaded.handler_problems:
            raise ConfigurationRejectedError((*problems, *loaded.handler_problems))
        return result

    def watch(self, files: frozenset[Path]) -> None:
        """Files of imported handlers count from now on; that they do is no change. What else changed while
        they were imported is one still.
        """
        self._sources.watch(files)
        self._signature |= {path: file_fingerprint(path) for path in files - self._signature.keys()}

    async def wait_for_change(self) -> None:
        """Return when a file has changed since the last load, or a script has set another custom default."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if CUSTOM_DEFAULT.version != self._custom_default:
                return
            if await run_blocking(self._sources.fingerprints) != self._signature:
                return

    def publish_accepted(
        self, resolved: Resolved, loaded: LoadedConfiguration, notes: tuple[str, ...] = ()
    ) -> None:
        """Publish and log what is in force now."""
        self.resolved = resolved
        for warning in loaded.warnings:
            logger.warning("Configuration: %s", warning)
        self._state.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.RESOLVED,
                settings_hash=loaded.settings_hash,
                warnings=(*loaded.warnings, *resolved.warnings, *notes)[:16],
            ),
            health_check=resolved.report(),
        )
        shown = "not shown, it may hold a secret" if resolved.confidential else resolved.bounded_payload
        logger.info(
            "Health check payload: source=%s level=%s mode=%s payload=%s",
            resolved.source,
            resolved.level,
            resolved.mode,
            shown,
        )

    def publish_postponed(self) -> None:
        """Say that a changed health check waits for the engine; what was in force stays in force."""
        current = self._state.snapshot.configuration
        if RELOAD_POSTPONED not in current.warnings:
            logger.warning(RELOAD_POSTPONED)
            warnings = (RELOAD_POSTPONED, *current.warnings)[:16]
            self._state.update(configuration=current.model_copy(update={"warnings": warnings}))

    def publish_rejected(
        self, problems: tuple[Problem, ...], loaded: LoadedConfiguration, *, first: bool
    ) -> None:
        """Say what is wrong. At the first start the worker stays up, unready, and counts as started."""
        for problem in problems:
            logger.error(
                "Configuration refused (%s, %s): %s", problem.reason, problem.source, problem.message
            )
        self._state.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.REJECTED,
                settings_hash=loaded.settings_hash,
                problems=problems[:16],
                warnings=loaded.warnings[:16],
            )
        )
        if first:
            self._state.enter_stage(Stage.REJECTED, problems[0].message if problems else "")
            self._state.update(started=True, not_ready_reason="the configuration is refused")


def with_custom_default(
    loaded: LoadedConfiguration, payload: Mapping[str, Any] | None
) -> LoadedConfiguration:
    """``loaded`` as it is once the script that has set ``payload``, or nothing, is in force."""
    custom_default = ABSENT if payload is None else payload
    return replace(loaded, sources=replace(loaded.sources, custom_default=custom_default))


def translation_problem(resolved: Resolved, error: TranslationError) -> Problem:
    """What was refused, said of the setting the payload came from."""
    if error.refusal is not None:
        return rejected_by_vllm(resolved, error.refusal, error.field)
    return resolved.origin.violation(str(error), "correct the payload", field=error.field)


def rejected_by_vllm(resolved: Resolved, refusal: VLLMRejection, field: str = "") -> Problem:
    """vLLM's sentence, said of the setting the payload came from."""
    sentence = publishable_message(refusal, resolved.payload, confidential=resolved.confidential)
    return resolved.origin.vllm_rejection(field or find_rejected_field(refusal, resolved.payload), sentence)

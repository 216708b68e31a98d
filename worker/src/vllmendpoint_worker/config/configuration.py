"""Loads and checks the configuration, waits for changes of it, and publishes the result in the report.

A rejected change leaves the active configuration unchanged.
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
from .merge import merge
from .payload_sources import ABSENT
from .resolved import Resolved, Unresolved
from .sources import ConfigSources, LoadedConfiguration

__all__ = ["POLL_SECONDS", "Configuration", "rejected_by_vllm", "translation_problem", "with_custom_default"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""Interval between two checks of the files for changes."""

_MAX_READS: Final = 5

_MAX_REPORTED: Final = 16
"""Problems and warnings that a report contains."""

RELOAD_POSTPONED: Final = (
    "The engine has not answered the changed health check yet. The previous health check stays active, and "
    "the worker retries the changed one. Check the engine in status.workers, increase "
    "healthCheck.timeoutSeconds, or use a smaller payload."
)


class Configuration:
    """``fields``, ``option_names``, ``parsers`` and ``model_type`` become known during the start. Each makes
    the check stricter.
    """

    def __init__(self, sources: ConfigSources, state: WorkerState) -> None:
        self._sources = sources
        self._state = state
        self._fingerprints: dict[Path, object] = {}
        self._custom_default = CUSTOM_DEFAULT.version
        self.fields: RequestFields | None = None
        self.option_names: Mapping[str, str] = {}
        self.parsers: tuple[ParserNames, ParserNames] | None = None
        self.model_type: ModelType | None = sources.model_type()[0]
        self.resolved: Resolved | None = None

    async def wait_until_accepted(
        self, check: Callable[[LoadedConfiguration], Awaitable[None]]
    ) -> LoadedConfiguration:
        """Load until ``check`` accepts the configuration. After each rejection, report the problems and wait
        for a change.
        """
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
        """Report the problems and stay not ready. Only a new pod can fix them, no change of the files."""

        async def check(loaded: LoadedConfiguration) -> None:
            del loaded
            raise ConfigurationRejectedError(problems)

        await self.wait_until_accepted(check)
        raise AssertionError("the check rejects every configuration")

    async def preflight(self, *, handlers: bool = True) -> LoadedConfiguration:
        """Run all checks that need neither Dynamo nor vLLM, whose import takes many seconds.

        Without ``handlers``, skip the problems of handlers, because the model data may contain them and is
        not downloaded yet.
        """

        async def check(loaded: LoadedConfiguration) -> None:
            self.check(loaded if handlers else replace(loaded, handler_problems=()))

        return await self.wait_until_accepted(check)

    def check(self, loaded: LoadedConfiguration) -> None:
        """Raises ConfigurationRejectedError."""
        self.merge(loaded)
        engine = loaded.engine
        problems = [
            *engine.problems,
            *engine.shared.problems,
            *rejected_options(engine.options, self.option_names, engine.frontend_mode, kv=engine.kv_routing),
            *find_conflicts(engine.options, self.option_names),
        ]
        if problems:
            raise ConfigurationRejectedError(problems)

    async def load(self) -> LoadedConfiguration:
        """Read everything, again if a watched file changes meanwhile, so that the settings match the script.

        After ``_MAX_READS`` reads, the last one counts, and :meth:`wait_for_change` returns immediately.
        """
        for _ in range(_MAX_READS):
            self._custom_default = CUSTOM_DEFAULT.version
            self._fingerprints = await run_blocking(self._sources.fingerprints)
            loaded = self._with_parsed_options(await run_blocking(self._sources.load))
            if self._fingerprints == await run_blocking(self._sources.fingerprints):
                break
        return loaded

    def pending_handlers(self) -> HandlerConfig | None:
        """The handlers of a change that is not loaded yet; None if there is no change or it is invalid.

        Reads files, so call it off the event loop.
        """
        if self._sources.fingerprints() == self._fingerprints:
            return None
        loaded = self._sources.load()
        return None if loaded.handler_problems else loaded.handlers

    def _with_parsed_options(self, loaded: LoadedConfiguration) -> LoadedConfiguration:
        """Adds the arguments and warnings that depend on the engine's parsers, once they are imported."""
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
        problems = result.problems if isinstance(result, Unresolved) else ()
        if isinstance(result, Unresolved) or loaded.handler_problems:
            raise ConfigurationRejectedError((*problems, *loaded.handler_problems))
        return result

    def watch(self, files: frozenset[Path]) -> None:
        """Also watch files of imported handlers. Only later changes of them count as a change."""
        self._sources.watch(files)
        self._fingerprints |= {path: file_fingerprint(path) for path in files - self._fingerprints.keys()}

    async def wait_for_change(self) -> None:
        """Return when a watched file, or the payload that a script sets, differs from the last load."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if CUSTOM_DEFAULT.version != self._custom_default:
                return
            if await run_blocking(self._sources.fingerprints) != self._fingerprints:
                return

    def publish_accepted(
        self, resolved: Resolved, loaded: LoadedConfiguration, notes: tuple[str, ...] = ()
    ) -> None:
        """Report and log the active configuration. ``notes`` are further warnings."""
        self.resolved = resolved
        for warning in loaded.warnings:
            logger.warning("Configuration: %s", warning)
        self._state.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.RESOLVED,
                settings_hash=loaded.settings_hash,
                warnings=(*loaded.warnings, *resolved.warnings, *notes)[:_MAX_REPORTED],
            ),
            health_check=resolved.report(),
        )
        payload = "not shown, it may contain a secret" if resolved.confidential else resolved.bounded_payload
        logger.info(
            "Health check payload: source=%s level=%s mode=%s payload=%s",
            resolved.source,
            resolved.level,
            resolved.mode,
            payload,
        )

    def publish_postponed(self) -> None:
        """Report that the engine has not answered a changed health check yet."""
        current = self._state.snapshot.configuration
        if RELOAD_POSTPONED not in current.warnings:
            logger.warning(RELOAD_POSTPONED)
            warnings = (RELOAD_POSTPONED, *current.warnings)[:_MAX_REPORTED]
            self._state.update(configuration=current.model_copy(update={"warnings": warnings}))

    def publish_rejected(
        self, problems: tuple[Problem, ...], loaded: LoadedConfiguration, *, first: bool
    ) -> None:
        """Report and log the problems.

        At the ``first`` start the worker runs on, is not ready, and counts as started, so that the kubelet
        does not restart it.
        """
        for problem in problems:
            logger.error(
                "Configuration rejected (%s, %s): %s", problem.reason, problem.source, problem.message
            )
        self._state.update(
            configuration=ConfigurationReport(
                state=ConfigurationState.REJECTED,
                settings_hash=loaded.settings_hash,
                problems=problems[:_MAX_REPORTED],
                warnings=loaded.warnings[:_MAX_REPORTED],
            )
        )
        if first:
            self._state.enter_stage(Stage.REJECTED, problems[0].message if problems else "")
            self._state.update(started=True, not_ready_reason="the configuration is rejected")


def with_custom_default(
    loaded: LoadedConfiguration, payload: Mapping[str, Any] | None
) -> LoadedConfiguration:
    """``loaded`` with the payload that a script sets, or None if it sets none."""
    custom_default = ABSENT if payload is None else payload
    return replace(loaded, sources=replace(loaded.sources, custom_default=custom_default))


def translation_problem(resolved: Resolved, error: TranslationError) -> Problem:
    """The problem of the setting that the payload comes from."""
    if error.rejection is not None:
        return rejected_by_vllm(resolved, error.rejection, error.field)
    return resolved.origin.violation(str(error), resolved.origin.correction, field=error.field)


def rejected_by_vllm(resolved: Resolved, rejection: VLLMRejection, field: str = "") -> Problem:
    """The problem of the setting that the payload comes from, with vLLM's message."""
    message = publishable_message(rejection, resolved.payload, confidential=resolved.confidential)
    return resolved.origin.vllm_rejection(field or find_rejected_field(rejection, resolved.payload), message)

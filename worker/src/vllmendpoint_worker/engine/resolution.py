"""Resolves a loaded configuration: load its handlers, merge its settings, translate its payload.

A configuration is checked as a whole and activated as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllmendpoint_worker.config.configuration import (
    Configuration,
    translation_problem,
    with_custom_default,
)
from vllmendpoint_worker.config.resolved import Resolved
from vllmendpoint_worker.config.sources import LoadedConfiguration
from vllmendpoint_worker.errors import ConfigurationRejectedError, EngineStartError, TranslationError
from vllmendpoint_worker.handlers import Generation, HandlerManager, LoadedHandlers
from vllmendpoint_worker.probing.prober import ProbeSettings
from vllmendpoint_worker.probing.verdict import VerdictRules
from vllmendpoint_worker.serving.state import WorkerState

from .translate import Translated, Translator

__all__ = ["AcceptedConfiguration", "HandlerLoader", "Resolver"]


@dataclass(frozen=True, slots=True)
class AcceptedConfiguration:
    """A configuration that can be activated."""

    loaded: LoadedConfiguration
    resolved: Resolved
    translated: Translated
    handlers: Generation

    @property
    def probe(self) -> ProbeSettings:
        resolved, translated = self.resolved, self.translated
        rules = VerdictRules(resolved.timeout_seconds, resolved.failure_threshold, resolved.success_threshold)
        return ProbeSettings(
            translated.request, resolved.mode, resolved.period_seconds, rules, translated.expect
        )


class HandlerLoader:
    """Imports the handlers of a configuration, and watches their files from then on."""

    def __init__(self, configuration: Configuration, handlers: HandlerManager, state: WorkerState) -> None:
        self._configuration = configuration
        self._handlers = handlers
        self._state = state

    async def load(self, loaded: LoadedConfiguration) -> LoadedHandlers:
        """Runs the user's code if it has changed. Raises ConfigurationRejectedError."""
        if loaded.handlers is None:
            raise EngineStartError("the handlers' settings were not read")
        if (script := loaded.handlers.script) is not None and not self._state.is_registered:
            self._state.enter_stage(self._state.stage, f"importing {script.path.name}")
        handlers = await self._handlers.load(loaded.handlers)
        self._configuration.watch(self._handlers.imported_files)
        return handlers


class Resolver:
    """Available once the engine is loaded: ``translator`` needs the model's renderer."""

    def __init__(
        self,
        configuration: Configuration,
        handlers: HandlerManager,
        loader: HandlerLoader,
        translator: Translator,
    ) -> None:
        self._configuration = configuration
        self._handlers = handlers
        self._loader = loader
        self._translator = translator

    async def resolve(self, loaded: LoadedConfiguration) -> AcceptedConfiguration:
        """Raises ConfigurationRejectedError."""
        # Before the user's code runs: settings that are rejected anyway must not run it.
        self._configuration.merge(with_custom_default(loaded, None))
        generation = self._handlers.bind(await self._loader.load(loaded))
        if generation is not self._handlers.current:
            loaded = with_custom_default(loaded, generation.loaded.custom_default)
        resolved = self._configuration.merge(loaded)
        try:
            translated = await self._translator.translate(resolved.bounded_payload, resolved.expect)
        except TranslationError as error:
            raise ConfigurationRejectedError([translation_problem(resolved, error)]) from error
        return AcceptedConfiguration(loaded, resolved, translated, generation)

    async def translate(self, payload: Mapping[str, Any]) -> Translated:
        return await self._translator.translate(payload)

    def activate(self, accepted: AcceptedConfiguration) -> None:
        """Activate handlers and settings. The caller configures the prober."""
        self._handlers.activate(accepted.handlers)
        self._configuration.publish_accepted(accepted.resolved, accepted.loaded, accepted.translated.notes)

    @property
    def resolved(self) -> Resolved:
        """The active configuration. Raises EngineStartError before the first."""
        resolved = self._configuration.resolved
        if resolved is None:
            raise EngineStartError("no configuration is active yet")
        return resolved

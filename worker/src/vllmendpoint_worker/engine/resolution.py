"""From a configuration that was read to one in force: parse, load the handlers, merge, translate, ask.

A configuration is checked as a whole, and comes into force as a whole or not at all.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import (
    Configuration,
    rejected_by_vllm,
    translation_problem,
    with_custom_default,
)
from vllmendpoint_worker.config.merge import Resolved
from vllmendpoint_worker.config.sources import LoadedConfiguration
from vllmendpoint_worker.errors import ConfigurationRejectedError, EngineStartError, TranslationError
from vllmendpoint_worker.handlers import Generation, HandlerManager, LoadedHandlers
from vllmendpoint_worker.options.conflicts import parser_rejection
from vllmendpoint_worker.options.shared_options import engine_arguments
from vllmendpoint_worker.payload.model_type import reject_before_start
from vllmendpoint_worker.probing.prober import ProbeSettings
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.trial import wait_for_trial
from vllmendpoint_worker.probing.verdict import VerdictRules
from vllmendpoint_worker.serving.state import WorkerState
from vllmendpoint_worker.vllm_rejections import VLLMRejection

from .translate import Translated, Translator

__all__ = ["AcceptedConfiguration", "Resolver", "probe_settings"]


@dataclass(frozen=True, slots=True)
class AcceptedConfiguration:
    """One configuration, checked as a whole: it comes into force as a whole, or not at all."""

    loaded: LoadedConfiguration
    resolved: Resolved
    translated: Translated
    handlers: Generation


class Resolver:
    """``arguments`` are there once :meth:`check` accepts; ``translator`` is set once the engine stands."""

    def __init__(
        self,
        configuration: Configuration,
        manager: HandlerManager,
        state: WorkerState,
        shown: HealthPublisher,
    ) -> None:
        self._configuration = configuration
        self._manager = manager
        self._state = state
        self._shown = shown
        self.arguments: upstream.Arguments | None = None
        self.translator: Translator | None = None

    async def check(self, loaded: LoadedConfiguration) -> None:
        """With vLLM's field names, and with the engine's arguments."""
        self._configuration.check(loaded)
        argv = [
            *upstream.config_arguments(loaded.engine_config),
            *loaded.engine.arguments,
        ]
        try:
            shared = loaded.engine.shared
            self.arguments = await upstream.parse_arguments(
                [*argv, *await asyncio.to_thread(engine_arguments, shared)],
                self._configuration.model_type,
                shared.frontend,
            )
        except EngineStartError as error:
            raise ConfigurationRejectedError([parser_rejection(str(error), loaded.engine.options)]) from error
        handlers = await self._load_handlers(loaded)
        self._configuration.merge(with_custom_default(loaded, handlers.custom_default))

    def check_model(self, look: upstream.ModelInspection) -> None:
        """Before the engine starts. Raises ConfigurationRejectedError."""
        declared = self._configuration.model_type
        problem = reject_before_start(declared, look.runner, only_transcribes=look.only_transcribes)
        if problem is not None:
            raise ConfigurationRejectedError([problem])

    async def _load_handlers(self, loaded: LoadedConfiguration) -> LoadedHandlers:
        """Runs the customer's code, where something of it is new. Raises ConfigurationRejectedError."""
        if loaded.handlers is None:
            raise EngineStartError("the handlers' settings were not read")
        if (script := loaded.handlers.script) is not None and not self._state.is_registered:
            self._state.enter_stage(self._state.stage, f"importing {script.path.name}")
        handlers = await self._manager.load(loaded.handlers)
        self._configuration.watch(self._manager.imported_files)
        return handlers

    async def resolve(self, loaded: LoadedConfiguration) -> AcceptedConfiguration:
        """Load and bind, merge with what the script sets, translate. Raises ConfigurationRejectedError."""
        self._configuration.merge(with_custom_default(loaded, None))  # else the customer's code is not run
        generation = self._manager.bind(await self._load_handlers(loaded))
        if generation is not self._manager.current:
            loaded = with_custom_default(loaded, generation.loaded.custom_default)
        resolved = self._configuration.merge(loaded)
        try:
            translated = await self.translate(resolved.bounded_payload, resolved.expect)
        except TranslationError as error:
            raise ConfigurationRejectedError([translation_problem(resolved, error)]) from error
        return AcceptedConfiguration(loaded, resolved, translated, generation)

    async def translate(self, payload: Mapping[str, Any], expect: str | None = None) -> Translated:
        if self.translator is None:
            raise EngineStartError("the model's renderer is not there yet")
        return await self.translator.translate(payload, expect)

    def apply(self, accepted: AcceptedConfiguration) -> None:
        """Put an accepted configuration into force."""
        self._manager.activate(accepted.handlers)
        self._configuration.publish_accepted(accepted.resolved, accepted.loaded, accepted.translated.notes)
        if self._shown.prober is not None:
            self._shown.prober.configure(probe_settings(accepted.resolved, accepted.translated))

    async def watch(self) -> None:
        """Hot reload. A refused change leaves the last good configuration in force."""
        while True:
            await self._configuration.wait_for_change()
            loaded = await self._configuration.load()
            try:
                accepted = await self.resolve(loaded)
                answered = await self._answered(accepted)
            except ConfigurationRejectedError as error:
                self._configuration.publish_rejected(error.problems, loaded, first=False)
            else:
                if answered:
                    self.apply(accepted)

    async def _answered(self, accepted: AcceptedConfiguration) -> bool:
        """Raises ConfigurationRejectedError where vLLM refuses the question."""
        if (prober := self._shown.prober) is None:
            raise EngineStartError("the worker does not serve yet")
        answer = await wait_for_trial(
            prober,
            probe_settings(accepted.resolved, accepted.translated),
            upstream.rejection_of,
            self._configuration.wait_for_change,
            self._configuration.publish_postponed,
        )
        if isinstance(answer, VLLMRejection):
            raise ConfigurationRejectedError([rejected_by_vllm(accepted.resolved, answer)])
        return answer

    @property
    def resolved(self) -> Resolved:
        """The configuration in force, once there is one."""
        resolved = self._configuration.resolved
        if resolved is None:
            raise EngineStartError("no configuration is in force yet")
        return resolved


def probe_settings(resolved: Resolved, translated: Translated) -> ProbeSettings:
    rules = VerdictRules(resolved.timeout_seconds, resolved.failure_threshold, resolved.success_threshold)
    return ProbeSettings(translated.request, resolved.mode, resolved.period_seconds, rules, translated.expect)

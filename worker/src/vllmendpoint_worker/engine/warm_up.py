"""Accepts the first configuration: the engine must answer its probe, or at least not reject it."""

from collections.abc import Mapping
from typing import Any

from vllmendpoint_api import Level, Mode, Stage, payload_for
from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration, rejected_by_vllm
from vllmendpoint_worker.config.sources import LoadedConfiguration
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.probing.progress import PROGRESS
from vllmendpoint_worker.probing.trial import warm_up
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.state import WorkerState

from .resolution import AcceptedConfiguration, Resolver

__all__ = ["WarmUp"]


class WarmUp:
    """Resolves configurations and sends their probes as warm-up requests until one is accepted.

    An engine that gives no answer does not reject the configuration. The prober then reports it.
    """

    def __init__(
        self,
        engine: upstream.WorkerEngine,
        configuration: Configuration,
        resolver: Resolver,
        state: WorkerState,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._configuration = configuration
        self._resolver = resolver
        self._state = state
        self._clock = clock
        self._accepted: AcceptedConfiguration | None = None

    async def run(self) -> AcceptedConfiguration:
        """Returns the accepted configuration, which is active. Waits while the configuration is rejected."""
        await self._configuration.wait_until_accepted(self._check)
        assert self._accepted is not None, "the check sets it"
        self._state.enter_stage(Stage.WARMING)
        self._resolver.activate(self._accepted)
        return self._accepted

    async def _check(self, loaded: LoadedConfiguration) -> None:
        """Raises ConfigurationRejectedError."""
        accepted = await self._resolver.resolve(loaded)
        if accepted.resolved.mode is not Mode.DISABLED:
            self._state.enter_stage(Stage.WARMING)
            await self._send(accepted)
        self._accepted = accepted

    async def _send(self, accepted: AcceptedConfiguration) -> None:
        rejection = await warm_up(
            [self._engine.rank(rank) for rank in PROGRESS.request_ranks],
            accepted.translated.request,
            accepted.translated.warm_up,
            minimal=self._minimal_request,
            read_rejection=upstream.rejection_of,
            clock=self._clock,
        )
        if rejection is not None:
            raise ConfigurationRejectedError([rejected_by_vllm(accepted.resolved, rejection)])
        PROGRESS.forget_steps()

    async def _minimal_request(self) -> Mapping[str, Any]:
        payload = payload_for(Level.MINIMAL, self._configuration.model_type)
        return (await self._resolver.translate(payload)).request

"""Applies changes of settings and handlers while the worker serves."""

from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration, rejected_by_vllm
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.probing.ranks import RankProbers
from vllmendpoint_worker.probing.trial import wait_for_trial
from vllmendpoint_worker.vllm_rejections import VLLMRejection

from .resolution import AcceptedConfiguration, Resolver

__all__ = ["HotReload"]


class HotReload:
    """If a change is rejected, the previous configuration stays active."""

    def __init__(self, configuration: Configuration, resolver: Resolver, prober: RankProbers) -> None:
        self._configuration = configuration
        self._resolver = resolver
        self._prober = prober

    async def run(self) -> None:
        """Wait for changes and apply them, until cancelled."""
        while True:
            await self._configuration.wait_for_change()
            loaded = await self._configuration.load()
            try:
                accepted = await self._resolver.resolve(loaded)
                answered = await self._try(accepted)
            except ConfigurationRejectedError as error:
                self._configuration.publish_rejected(error.problems, loaded, first=False)
            else:
                if answered:
                    self._resolver.activate(accepted)
                    self._prober.configure(accepted.probe)

    async def _try(self, accepted: AcceptedConfiguration) -> bool:
        """Whether the engine accepts the probe; False if the settings have changed again.

        Raises ConfigurationRejectedError if vLLM rejects it.
        """
        result = await wait_for_trial(
            self._prober,
            accepted.probe,
            upstream.rejection_of,
            self._configuration.wait_for_change,
            self._configuration.publish_postponed,
        )
        if isinstance(result, VLLMRejection):
            raise ConfigurationRejectedError([rejected_by_vllm(accepted.resolved, result)])
        return result

"""Everything between the imports and the engine: accept a configuration, parse arguments, get the model."""

import asyncio
from collections.abc import MutableMapping
from pathlib import Path

from vllmendpoint_api import Stage
from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration, with_custom_default
from vllmendpoint_worker.config.sources import GUIDE_VARIABLES, LoadedConfiguration
from vllmendpoint_worker.errors import ConfigurationRejectedError, EngineStartError
from vllmendpoint_worker.options.arguments import clear_environment
from vllmendpoint_worker.options.conflicts import parser_rejection
from vllmendpoint_worker.options.disaggregation import (
    Role,
    connector_arguments,
    pooled_problem,
    role,
    transport_environment,
)
from vllmendpoint_worker.options.shared_options import engine_arguments
from vllmendpoint_worker.payload.model_type import RUNNER_POOLING, reject_before_start
from vllmendpoint_worker.serving.state import WorkerState

from .resolution import HandlerLoader
from .side_channel import check_side_channel
from .stages import PLUGINS

__all__ = ["Preparation"]


class Preparation:
    """``environ`` is changed: variables that Dynamo and vLLM must not read are removed, others are added."""

    def __init__(
        self,
        configuration: Configuration,
        loader: HandlerLoader,
        environ: MutableMapping[str, str],
        state: WorkerState,
    ) -> None:
        self._configuration = configuration
        self._loader = loader
        self._environ = environ
        self._state = state
        self._arguments: upstream.Arguments | None = None
        self._role: Role | None = None

    async def run(self) -> upstream.Arguments:
        """The arguments to start the engine with. Waits while the configuration is rejected.

        Raises EngineStartError, and any error of a failed download.
        """
        self._state.enter_stage(Stage.CONFIGURING)
        self._configuration.fields = upstream.request_fields()
        self._configuration.option_names = upstream.option_names()
        self._configuration.parsers = upstream.parsers()
        await self._configuration.wait_until_accepted(self._check)
        if (arguments := self._arguments) is None:
            raise EngineStartError("the engine's arguments were not parsed")
        clear_environment(self._environ, GUIDE_VARIABLES, PLUGINS)
        if self._role is not None and upstream.runs_on_cpu():
            self._environ.update(transport_environment(self._environ))
        if not await asyncio.to_thread(Path(arguments.dynamo.model).exists):
            self._state.enter_stage(Stage.DOWNLOADING, arguments.dynamo.model)
        try:
            arguments = await upstream.prepare_engine(
                arguments, lambda: self._state.enter_stage(Stage.STARTING_ENGINE), self._check_model
            )
        except ConfigurationRejectedError as error:
            await self._configuration.stay_rejected(error.problems)
        if (channel := upstream.side_channel(arguments)) is not None:
            check_side_channel(channel.host, channel.ports)
        return arguments

    async def _check(self, loaded: LoadedConfiguration) -> None:
        """Raises ConfigurationRejectedError."""
        self._configuration.check(loaded)
        engine = loaded.engine
        argv = [*upstream.config_arguments(loaded.engine_config), *engine.arguments]
        names = self._configuration.option_names
        self._role = role(engine.options, names, self._environ)
        if (problem := pooled_problem(self._role, self._configuration.model_type, pools=False)) is not None:
            raise ConfigurationRejectedError([problem])
        if self._role is not None:
            argv += connector_arguments(self._role, engine.options, names)
        try:
            argv += await asyncio.to_thread(engine_arguments, engine.shared)
            self._arguments = await upstream.parse_arguments(
                argv, self._configuration.model_type, engine.shared.frontend
            )
        except EngineStartError as error:
            raise ConfigurationRejectedError([parser_rejection(str(error), engine.options)]) from error
        handlers = await self._loader.load(loaded)
        self._configuration.merge(with_custom_default(loaded, handlers.custom_default))

    def _check_model(self, look: upstream.ModelInspection) -> None:
        """Raises ConfigurationRejectedError."""
        declared = self._configuration.model_type
        problem = pooled_problem(self._role, declared, pools=look.runner == RUNNER_POOLING)
        problem = problem or reject_before_start(
            declared, look.runner, only_transcribes=look.only_transcribes
        )
        if problem is not None:
            raise ConfigurationRejectedError([problem])

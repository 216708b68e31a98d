"""Starts the report port before the heavy imports, then runs the worker, and exits the process.

The process exits with ``os._exit``, because Dynamo's runtime sometimes aborts when the interpreter exits.
"""

import asyncio
import logging
import os
import signal
from types import FrameType
from typing import NoReturn

from vllmendpoint_api import Reason, Stage, names

from .config.configuration import Configuration
from .config.sources import GUIDE_VARIABLES, REMOVED_VARIABLES, ConfigSources
from .engine.engine_errors import ENGINE_ERRORS, download_failure
from .errors import EngineStartError
from .options.option_setting import find_option
from .options.sagemaker import ENV_SAGEMAKER_HOST, container_environment, model_path, strip_serve_command
from .packages.install import Packages
from .process.cpu_threads import ENV_THREADS, omp_threads
from .process.dynamo_log import log_filter
from .process.launch import (
    installed_version,
    log_to_stderr,
    port_from_environment,
    remove_empty_dynamo_variables,
)
from .process.listening import dynamo_hosts, network
from .process.shutdown import EXIT_FAILURE, terminate, write_termination_message
from .serving.report_server import start_report_server
from .serving.state import WorkerState

__all__ = ["start"]

logger = logging.getLogger(__name__)


def start(argv: list[str]) -> NoReturn:
    """Run the worker and exit: with 0 after a signal, else with another code."""
    log_to_stderr()
    state = WorkerState(worker_version=installed_version(), pod_uid=os.environ.get("POD_UID", ""))
    _exit_on_signals(state)
    server = start_report_server(state)
    configuration = Configuration(ConfigSources(os.environ, strip_serve_command(argv)), state)
    _prepare_environment()
    try:
        state.enter_stage(Stage.CONFIGURING)
        asyncio.run(_configure(configuration, state))
        state.enter_stage(Stage.IMPORTING)
        from .engine.worker import Worker  # noqa: PLC0415  (10-25 s: Dynamo, vLLM and torch)

        code, message = Worker(
            configuration,
            os.environ,
            state,
            server,
            host=os.environ.get(ENV_SAGEMAKER_HOST, ""),
            port=port_from_environment(names.ENV_SAGEMAKER_PORT, names.SAGEMAKER_PORT),
        ).run()
    except Exception as error:
        logger.exception("The worker failed")
        code, message = EXIT_FAILURE, _root_cause(state, error)
    terminate(code, message)


def _prepare_environment() -> None:
    """Remove variables that Dynamo and vLLM must not read, even while they are imported, and add others."""
    for name in GUIDE_VARIABLES:
        if (value := os.environ.pop(name, None)) is not None:
            REMOVED_VARIABLES[name] = value
    remove_empty_dynamo_variables(os.environ)
    os.environ.update(
        container_environment(os.environ) | log_filter(os.environ) | dynamo_hosts(os.environ, network())
    )
    if (threads := omp_threads(os.environ, len(os.sched_getaffinity(0)))) is not None:
        os.environ[ENV_THREADS] = str(threads)
        logger.info("The number of the engine's threads is set: %s=%d", ENV_THREADS, threads)


def _root_cause(state: WorkerState, error: Exception) -> str:
    stage = state.snapshot.stage
    failure = download_failure(stage.detail, error) if state.stage is Stage.DOWNLOADING else None
    return failure or ENGINE_ERRORS.root_cause(error)


async def _configure(configuration: Configuration, state: WorkerState) -> None:
    """Check the configuration, download from S3 and install packages, all before the heavy imports.

    The model's folder may contain handlers, and handlers may need packages, so the configuration is checked
    again after each step.
    """
    if os.environ.get(names.ENV_ARTIFACTS_URI, "").strip() or os.environ.get(names.ENV_MODEL_URI, "").strip():
        await _download(configuration, state)
    loaded = await configuration.preflight()
    await Packages(os.environ).wait_until_installed(
        lambda problem: configuration.publish_rejected((problem,), loaded, first=True),
        lambda line: state.enter_stage(Stage.CONFIGURING, line),
    )
    await configuration.preflight()


async def _download(configuration: Configuration, state: WorkerState) -> None:
    """Download the model and its artifacts from S3. Raises EngineStartError."""
    from .model_data.artifacts import Artifacts  # noqa: PLC0415  (half a second: boto3)

    loaded = await configuration.preflight(handlers=False)
    downloads = []
    if uri := os.environ.get(names.ENV_ARTIFACTS_URI, "").strip():
        downloads.append(Artifacts(uri, model_path(os.environ)))
    if uri := os.environ.get(names.ENV_MODEL_URI, "").strip():
        if (folder := find_option(loaded.engine.options, "--model")) is None:
            raise EngineStartError(f"{names.ENV_MODEL_URI} requires --model, the folder to download to")
        reason = Reason.MODEL_DOWNLOAD_FAILED
        downloads.append(Artifacts(uri, folder.value[-1], field="model.uri", reason=reason))
    for download in downloads:
        await download.wait_until_fetched(
            lambda problem: configuration.publish_rejected((problem,), loaded, first=True),
            lambda line: state.enter_stage(Stage.DOWNLOADING, line),
        )


def _exit_on_signals(state: WorkerState) -> None:
    """Until the worker is registered, SIGTERM and SIGINT end it immediately: it serves no requests."""

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        stage = state.snapshot.stage
        reached = f"{stage.name}, reached at {stage.since:%H:%M:%S} UTC"
        logger.info("A signal ends the start: signal=%d stage=%s since=%s", number, stage.name, stage.since)
        # The only trace of a start that the kubelet ends after worker.startupTimeoutSeconds.
        write_termination_message(f"The worker was terminated in the stage {reached}.")
        state.enter_stage(Stage.STOPPING)
        terminate(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)

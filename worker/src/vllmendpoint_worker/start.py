"""Starts the report port before the heavy imports, then runs the worker, and exits the process.

The process exits with ``os._exit``, because Dynamo's runtime sometimes aborts when the interpreter exits.
"""

import asyncio
import logging
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Final, NoReturn

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
from .process.listening import dynamo_hosts, network
from .process.shutdown import EXIT_FAILURE, terminate, write_termination_message
from .serving.report_server import ReportServer
from .serving.state import WorkerState

__all__ = ["ENV_REPORT_HOST", "start"]

logger = logging.getLogger(__name__)

ENV_REPORT_HOST: Final = "VLLMENDPOINT_REPORT_HOST"
"""Address of the report port. Default: all addresses, IPv4 and IPv6."""


def start(argv: list[str]) -> NoReturn:
    """Run the worker and exit: with 0 after a signal, else with another code."""
    _log_to_stderr()
    state = WorkerState(worker_version=_version(), pod_uid=os.environ.get("POD_UID", ""))
    _exit_on_signals(state)
    server = _start_report_server(state)
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
            port=_port(names.ENV_SAGEMAKER_PORT, names.SAGEMAKER_PORT),
        ).run()
    except Exception as error:
        logger.exception("The worker failed")
        code, message = EXIT_FAILURE, _root_cause(state, error)
    terminate(code, message)


def _start_report_server(state: WorkerState) -> ReportServer:
    server = ReportServer(
        state,
        os.environ.get(ENV_REPORT_HOST, ""),
        _port(names.ENV_REPORT_PORT, names.REPORT_PORT),
    )
    try:
        server.start()
    except OSError as error:
        terminate(EXIT_FAILURE, f"The report port cannot be bound: {error.strerror}.")
    logger.info("The report port answers: port=%d", server.port)
    return server


def _prepare_environment() -> None:
    """Remove variables that Dynamo and vLLM must not read, even while they are imported, and add others."""
    for name in GUIDE_VARIABLES:
        if (value := os.environ.pop(name, None)) is not None:
            REMOVED_VARIABLES[name] = value
    for name in [name for name, value in os.environ.items() if name.startswith("DYN_") and not value.strip()]:
        del os.environ[name]  # Dynamo exits if a number is empty
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


def _port(name: str, default: int) -> int:
    """A port from the environment. Exits the process if it is malformed."""
    raw = os.environ.get(name, "").strip()
    if not raw:
        return default
    if not raw.isdecimal() or len(raw) > 5 or int(raw) > 65535:
        terminate(EXIT_FAILURE, f"{name} is not a port number from 0 to 65535.")
    return int(raw)


class _OneLineFormatter(logging.Formatter):
    """One line for each record, including tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(super().format(record).splitlines())


def _log_to_stderr() -> None:
    """Configure this package's logger only: Dynamo and vLLM configure the root logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package_logger = logging.getLogger(__package__)
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False


def _version() -> str:
    try:
        return version("vllmendpoint-worker")
    except PackageNotFoundError:
        return "unknown"

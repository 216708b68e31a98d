"""First things first: the report port answers before anything heavy is imported.

Then one event loop runs the worker; the process ends here, through ``os._exit``: Dynamo's runtime sometimes
aborts at interpreter exit.
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
from .engine.engine_errors import ENGINE_ERRORS, download_failed
from .errors import EngineStartError
from .options.conflicts import find_option
from .options.sagemaker import ENV_SAGEMAKER_HOST, container_environment, model_path, strip_serve_command
from .packages.install import Packages
from .process.cpu_threads import ENV_THREADS, omp_threads
from .process.dynamo_log import log_filter
from .process.listening import dynamo_hosts, network
from .process.shutdown import terminate, write_termination_message
from .serving.report_server import ReportServer
from .serving.state import WorkerState

__all__ = ["ENV_REPORT_HOST", "ENV_SAGEMAKER_HOST", "port_of", "start"]

logger = logging.getLogger(__name__)

ENV_REPORT_HOST: Final = "VLLMENDPOINT_REPORT_HOST"
"""Address of the report port; default: all addresses, IPv4 and IPv6."""


def start(argv: list[str]) -> NoReturn:
    """Run the worker and end the process: 0 after a signal, else not."""
    _log_to_stderr()
    state = WorkerState(worker_version=_version(), pod_uid=os.environ.get("POD_UID", ""))
    _end_on_signals(state)
    server = ReportServer(
        state,
        os.environ.get(ENV_REPORT_HOST, ""),
        port_of(names.ENV_REPORT_PORT, names.REPORT_PORT),
    )
    try:
        server.start()
    except OSError as error:
        terminate(1, f"The report port cannot be bound: {error.strerror}.")
    logger.info("The report port %d answers", server.port)

    configuration = Configuration(ConfigSources(os.environ, strip_serve_command(argv)), state)
    for name in GUIDE_VARIABLES:  # read already; upstream must not see them, not even while it is imported
        if (value := os.environ.pop(name, None)) is not None:
            REMOVED_VARIABLES[name] = value
    for name in [name for name, value in os.environ.items() if name.startswith("DYN_") and not value.strip()]:
        del os.environ[name]  # Dynamo ends on an empty number
    os.environ.update(
        container_environment(os.environ) | log_filter(os.environ) | dynamo_hosts(os.environ, network())
    )
    if (threads := omp_threads(os.environ, len(os.sched_getaffinity(0)))) is not None:
        os.environ[ENV_THREADS] = str(threads)
        logger.info("The engine computes with %d threads (%s)", threads, ENV_THREADS)
    try:
        state.enter_stage(Stage.CONFIGURING)
        asyncio.run(_configured(configuration, state))
        state.enter_stage(Stage.IMPORTING)
        from .engine.worker import Worker  # noqa: PLC0415  (10-25 s: Dynamo, vLLM and torch)

        code, why = Worker(
            configuration,
            os.environ,
            state,
            server,
            host=os.environ.get(ENV_SAGEMAKER_HOST, ""),
            port=port_of(names.ENV_SAGEMAKER_PORT, names.SAGEMAKER_PORT),
        ).run()
    except Exception as error:
        logger.exception("The worker failed")
        code, why = 1, _cause(state, error)
    terminate(code, why)


def _cause(state: WorkerState, error: Exception) -> str:
    """The engine's own error, where ``error`` only says that there was one."""
    stage = state.snapshot.stage
    told = download_failed(stage.detail, error) if stage.name == Stage.DOWNLOADING else None
    return told or ENGINE_ERRORS.root_cause(error)


async def _configured(configuration: Configuration, state: WorkerState) -> None:
    """What can be told before anything heavy is imported; what is in S3: the model, and its data, which may
    hold handlers; and the packages that these need.
    """
    artifacts = os.environ.get(names.ENV_ARTIFACTS_URI, "").strip()
    model = os.environ.get(names.ENV_MODEL_URI, "").strip()
    if artifacts or model:
        from .model_data.artifacts import Artifacts  # noqa: PLC0415  (half a second: boto3)

        loaded = await configuration.preflight(handlers=False)
        wanted = [Artifacts(artifacts, model_path(os.environ))] if artifacts else []
        if model:
            folder = find_option(loaded.engine.options, "--model")
            if folder is None:
                raise EngineStartError(f"{names.ENV_MODEL_URI} needs --model, the folder to fetch it to")
            reason = Reason.MODEL_DOWNLOAD_FAILED
            wanted.append(Artifacts(model, folder.value[-1], field="model.uri", reason=reason))
        for each in wanted:
            await each.wait_until_fetched(
                lambda problem: configuration.publish_rejected((problem,), loaded, first=True),
                lambda line: state.enter_stage(Stage.DOWNLOADING, line),
            )
    loaded = await configuration.preflight()
    await Packages(os.environ).wait_until_installed(
        lambda problem: configuration.publish_rejected((problem,), loaded, first=True),
        lambda line: state.enter_stage(Stage.CONFIGURING, line),
    )
    await configuration.preflight()


def _end_on_signals(state: WorkerState) -> None:
    """Until the worker is registered nobody uses it: SIGTERM and SIGINT end it at once, with its children."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        stage = state.snapshot.stage
        reached = f"{stage.name}, reached at {stage.since:%H:%M:%S} UTC"
        logger.info("Signal %d during the start (%s): the worker ends", number, reached)
        # The kubelet ends a worker whose start-up budget is used up; this is all that is left of it.
        write_termination_message(f"It was ended in the stage {reached}.")
        state.enter_stage(Stage.STOPPING)
        terminate(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def port_of(name: str, default: int) -> int:
    """A port from the environment; a malformed one ends the process, for no report could be reached."""
    raw = os.environ.get(name, "").strip()
    if not raw:
        return default
    if not raw.isdecimal() or len(raw) > 5 or int(raw) > 65535:
        terminate(1, f"{name} is not a port number from 0 to 65535.")
    return int(raw)


class _OneLine(logging.Formatter):
    """One line a record, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(super().format(record).splitlines())


def _log_to_stderr() -> None:
    """Our own logger only: the root logger is upstream's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger(__package__)
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _version() -> str:
    try:
        return version("vllmendpoint-worker")
    except PackageNotFoundError:
        return "unknown"

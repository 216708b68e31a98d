"""Reads which handlers the user configures: in the VLLMEndpoint and in the environment variables of
``docs/guide/custom-handlers.md`` ("Environment variables").

No code of the user runs here, so the worker reports problems in the first second of its start.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from vllmendpoint_api import (
    SCRIPT_SOURCE,
    HandlerSettings,
    HandlerSource,
    Problem,
    Reason,
    names,
    script_digest,
)
from vllmendpoint_worker.options.sagemaker import DEFAULT_MODEL_PATH, ENV_MODEL_PATH, MODEL_FOLDER, model_path

from .handler_path import PATH_FORMATS, HandlerPath, PathKind, parse_handler_path

__all__ = [
    "DEFAULT_SCRIPT",
    "ENV_LOG_LEVEL",
    "ENV_SCRIPT",
    "HANDLER_VARIABLES",
    "MAX_SCRIPT_BYTES",
    "MIDDLEWARE_VARIABLES",
    "HandlerConfig",
    "HandlerReference",
    "Route",
    "Script",
    "read_handler_config",
]

ENV_SCRIPT: Final = "CUSTOM_SCRIPT_FILENAME"
ENV_LOG_LEVEL: Final = "SAGEMAKER_CONTAINER_LOG_LEVEL"
DEFAULT_SCRIPT: Final = "model.py"
MAX_SCRIPT_BYTES: Final = 1024 * 1024

_MAX_ERROR: Final = 512
_LOG_LEVELS: Final = ("ERROR", "INFO", "DEBUG", "WARNING", "CRITICAL")


class Route(StrEnum):
    PING = "/ping"
    INVOCATIONS = "/invocations"


HANDLER_VARIABLES: Final = {
    Route.PING: "CUSTOM_FASTAPI_PING_HANDLER",
    Route.INVOCATIONS: "CUSTOM_FASTAPI_INVOCATION_HANDLER",
}
MIDDLEWARE_VARIABLES: Final = (
    "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE",
    "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS",
    "CUSTOM_PRE_PROCESS",
    "CUSTOM_POST_PROCESS",
)
"""Variables of ``model-hosting-container-standards`` for code before and after every request."""


@dataclass(frozen=True, slots=True)
class HandlerReference:
    """A setting that names a function: its source, its name and the path in it."""

    source: HandlerSource
    field: str
    path: HandlerPath


@dataclass(frozen=True, slots=True)
class Script:
    """The handler script and its content."""

    path: Path
    source: HandlerSource
    """``Spec``, ``Environment`` (the variable with its name is set) or ``Default``."""
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return script_digest(self.content)


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """Everything that determines which handlers answer. Equal as long as nothing changes."""

    folder: Path
    script: Script | None = None
    script_path: Path = Path(DEFAULT_MODEL_PATH) / DEFAULT_SCRIPT
    """Path of the script in the model's folder. The script of the VLLMEndpoint replaces it."""
    references: Mapping[Route, HandlerReference] = field(default_factory=dict)
    middleware: tuple[HandlerReference, ...] = ()
    log_level: str = ""

    @property
    def watched(self) -> tuple[Path, ...]:
        """Files and folders to watch for changes before the code is loaded."""
        return (self.folder, self.script_path, *self._referenced_files())

    @property
    def files(self) -> tuple[Path, ...]:
        """The script and the other referenced files."""
        script = () if self.script is None else (self.script.path,)
        return (*script, *self._referenced_files())

    def all_references(self) -> list[HandlerReference]:
        """The handlers of both routes and the middleware."""
        return [*self.references.values(), *self.middleware]

    def _referenced_files(self) -> list[Path]:
        return [
            self.folder / reference.path.location
            for reference in self.all_references()
            if reference.path.kind is PathKind.FILE
        ]


def read_handler_config(
    settings: HandlerSettings, settings_dir: Path, environ: Mapping[str, str]
) -> tuple[HandlerConfig, tuple[Problem, ...]]:
    """The configured handlers, and all problems that are visible without running the user's code."""
    variables = {name: value.strip() for name, value in environ.items() if value.strip()}
    folder = Path(model_path(environ))
    problems: list[Problem] = []
    if ENV_MODEL_PATH in variables and (fault := _folder_fault(folder)):
        fix = "Mount the folder or remove the variable."
        problems.append(_environment_problem(Reason.SCRIPT_NOT_FOUND, ENV_MODEL_PATH, fault, fix))
    script_path = folder / variables.get(ENV_SCRIPT, DEFAULT_SCRIPT)
    script, script_problems = _read_script(settings, settings_dir, script_path, named=ENV_SCRIPT in variables)
    problems += script_problems
    references = _read_references(settings, variables, problems)
    middleware = _read_middleware(variables, problems)
    level = variables.get(ENV_LOG_LEVEL, "").upper()
    if level and level not in _LOG_LEVELS and not (level.isdecimal() and len(level) <= 4):
        fault, fix = "is not a log level", "Use ERROR, INFO or DEBUG."
        problems.append(_environment_problem(Reason.INVALID_ENVIRONMENT, ENV_LOG_LEVEL, fault, fix))
        level = ""
    config = HandlerConfig(folder, script, script_path, references, middleware, level)
    if script is None and not script_problems:
        problems += [
            _missing_script(reference)
            for reference in config.all_references()
            if reference.path.kind is PathKind.SCRIPT
        ]
    return config, tuple(problems)


def _read_references(
    settings: HandlerSettings, variables: Mapping[str, str], problems: list[Problem]
) -> dict[Route, HandlerReference]:
    """The spec has priority over the environment."""
    references: dict[Route, HandlerReference] = {}
    for route, in_spec, spec_field in (
        (Route.PING, settings.ping, "handlers.ping"),
        (Route.INVOCATIONS, settings.invocations, "handlers.invocations"),
    ):
        variable = HANDLER_VARIABLES[route]
        source, name, text = HandlerSource.SPEC, spec_field, in_spec
        if text is None:
            source, name, text = HandlerSource.ENVIRONMENT, variable, variables.get(variable)
        if text is not None and (reference := _parse_reference(source, name, text, problems)) is not None:
            references[route] = reference
    return references


def _read_middleware(variables: Mapping[str, str], problems: list[Problem]) -> tuple[HandlerReference, ...]:
    references = [
        _parse_reference(HandlerSource.ENVIRONMENT, variable, variables[variable], problems)
        for variable in MIDDLEWARE_VARIABLES
        if variable in variables
    ]
    return tuple(reference for reference in references if reference is not None)


def _folder_fault(folder: Path) -> str:
    """Why ``folder`` is not usable, or ""."""
    try:
        return "" if folder.is_dir() else "names a folder that does not exist"
    except OSError as error:
        return f"names a folder that cannot be read ({error.strerror})"


def _parse_reference(
    source: HandlerSource, name: str, text: str, problems: list[Problem]
) -> HandlerReference | None:
    path = parse_handler_path(text)
    if isinstance(path, HandlerPath):
        return HandlerReference(source, name, path)
    problems.append(_problem(Reason.INVALID_HANDLER, source, name, path, PATH_FORMATS))
    return None


def _read_script(
    settings: HandlerSettings, settings_dir: Path, script_path: Path, *, named: bool
) -> tuple[Script | None, list[Problem]]:
    """The script of the VLLMEndpoint, else the one in the model's folder, whose name a variable may set."""
    in_spec = settings.script_digest is not None
    source = HandlerSource.SPEC if in_spec else HandlerSource.ENVIRONMENT if named else HandlerSource.DEFAULT
    path = settings_dir / names.SCRIPT_FILE if in_spec else script_path
    name = "handlers.script" if in_spec else ENV_SCRIPT
    content, fault = _read_content(path, source)
    if fault is not None:
        return None, [_problem(Reason.SCRIPT_NOT_FOUND, source, name, *fault)]
    if content is None:
        return None, []
    script = Script(path, source, content)
    if in_spec and script.digest != settings.script_digest:
        fault = (
            "is not the version that the settings announce",
            "Wait: the kubelet updates the settings volume within a minute.",
        )
        return None, [_problem(Reason.SCRIPT_NOT_FOUND, source, name, *fault)]
    if error := _syntax_error(script):
        fault = (f"is not valid Python: {path.name}{error}", "Correct the script.")
        return None, [_problem(Reason.HANDLER_IMPORT_FAILED, source, name, *fault)]
    return script, []


def _read_content(path: Path, source: HandlerSource) -> tuple[bytes | None, tuple[str, str] | None]:
    """The content, or the fault and the fix. Neither, if nothing requires the script."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SCRIPT_BYTES + 1)
    except FileNotFoundError:
        if source is HandlerSource.DEFAULT:
            return None, None
        if source is HandlerSource.SPEC:
            fix = "Wait: the kubelet updates the settings volume within a minute."
            return None, ("does not exist in the settings volume yet", fix)
        return None, ("names a file that does not exist", f"Put the file in {MODEL_FOLDER}.")
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else "the file name is invalid"
        return None, (f"cannot be read ({cause})", "Allow the worker to read the file.")
    if len(content) > MAX_SCRIPT_BYTES:
        return None, (f"is larger than {MAX_SCRIPT_BYTES} bytes", "Move data out of the script.")
    return content, None


def _syntax_error(script: Script) -> str:
    """The line and the error, or ""."""
    try:
        ast.parse(script.content, filename=str(script.path))
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        return f"{line}: {message[:_MAX_ERROR]}"
    except (RecursionError, MemoryError):  # Python's parser raises them
        return " is nested too deeply"
    return ""


def _missing_script(reference: HandlerReference) -> Problem:
    fault = f"names a function of the script, but {MODEL_FOLDER} contains no script"
    fix = "Add the script or name another file."
    return _problem(Reason.SCRIPT_NOT_FOUND, reference.source, reference.field, fault, fix)


def _environment_problem(reason: Reason, variable: str, fault: str, fix: str) -> Problem:
    return _problem(reason, HandlerSource.ENVIRONMENT, variable, fault, fix)


def _problem(reason: Reason, source: HandlerSource, name: str, fault: str, fix: str) -> Problem:
    """As ``SettingOrigin.violation``, for the sources of handlers."""
    if source is HandlerSource.DEFAULT:
        message = f"The script {fault}. {fix}"
        return Problem(reason=reason, source=SCRIPT_SOURCE, field="script", message=message)
    return Problem(reason=reason, source=source.value, field=name[:128], message=f"{name} {fault}. {fix}")

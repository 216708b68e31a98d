"""What handlers the user asks for: the CR's settings and SageMaker's environment, read and checked.

Nothing of the user's code runs here, so it can be told in the worker's first second.
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

_LEVELS: Final = ("ERROR", "INFO", "DEBUG", "WARNING", "CRITICAL")


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
"""The linked guide's ("Customize Pre/Post Processing")."""


@dataclass(frozen=True, slots=True)
class HandlerReference:
    """One setting that names a function: where it was made, and what it names."""

    source: HandlerSource
    field: str
    path: HandlerPath


@dataclass(frozen=True, slots=True)
class Script:
    """The script, as it was read."""

    path: Path
    source: HandlerSource
    """``Spec``, ``Environment`` (its name was set) or ``Default``."""
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return script_digest(self.content)


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """Everything that decides which handlers answer. Equal where nothing changed."""

    folder: Path
    script: Script | None = None
    script_path: Path = Path(DEFAULT_MODEL_PATH) / DEFAULT_SCRIPT
    """Where the script is looked for; the CR's stands in for this one."""
    references: Mapping[Route, HandlerReference] = field(default_factory=dict)
    middleware: tuple[HandlerReference, ...] = ()
    log_level: str = ""

    @property
    def watched(self) -> tuple[Path, ...]:
        """What changes when the answer may change, before any of it is loaded."""
        return (self.folder, self.script_path, *self._referenced_files())

    @property
    def files(self) -> tuple[Path, ...]:
        """The script, and the other files that are named."""
        script = () if self.script is None else (self.script.path,)
        return (*script, *self._referenced_files())

    def _referenced_files(self) -> list[Path]:
        files = [
            Path(choice.path.where) for choice in self._all_references() if choice.path.kind is PathKind.FILE
        ]
        return [self.folder / file for file in files]

    def _all_references(self) -> list[HandlerReference]:
        return [*self.references.values(), *self.middleware]


def read_handler_config(
    settings: HandlerSettings, settings_dir: Path, environ: Mapping[str, str]
) -> tuple[HandlerConfig, tuple[Problem, ...]]:
    """What is asked for, and all that can be told to be wrong with it without running it."""
    set_ = {name: value.strip() for name, value in environ.items() if value.strip()}
    folder = Path(model_path(environ))
    problems: list[Problem] = []
    if ENV_MODEL_PATH in set_ and (what := _folder_error(folder)):
        problems.append(
            _problem(Reason.SCRIPT_NOT_FOUND, HandlerSource.ENVIRONMENT, ENV_MODEL_PATH,
                     what, "mount it or remove the variable")
        )  # fmt: skip
    script_path = folder / set_.get(ENV_SCRIPT, DEFAULT_SCRIPT)
    script, wrong = _read_script(settings, settings_dir, script_path, named=ENV_SCRIPT in set_)
    problems += wrong
    choices: dict[Route, HandlerReference] = {}
    for route, in_spec, field_ in (
        (Route.PING, settings.ping, "handlers.ping"),
        (Route.INVOCATIONS, settings.invocations, "handlers.invocations"),
    ):
        variable = HANDLER_VARIABLES[route]
        source, name, text = HandlerSource.SPEC, field_, in_spec
        if text is None:
            source, name, text = HandlerSource.ENVIRONMENT, variable, set_.get(variable)
        if text is not None and (choice := _parse_reference(source, name, text, problems)) is not None:
            choices[route] = choice
    middleware = [
        choice
        for variable in MIDDLEWARE_VARIABLES
        if variable in set_
        and (choice := _parse_reference(HandlerSource.ENVIRONMENT, variable, set_[variable], problems))
        is not None
    ]
    level = set_.get(ENV_LOG_LEVEL, "").upper()
    if level and level not in _LEVELS and not (level.isdecimal() and len(level) <= 4):
        problems.append(
            _problem(Reason.INVALID_ENVIRONMENT, HandlerSource.ENVIRONMENT, ENV_LOG_LEVEL,
                     "is no log level", "use ERROR, INFO or DEBUG")
        )  # fmt: skip
        level = ""
    wanted = HandlerConfig(folder, script, script_path, choices, tuple(middleware), level)
    if script is None:
        problems += [
            _missing_script(choice)
            for choice in [*choices.values(), *middleware]
            if choice.path.kind is PathKind.SCRIPT and not wrong
        ]
    return wanted, tuple(problems)


def _folder_error(folder: Path) -> str:
    """What keeps ``folder`` from being used, or ""."""
    try:
        return "" if folder.is_dir() else "names a folder that does not exist"
    except OSError as error:
        return f"names a folder that cannot be read ({error.strerror})"


def _parse_reference(
    source: HandlerSource, field_: str, text: str, problems: list[Problem]
) -> HandlerReference | None:
    path = parse_handler_path(text)
    if isinstance(path, HandlerPath):
        return HandlerReference(source, field_, path)
    problems.append(_problem(Reason.INVALID_HANDLER, source, field_, path, PATH_FORMATS))
    return None


def _read_script(
    settings: HandlerSettings, settings_dir: Path, script_path: Path, *, named: bool
) -> tuple[Script | None, list[Problem]]:
    in_spec = settings.script_digest is not None
    source = HandlerSource.SPEC if in_spec else HandlerSource.ENVIRONMENT if named else HandlerSource.DEFAULT
    path = settings_dir / names.SCRIPT_FILE if in_spec else script_path
    field_ = "handlers.script" if in_spec else ENV_SCRIPT
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SCRIPT_BYTES + 1)
    except FileNotFoundError:
        if source is HandlerSource.DEFAULT:
            return None, []
        what = "is not in the settings volume yet" if in_spec else "names a file that does not exist"
        fix = "it comes within a minute" if in_spec else f"put it in {MODEL_FOLDER}"
        return None, [_problem(Reason.SCRIPT_NOT_FOUND, source, field_, what, fix)]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        what = f"cannot be read ({why})"
        return None, [
            _problem(Reason.SCRIPT_NOT_FOUND, source, field_, what, "see that the worker may read it")
        ]
    if len(content) > MAX_SCRIPT_BYTES:
        what = f"is larger than {MAX_SCRIPT_BYTES} bytes"
        return None, [_problem(Reason.SCRIPT_NOT_FOUND, source, field_, what, "move data out of it")]
    script = Script(path, source, content)
    if in_spec and script.digest != settings.script_digest:
        what = "differs from what the settings announce"
        fix = "the volume is being refreshed; it comes within a minute"
        return None, [_problem(Reason.SCRIPT_NOT_FOUND, source, field_, what, fix)]
    try:
        ast.parse(content, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        what = f"is not Python: {path.name}{line}: {said[:512]}"
        return None, [_problem(Reason.HANDLER_IMPORT_FAILED, source, field_, what, "mend the script")]
    except (RecursionError, MemoryError):  # what the parser says of it
        what = f"is not Python: {path.name} is nested too deeply"
        return None, [_problem(Reason.HANDLER_IMPORT_FAILED, source, field_, what, "mend the script")]
    return script, []


def _missing_script(choice: HandlerReference) -> Problem:
    what = f"names a function of the script, and there is no script in {MODEL_FOLDER}"
    return _problem(
        Reason.SCRIPT_NOT_FOUND, choice.source, choice.field, what, "add the script or name another file"
    )


def _problem(reason: Reason, source: HandlerSource, field_: str, what: str, fix: str) -> Problem:
    if source is HandlerSource.DEFAULT:
        return Problem(
            reason=reason, source=SCRIPT_SOURCE, field="script", message=f"The script {what}: {fix}."
        )
    return Problem(reason=reason, source=source.value, field=field_[:128], message=f"{field_} {what}: {fix}.")

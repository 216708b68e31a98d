"""Reads which packages the user requests, with the settings of ``model-hosting-container-standards``.

``requirements.txt`` in the model's folder, with wheels in ``requirements/`` next to it. ``STANDARD_PIP_ARGS``
replaces both. ``STANDARD_AUTO_INSTALL_REQ`` disables the installation. :mod:`.install` installs the packages.
"""

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllmendpoint_api import SCRIPT_SOURCE, HandlerSource, Problem, Reason
from vllmendpoint_worker.options.sagemaker import MODEL_FOLDER, model_path
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint

__all__ = [
    "ENV_ARGUMENTS",
    "ENV_ENABLED",
    "MISSING_MODULE",
    "REQUIREMENTS_FILE",
    "WHEELS_FOLDER",
    "Requirements",
    "read_requirements",
]

ENV_ENABLED: Final = "STANDARD_AUTO_INSTALL_REQ"
ENV_ARGUMENTS: Final = "STANDARD_PIP_ARGS"
REQUIREMENTS_FILE: Final = "requirements.txt"
WHEELS_FOLDER: Final = "requirements"

MISSING_MODULE: Final = (
    f"Name its package in {REQUIREMENTS_FILE} in {MODEL_FOLDER} or in {ENV_ARGUMENTS}, from which the worker "
    "installs when it starts, or use a worker image that contains it."
)
"""The fix for a missing module."""

_MAX_MESSAGE: Final = 2048
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 10_000
"""Files of one folder that the digest covers."""

_ON: Final = ("true", "1", "yes", "on")
_OFF: Final = ("false", "0", "no", "off")
_CONFLICTING_OPTIONS: Final = (
    "--target", "--prefix", "--root", "--user", "--python",
    "--force-reinstall", "--ignore-installed", "--dry-run",
)  # fmt: skip
"""Options of ``pip install`` that conflict with the worker's: it uses its own folder, and does not change the
packages of the image.
"""
_INCLUDE: Final = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*([^\s#]+)")


@dataclass(frozen=True, slots=True)
class Requirements:
    """The packages to install. ``wheels``: a folder that pip searches first, without an index."""

    field: str
    """The setting: ``requirements.txt`` or ``STANDARD_PIP_ARGS``."""
    folder: Path
    """Relative paths start in this folder, which exists."""
    arguments: tuple[str, ...]
    """Arguments of ``pip install``."""
    wheels: Path | None
    digest: str
    """Changes if the packages to install may change."""

    def violation(self, fault: str, fix: str, reason: Reason = Reason.REQUIREMENTS_NOT_INSTALLED) -> Problem:
        source = HandlerSource.ENVIRONMENT.value if self.field == ENV_ARGUMENTS else SCRIPT_SOURCE
        return Problem(
            reason=reason,
            source=source,
            field=self.field,
            message=f"{self.field} {fault}. {fix}"[:_MAX_MESSAGE],
        )


def read_requirements(environ: Mapping[str, str]) -> Requirements | Problem | None:
    """The packages to install, None if there are none, or the problem of a setting."""
    enabled = environ.get(ENV_ENABLED, "").strip().lower()
    if enabled and enabled not in _ON + _OFF:
        return _variable_problem(ENV_ENABLED, "is not a boolean", "Use true or false.")
    if enabled in _OFF:
        return None
    folder = Path(model_path(environ))
    folder = folder if _exists(folder) else Path.cwd()
    if text := environ.get(ENV_ARGUMENTS, "").strip():
        return _from_pip_arguments(text, folder)
    return _from_model_folder(folder)


def _from_pip_arguments(text: str, folder: Path) -> Requirements | Problem:
    try:
        arguments = tuple(shlex.split(text))
    except ValueError:
        return _variable_problem(ENV_ARGUMENTS, "contains an unclosed quotation mark", "Close it.")
    if (option := _find_conflicting_option(arguments)) is not None:
        fault = f"contains {option}, but the worker chooses the folder of the packages"
        return _variable_problem(ENV_ARGUMENTS, fault, "Remove that option.")
    options = [argument for argument in arguments if len(argument) > 2 and argument[0] == "-"]
    attached = (argument.partition("=")[2] if argument[1] == "-" else argument[2:] for argument in options)
    named = [*arguments, *attached]
    digest = _digest(arguments, folder, _referenced_files(named, folder))
    return Requirements(ENV_ARGUMENTS, folder, arguments, None, digest)


def _from_model_folder(folder: Path) -> Requirements | Problem | None:
    path = folder / REQUIREMENTS_FILE
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            size = len(file.read(MAX_FILE_BYTES + 1))
        wheels = folder / WHEELS_FOLDER if (folder / WHEELS_FOLDER).is_dir() else None
    except OSError as error:
        fault, fix = f"cannot be read ({error.strerror})", f"Allow the worker to read it in {MODEL_FOLDER}."
        return Requirements(REQUIREMENTS_FILE, folder, (), None, "").violation(fault, fix)
    if size > MAX_FILE_BYTES:
        fault, fix = f"is larger than {MAX_FILE_BYTES} bytes", "Remove everything that is not a requirement."
        return Requirements(REQUIREMENTS_FILE, folder, (), None, "").violation(fault, fix)
    arguments = ("-r", str(path))
    files = [path, *([wheels] if wheels is not None else [])]
    return Requirements(REQUIREMENTS_FILE, folder, arguments, wheels, _digest(arguments, folder, files))


def _find_conflicting_option(arguments: Sequence[str]) -> str | None:
    """The first option that conflicts with the worker's. pip also accepts unique prefixes of an option."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in ("--pre", "--r", "--"):  # not a prefix of a conflicting option
            continue
        if name.startswith("--"):
            if (
                found := next((place for place in _CONFLICTING_OPTIONS if place.startswith(name)), None)
            ) is not None:
                return found
        elif re.match(r"-[a-zA-Z]*?[tI]", name) and not re.match(r"-[ricef]", name):
            return "-I" if "I" in name.partition("t")[0] else "-t"
    return None


def _referenced_files(arguments: Sequence[str], folder: Path) -> list[Path]:
    """Arguments that are files or folders. Their content is part of the request."""
    return [folder / argument for argument in arguments if argument and _exists(folder / argument)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the file name is invalid
        return False


def _digest(arguments: Sequence[str], folder: Path, paths: Sequence[Path]) -> str:
    """Of the arguments and all files that they refer to: text files by content, others by ``stat``."""
    lines = [repr(tuple(arguments))]
    seen: set[Path] = set()
    for path in paths:
        lines += _digest_lines(path, folder, seen)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _digest_lines(path: Path, folder: Path, seen: set[Path]) -> Iterator[str]:
    if path in seen:
        return
    seen.add(path)
    if path.is_dir():
        for number, each in enumerate(sorted(path.rglob("*"))):
            if number >= MAX_FILES:
                return
            yield f"{each} {file_fingerprint(each)}"
    elif path.suffix in {".txt", ".in"}:
        try:
            text = path.read_text(errors="surrogateescape")
        except OSError:
            return
        yield f"{path} {text}"
        for line in text.splitlines():
            if found := _INCLUDE.match(line):
                yield from _digest_lines(path.parent / found[1], folder, seen)
            else:
                yield from _local_path_lines(line.split("#")[0].strip(), folder, seen)
    else:
        yield f"{path} {file_fingerprint(path)}"


def _local_path_lines(line: str, folder: Path, seen: set[Path]) -> Iterator[str]:
    """For a line that is a path, for example of a wheel."""
    path = folder / line.removeprefix("-e").strip()
    if line and ("/" in line or line.endswith((".whl", ".gz", ".zip"))) and _exists(path) and path != folder:
        yield from _digest_lines(path, folder, seen)


def _variable_problem(variable: str, fault: str, fix: str) -> Problem:
    return Problem(
        reason=Reason.INVALID_ENVIRONMENT,
        source=HandlerSource.ENVIRONMENT.value,
        field=variable,
        message=f"{variable} {fault}. {fix}",
    )

"""What the engine is started with: arguments, ``SM_VLLM_*``, and the model's folder if nobody names one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllmendpoint_api import FrontendMode, Problem, Reason, names

from . import sagemaker
from .conflicts import OptionSetting, find_option, from_arguments, from_config, from_environment
from .dynamo_numbers import invalid_numbers
from .rules import rejected_variables
from .shared_options import SharedOptions

__all__ = ["CommandLine", "EngineInvocation"]


@dataclass(frozen=True, slots=True)
class EngineInvocation:
    """What the engine gets, but for the config file."""

    arguments: tuple[str, ...] = ()
    options: tuple[OptionSetting, ...] = ()
    """Every option and where it is given, the higher place first, the config file last."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    missing_model: Path | None = None
    """The model's folder or file, where it is not there: once it is, all is well."""
    shared: SharedOptions = field(default_factory=SharedOptions)
    """What both servers get; known once the engine's parsers are imported."""
    frontend_mode: FrontendMode | None = None
    """None where no operator runs the worker."""


class CommandLine:
    """``environ`` and ``argv`` as the process was given them.

    Environment: ``SM_VLLM_*``, ``HF_MODEL_ID``, ``SAGEMAKER_MODEL_PATH`` (default ``/opt/ml/model``),
    ``VLLMENDPOINT_ARTIFACTS_URI`` (then that folder will not be empty).
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str]) -> None:
        given, self._warnings = sagemaker.options(environ)
        self._problems = [*sagemaker.invalid_port(given), *invalid_numbers(environ)]
        self._given = [
            *from_arguments(argv),
            *sagemaker.worker_variables(given, environ),
            *given,
            *from_environment(environ),
        ]
        self._arguments, self.config_file = _without_config(sagemaker.merge_arguments(given, argv))
        self._environ = dict(environ)
        self._folder = sagemaker.model_path(environ)
        self._will_be_filled = bool(environ.get(names.ENV_ARTIFACTS_URI, "").strip())

    def invocation(self, config: Mapping[str, Any], frontend: FrontendMode | None = None) -> EngineInvocation:
        """Reads the names in the model's folder, and whether there is one. ``frontend``: the mode of the
        endpoint's, None where no operator runs this worker.
        """
        given = (*self._given, *from_config(config))
        model: list[str] = []
        problems = [*self._problems, *rejected_variables(self._environ, frontend)]
        missing = None
        where = find_option(given, "--model")
        if where is not None:
            missing = self._missing_path(where)
            if missing is not None:
                problems.append(_missing_path_problem(where, missing))
        else:
            model = sagemaker.fallback_model(self._environ, self._folder, self._files())
            if not model:
                problems.append(sagemaker.missing_model())
        return EngineInvocation(
            (*model, *self._arguments),
            given,
            tuple(problems),
            tuple(self._warnings),
            missing,
            frontend_mode=frontend,
        )

    def _missing_path(self, model: OptionSetting) -> Path | None:
        """Upstream would look for it on the hub."""
        fetched = self._environ.get(names.ENV_MODEL_URI, "").strip() or self._will_be_filled
        path = Path(model.value[-1]) if model.value and model.value[-1].startswith("/") else None
        try:
            return path if path is not None and not fetched and not path.exists() else None
        except (OSError, ValueError):  # no name that a file can have
            return path

    def _files(self) -> list[str] | None:
        """None where the folder is still to be filled."""
        try:
            found = [entry.name for entry in Path(self._folder).iterdir() if entry.name[0] != "."]
        except (OSError, ValueError):  # no name that a folder can have
            found = []
        return found if found or not self._will_be_filled else None


def _missing_path_problem(model: OptionSetting, path: Path) -> Problem:
    told = "" if model.origin.confidential else f" ({path})"
    return model.origin.violation(
        f"names a path that is not there{told}",
        "correct the path, or put the model there",
        reason=Reason.INVALID_ENGINE_ARGUMENTS,
    )


def _without_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The engine's arguments without vLLM's ``--config FILE``, and the file."""
    rest: list[str] = []
    path: str | None = None
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            path = next(arguments, "")
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return rest, path

"""Combines the command line, ``SM_VLLM_*`` and the model's folder into the arguments of the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllmendpoint_api import FrontendMode, Problem, Reason, names

from . import sagemaker
from .dynamo_numbers import invalid_numbers
from .option_setting import OptionSetting, find_option, from_arguments, from_config, from_environment
from .rules import rejected_variables, routes_by_kv
from .shared_options import SharedOptions

__all__ = ["CommandLine", "EngineInvocation"]


@dataclass(frozen=True, slots=True)
class EngineInvocation:
    """What the engine is started with, besides the config file."""

    arguments: tuple[str, ...] = ()
    options: tuple[OptionSetting, ...] = ()
    """Every option of every place, in the order of places, the config file last."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    missing_model: Path | None = None
    """The folder or file of the model, if it does not exist. The problem disappears when it does."""
    shared: SharedOptions = field(default_factory=SharedOptions)
    """Known once the engine's parsers are imported."""
    frontend_mode: FrontendMode | None = None
    """None outside the operator."""
    kv_routing: bool = False
    """Whether the operator's frontends route by the KV caches of the workers."""


class CommandLine:
    """``environ`` and ``argv`` of the process.

    Environment: ``SM_VLLM_*``, ``HF_MODEL_ID``, ``SAGEMAKER_MODEL_PATH`` (default ``/opt/ml/model``),
    ``VLLMENDPOINT_ARTIFACTS_URI`` (if set, a download fills that folder).
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str]) -> None:
        variables, self._warnings = sagemaker.options(environ)
        self._problems = [*sagemaker.invalid_port(variables), *invalid_numbers(environ)]
        self._options = [
            *from_arguments(argv),
            *sagemaker.worker_variables(variables, environ),
            *variables,
            *from_environment(environ),
        ]
        self._arguments, self.config_file = _without_config(sagemaker.merge_arguments(variables, argv))
        self._environ = dict(environ)
        self._folder = sagemaker.model_path(environ)
        self._has_download = bool(environ.get(names.ENV_ARTIFACTS_URI, "").strip())

    def invocation(self, config: Mapping[str, Any], mode: FrontendMode | None = None) -> EngineInvocation:
        """``config``: the options of the config file; ``mode``: None outside the operator.

        Reads the names of the files in the model's folder.
        """
        options = (*self._options, *from_config(config))
        default_model: list[str] = []
        kv = routes_by_kv(self._environ)
        problems = [*self._problems, *rejected_variables(self._environ, mode, kv=kv)]
        missing = None
        model = find_option(options, "--model")
        if model is not None:
            missing = self._missing_path(model)
            if missing is not None:
                problems.append(_missing_path_problem(model, missing))
        else:
            default_model = sagemaker.fallback_model(self._environ, self._folder, self._files())
            if not default_model:
                problems.append(sagemaker.missing_model())
        return EngineInvocation(
            (*default_model, *self._arguments),
            options,
            tuple(problems),
            tuple(self._warnings),
            missing,
            frontend_mode=mode,
            kv_routing=kv,
        )

    def _missing_path(self, model: OptionSetting) -> Path | None:
        """An absolute path that does not exist. Dynamo would look for it on the hub."""
        downloaded = self._environ.get(names.ENV_MODEL_URI, "").strip() or self._has_download
        path = Path(model.value[-1]) if model.value and model.value[-1].startswith("/") else None
        try:
            return path if path is not None and not downloaded and not path.exists() else None
        except (OSError, ValueError):  # the file name is invalid
            return path

    def _files(self) -> list[str] | None:
        """Names in the model's folder; None if a download will fill it."""
        try:
            found = [entry.name for entry in Path(self._folder).iterdir() if entry.name[0] != "."]
        except (OSError, ValueError):  # the folder's name is invalid
            found = []
        return found if found or not self._has_download else None


def _missing_path_problem(model: OptionSetting, path: Path) -> Problem:
    shown = "" if model.origin.confidential else f" ({path})"
    fault = f"names a path that does not exist{shown}"
    fix = "Correct the path, or mount the model there."
    return model.origin.violation(fault, fix, reason=Reason.INVALID_ENGINE_ARGUMENTS)


def _without_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without vLLM's ``--config FILE``, and the file."""
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

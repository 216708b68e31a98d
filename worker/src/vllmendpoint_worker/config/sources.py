"""Reads all configuration: ``settings.json``, the environment, the config file and the command line.

:mod:`.merge` selects what applies. Every load reads everything again. The files are watched by their
``stat``, which follows symbolic links, so that an update of a ConfigMap volume (which replaces the link
``..data``) is detected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import HandlerSettings, ModelType, PayloadSource, Problem, Reason, WorkerSettings, names
from vllmendpoint_worker.options.command_line import CommandLine, EngineInvocation
from vllmendpoint_worker.options.option_setting import unsupported_values
from vllmendpoint_worker.options.rules import frontend_mode
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.setting_origin import SettingOrigin

from .custom_default import CUSTOM_DEFAULT
from .files import parse_json, parse_yaml_mapping, read_error, read_file
from .handler_config import HandlerConfig, read_handler_config
from .payload_sources import ABSENT, ENV_LEVEL, ENV_PAYLOAD, EnvironmentPayload, PayloadSources
from .probe_settings import ENV_ENABLED, ENV_INTERVAL, ENV_PAYLOAD_DISABLED
from .resolved import ORIGINS

__all__ = ["GUIDE_VARIABLES", "REMOVED_VARIABLES", "ConfigSources", "LoadedConfiguration"]

GUIDE_VARIABLES: Final = (ENV_PAYLOAD, ENV_LEVEL, ENV_PAYLOAD_DISABLED, ENV_ENABLED, ENV_INTERVAL)
"""The variables of ``docs/guide/health-check-payloads.md`` ("Environment variables"). The worker removes them
from the environment before it imports Dynamo, because some of their values crash Dynamo.
"""

REMOVED_VARIABLES: Final[dict[str, str]] = {}
"""The removed variables, for :mod:`vllmendpoint_worker.compat` in the worker's process."""

_CONFIG_KEYS: Final = ("health_check_level", "health_check_payload")
_MAX_HASH: Final = 128
_MAX_NAME: Final = 128
_MAX_UNKNOWN: Final = 16
_MAX_SETTINGS_PROBLEMS: Final = 8


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """The result of one load."""

    sources: PayloadSources
    settings_hash: str = ""
    warnings: tuple[str, ...] = ()
    handlers: HandlerConfig | None = None
    handler_problems: tuple[Problem, ...] = ()
    """Problems of ``handlers`` that are visible without running the user's code."""
    engine_config: Mapping[str, Any] = field(default_factory=dict)
    """The options of vLLM in the config file."""
    engine: EngineInvocation = field(default_factory=EngineInvocation)
    """The other arguments of the engine, and the origin of every option."""


class ConfigSources:
    """``environ`` and ``argv`` of the process; both are copied.

    Environment: ``VLLMENDPOINT_SETTINGS_DIR`` (default ``/etc/vllmendpoint``; without a ``settings.json``
    there the spec is empty), ``VLLMENDPOINT_CONFIG_FILE`` (or ``--config`` in ``argv``, not both).
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str] = ()) -> None:
        # Dynamo and pod templates treat an empty variable as unset.
        self._environment = {name: environ[name] for name in GUIDE_VARIABLES if environ.get(name, "").strip()}
        self._settings_dir = Path(environ.get(names.ENV_SETTINGS_DIR) or names.SETTINGS_DIR)
        self._settings_file = self._settings_dir / names.SETTINGS_FILE
        self._environ = dict(environ)
        self._handler_files: frozenset[Path] = frozenset()
        self._missing_model: Path | None = None
        """Watched until it exists."""
        self._model_type = environ.get(names.ENV_MODEL_TYPE, "").strip()
        self._command_line = CommandLine(environ, argv)
        from_argument = self._command_line.config_file
        from_variable = environ.get(names.ENV_CONFIG_FILE)
        self._two_files = bool(from_variable and from_argument)
        path = from_variable or from_argument
        self._config_file = Path(path) if path else None
        text = self._environment.get(ENV_PAYLOAD, "").strip()
        self._payload_file = Path(text[1:]) if text.startswith("@") else None

    def fingerprints(self) -> dict[Path, object]:
        """Changes when one of the watched files changes."""
        return {path: file_fingerprint(path) for path in self._watched_files()}

    def watch(self, files: frozenset[Path]) -> None:
        """Also watch files of imported handlers."""
        self._handler_files |= files

    def _watched_files(self) -> list[Path]:
        files = (self._settings_file, self._config_file, self._payload_file, self._missing_model)
        return [*(path for path in files if path is not None), *sorted(self._handler_files)]

    def model_type(self) -> tuple[ModelType | None, tuple[Problem, ...]]:
        """``VLLMENDPOINT_MODEL_TYPE``, None if it is unset, and problems."""
        if not self._model_type:
            return None, ()
        for model_type in ModelType:
            if model_type.value.lower() == self._model_type.lower():
                return model_type, ()
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, names.ENV_MODEL_TYPE, confidential=True)
        fault, fix = "is not a model type", "Use Chat, Completion or Embedding."
        return None, (origin.violation(fault, fix, reason=Reason.INVALID_ENVIRONMENT),)

    def load(self) -> LoadedConfiguration:
        """Read everything. Blocks for a few small file reads, so call it off the event loop."""
        settings, settings_hash, warnings, spec_problems = self._read_settings()
        handlers, handler_problems = read_handler_config(
            settings.handlers or HandlerSettings(), self._settings_dir, self._environ
        )
        self.watch(frozenset(handlers.watched))
        config, config_problems = self._read_config()
        sources = PayloadSources(
            spec=settings.health_check,
            spec_problems=tuple(spec_problems) + self.model_type()[1],
            environment={name: value for name, value in self._environment.items() if name != ENV_PAYLOAD},
            environment_payload=self._read_payload(),
            config_level=config.pop("health_check_level", ABSENT),
            config_payload=config.pop("health_check_payload", ABSENT),
            config_problems=tuple(config_problems),
            custom_default=CUSTOM_DEFAULT.value,
        )
        engine = self._command_line.invocation(config, frontend_mode(self._environ))
        self._missing_model = engine.missing_model
        return LoadedConfiguration(
            sources,
            settings_hash,
            (*warnings, *engine.warnings),
            handlers=handlers,
            handler_problems=handler_problems,
            engine_config=config,
            engine=engine,
        )

    def _read_settings(self) -> tuple[WorkerSettings, str, list[str], list[Problem]]:
        """The settings, their hash, warnings and problems."""
        origin = SettingOrigin(PayloadSource.SPEC, names.SETTINGS_FILE)
        reason = Reason.INVALID_SETTINGS
        try:
            data = read_file(self._settings_file)
        except FileNotFoundError:
            return WorkerSettings(), "", [], []
        except (OSError, ValueError) as error:
            fix = "Allow the worker to read the file."
            return WorkerSettings(), "", [], [origin.violation(read_error(error), fix, reason=reason)]
        value, fault = parse_json(data)
        if fault:
            fix = "Replace it with valid JSON."
            return WorkerSettings(), "", [], [origin.violation(fault, fix, reason=reason)]
        settings_hash = str(value.get("hash") or "")[:_MAX_HASH] if isinstance(value, dict) else ""
        try:
            settings = WorkerSettings.model_validate(value)
        except ValidationError as error:
            return WorkerSettings(), settings_hash, [], _settings_problems(error, origin, reason)
        return settings, settings.hash[:_MAX_HASH], _unknown_settings(settings), []

    def _read_payload(self) -> EnvironmentPayload | None:
        text = self._environment.get(ENV_PAYLOAD, "").strip()
        if not text:
            return None
        origin = ORIGINS[PayloadSource.ENVIRONMENT]
        data = text.encode(errors="surrogateescape")
        file = "" if self._payload_file is None else "names a file that "
        if self._payload_file is not None:
            try:
                data = read_file(self._payload_file)
            except (OSError, ValueError) as error:
                fault, fix = f"{file}{read_error(error)}", "Mount the file."
                return EnvironmentPayload(problem=origin.violation(fault, fix))
        value, fault = parse_json(data)
        if fault:
            fix = 'Use a JSON object such as {"prompt": "1"}, or @ and the path of a file that contains one.'
            return EnvironmentPayload(problem=origin.violation(f"{file}{fault}", fix))
        return EnvironmentPayload(value)

    def _read_config(self) -> tuple[dict[str, Any], list[Problem]]:
        origin = SettingOrigin(PayloadSource.CONFIG_FILE, names.CONFIG_FILE)
        reason = Reason.INVALID_CONFIG_FILE
        if self._two_files:
            fault = f"is set twice, by {names.ENV_CONFIG_FILE} and by --config"
            return {}, [origin.violation(fault, "Remove one of them.", reason=reason)]
        if self._config_file is None:
            return {}, []
        try:
            data = read_file(self._config_file)
        except (OSError, ValueError) as error:
            fix = "Mount the file, or remove the setting that names it."
            return {}, [origin.violation(read_error(error), fix, reason=reason)]
        value, syntax_fault = parse_yaml_mapping(data)
        if syntax_fault is not None:
            return {}, [origin.violation(*syntax_fault, reason=reason)]
        config, duplicates = _normalize_own_keys(value)
        if duplicates:
            return {}, duplicates
        if problems := unsupported_values({key: config[key] for key in config if key not in _CONFIG_KEYS}):
            return {}, problems
        return config, []


def _normalize_own_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """``config`` with underscores in the worker's own keys, and a problem for each key with two spellings.

    vLLM accepts ``-`` and ``_`` in a name.
    """
    spellings: dict[str, list[str]] = {}
    for key in config:
        name = key.replace("-", "_")
        spellings.setdefault(name if name in _CONFIG_KEYS else key, []).append(key)
    duplicates = [
        SettingOrigin(PayloadSource.CONFIG_FILE, name).violation(
            f"is set more than once, as {' and '.join(keys)}",
            "Keep only one of them.",
            reason=Reason.INVALID_CONFIG_FILE,
        )
        for name, keys in spellings.items()
        if len(keys) > 1
    ]
    return {name: config[keys[-1]] for name, keys in spellings.items()}, duplicates


def _settings_problems(error: ValidationError, origin: SettingOrigin, reason: Reason) -> list[Problem]:
    return [
        origin.violation(
            f"is not valid ({detail['type']})",
            "Correct it in the VLLMEndpoint.",
            reason=reason,
            field=".".join(str(part) for part in detail["loc"]),
        )
        for detail in error.errors(include_input=False, include_url=False)[:_MAX_SETTINGS_PROBLEMS]
    ]


def _unknown_settings(settings: WorkerSettings) -> list[str]:
    """A warning for each setting of a newer operator that this worker does not know."""
    extras = [*(settings.model_extra or {})]
    extras += [f"healthCheck.{name}" for name in settings.health_check.model_extra or {}]
    if (expect := settings.health_check.expect) is not None:
        extras += [f"healthCheck.expect.{name}" for name in expect.model_extra or {}]
    if (handlers := settings.handlers) is not None:
        extras += [f"handlers.{name}" for name in handlers.model_extra or {}]
    return [
        f"This version of the worker does not know the setting {name[:_MAX_NAME]}."
        for name in extras[:_MAX_UNKNOWN]
    ]

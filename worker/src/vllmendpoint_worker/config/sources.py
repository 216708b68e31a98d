"""Reads what the user set: the CR's ``settings.json``, the guide's environment variables, the config file.

Reading only: what wins is :mod:`merge`'s to say. Everything is read anew at every load; the files are
watched by their ``stat``, which follows symbolic links, so that a projected ConfigMap volume (which swaps a
``..data`` link) is noticed like a plain file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from vllmendpoint_api import HandlerSettings, ModelType, PayloadSource, Problem, Reason, WorkerSettings, names
from vllmendpoint_worker.options.command_line import CommandLine, EngineInvocation
from vllmendpoint_worker.options.conflicts import unsupported_values
from vllmendpoint_worker.options.rules import frontend_mode
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.setting_origin import SettingOrigin

from .custom_default import CUSTOM_DEFAULT
from .handler_config import HandlerConfig
from .handler_config import read_handler_config as read_handlers
from .merge import (
    ABSENT,
    ENV_ENABLED,
    ENV_INTERVAL,
    ENV_LEVEL,
    ENV_PAYLOAD,
    ENV_PAYLOAD_DISABLED,
    EnvironmentPayload,
    PayloadSources,
)

__all__ = ["GUIDE_VARIABLES", "REMOVED_VARIABLES", "ConfigSources", "LoadedConfiguration"]

GUIDE_VARIABLES: Final = (ENV_PAYLOAD, ENV_LEVEL, ENV_PAYLOAD_DISABLED, ENV_ENABLED, ENV_INTERVAL)
"""The guide's variables; taken out of the environment before upstream, which some values crash, can see
them.
"""

REMOVED_VARIABLES: Final[dict[str, str]] = {}
"""What was taken out, for :mod:`vllmendpoint_worker.compat` in the worker's own process."""

MAX_FILE_BYTES: Final = 1024 * 1024

_CONFIG_KEYS: Final = ("health_check_level", "health_check_payload")
_ENVIRONMENT: Final = SettingOrigin(PayloadSource.ENVIRONMENT, ENV_PAYLOAD, confidential=True)


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """One reading of everything."""

    sources: PayloadSources
    settings_hash: str = ""
    warnings: tuple[str, ...] = ()
    handlers: HandlerConfig | None = None
    """The handlers asked for; ``handler_problems`` is what can be told to be wrong with them unrun."""
    handler_problems: tuple[Problem, ...] = ()
    engine_config: Mapping[str, Any] = field(default_factory=dict)
    """The rest of the config file: vLLM's."""
    engine: EngineInvocation = field(default_factory=EngineInvocation)
    """What the engine gets besides the config file, and where each option is given."""


class ConfigSources:
    """``environ`` and ``argv`` as the process was given them; both are copied.

    Environment: ``VLLMENDPOINT_SETTINGS_DIR`` (default ``/etc/vllmendpoint``; without a ``settings.json``
    there the CR says nothing), ``VLLMENDPOINT_CONFIG_FILE`` (or ``--config`` among the engine's arguments,
    not both).
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str] = ()) -> None:
        # An empty variable is an unset one, as upstream has it and as pod templates write it.
        self._environment = {name: environ[name] for name in GUIDE_VARIABLES if environ.get(name, "").strip()}
        self._settings_dir = Path(environ.get(names.ENV_SETTINGS_DIR) or names.SETTINGS_DIR)
        self._settings_file = self._settings_dir / names.SETTINGS_FILE
        self._environ = dict(environ)
        self._handler_files: frozenset[Path] = frozenset()
        self._missing: Path | None = None
        """The model, which may come yet; one that is there is not watched."""
        self._model_type = environ.get(names.ENV_MODEL_TYPE, "").strip()
        self._command_line = CommandLine(environ, argv)
        flagged = self._command_line.config_file
        configured = environ.get(names.ENV_CONFIG_FILE)
        self._two_files = bool(configured and flagged)
        path = configured or flagged
        self._config_file = Path(path) if path else None
        raw = self._environment.get(ENV_PAYLOAD, "").strip()
        self._payload_file = Path(raw[1:]) if raw.startswith("@") else None

    def fingerprints(self) -> dict[Path, object]:
        """Changes when one of the files does: identity, time and size of what the names now lead to."""
        return {path: file_fingerprint(path) for path in self._watched_files()}

    def watch(self, files: frozenset[Path]) -> None:
        """Files of handlers that were imported: a change in one of them is a change too."""
        self._handler_files |= files

    def _watched_files(self) -> list[Path]:
        named = (self._settings_file, self._config_file, self._payload_file, self._missing)
        return [*(path for path in named if path is not None), *sorted(self._handler_files)]

    def model_type(self) -> tuple[ModelType | None, tuple[Problem, ...]]:
        """``VLLMENDPOINT_MODEL_TYPE``, None where it is to be told from the model."""
        if not self._model_type:
            return None, ()
        for model_type in ModelType:
            if model_type.value.lower() == self._model_type.lower():
                return model_type, ()
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, names.ENV_MODEL_TYPE, confidential=True)
        return None, (
            origin.violation(
                "is no type of model", "use Chat, Completion or Embedding", reason=Reason.INVALID_ENVIRONMENT
            ),
        )

    def load(self) -> LoadedConfiguration:
        """Read everything. Blocks for the time of a few small file reads; call it off the event loop."""
        settings, settings_hash, warnings, spec_problems = self._read_settings()
        handlers = settings.handlers or HandlerSettings()
        wanted, handler_problems = read_handlers(handlers, self._settings_dir, self._environ)
        self.watch(frozenset(wanted.watched))
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
        self._missing = engine.missing_model
        return LoadedConfiguration(
            sources,
            settings_hash,
            (*warnings, *engine.warnings),
            handlers=wanted,
            handler_problems=handler_problems,
            engine_config=config,
            engine=engine,
        )

    def _read_settings(self) -> tuple[WorkerSettings, str, list[str], list[Problem]]:
        origin = SettingOrigin(PayloadSource.SPEC, names.SETTINGS_FILE)
        reason = Reason.INVALID_SETTINGS
        try:
            data = _read(self._settings_file)
        except FileNotFoundError:
            return WorkerSettings(), "", [], []
        except (OSError, ValueError) as error:
            what, fix = _read_error(error), "see that the worker may read it"
            return WorkerSettings(), "", [], [origin.violation(what, fix, reason=reason)]
        value, wrong = _parse_json(data)
        if wrong:
            return WorkerSettings(), "", [], [origin.violation(wrong, "write it anew", reason=reason)]
        settings_hash = str(value.get("hash") or "")[:128] if isinstance(value, dict) else ""
        try:
            settings = WorkerSettings.model_validate(value)
        except ValidationError as error:
            return WorkerSettings(), settings_hash, [], _settings_problems(error, origin, reason)
        return settings, settings.hash[:128], _unknown_settings(settings), []

    def _read_payload(self) -> EnvironmentPayload | None:
        raw = self._environment.get(ENV_PAYLOAD, "").strip()
        if not raw:
            return None
        data = raw.encode(errors="surrogateescape")
        if self._payload_file is not None:
            try:
                data = _read(self._payload_file)
            except (OSError, ValueError) as error:
                return EnvironmentPayload(
                    problem=_ENVIRONMENT.violation(f"names a file that {_read_error(error)}", "mount it")
                )
        value, wrong = _parse_json(data)
        if wrong:
            where = "names a file that " if self._payload_file is not None else ""
            fix = 'give a JSON object such as {"prompt": "1"}, or @ and the path of a file that holds one'
            return EnvironmentPayload(problem=_ENVIRONMENT.violation(f"{where}{wrong}", fix))
        return EnvironmentPayload(value)

    def _read_config(self) -> tuple[dict[str, Any], list[Problem]]:
        origin = SettingOrigin(PayloadSource.CONFIG_FILE, names.CONFIG_FILE)
        reason = Reason.INVALID_CONFIG_FILE
        if self._two_files:
            what = f"is named twice, by {names.ENV_CONFIG_FILE} and by --config"
            return {}, [origin.violation(what, "name one config file", reason=reason)]
        if self._config_file is None:
            return {}, []
        try:
            data = _read(self._config_file)
        except (OSError, ValueError) as error:
            return {}, [origin.violation(_read_error(error), "mount it or do not name it", reason=reason)]
        value, wrong = _parse_yaml(data)
        if wrong is not None:
            return {}, [origin.violation(*wrong, reason=reason)]
        config, twice = _merge_spellings(value)
        if twice:
            return {}, [
                SettingOrigin(PayloadSource.CONFIG_FILE, name).violation(
                    what, "keep one of them", reason=reason
                )
                for name, what in twice.items()
            ]
        if problems := unsupported_values({key: config[key] for key in config if key not in _CONFIG_KEYS}):
            return {}, problems
        return config, []


def _merge_spellings(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """``config`` with our own names as we spell them (vLLM takes either spelling of a name), and what is
    wrong with those that are given in more than one.
    """
    keys: dict[str, list[str]] = {}
    for key in config:
        name = key.replace("-", "_")
        keys.setdefault(name if name in _CONFIG_KEYS else key, []).append(key)
    twice = {
        name: f"is given more than once, as {' and '.join(spellings)}"
        for name, spellings in keys.items()
        if len(spellings) > 1
    }
    return {name: config[spellings[-1]] for name, spellings in keys.items()}, twice


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(27, f"is larger than {MAX_FILE_BYTES} bytes")
    return data


def _read_error(error: OSError | ValueError) -> str:
    """What keeps a file from being read; never its name, which may come from a confidential value."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read"
    if isinstance(error, IsADirectoryError):
        return "is a directory"
    if isinstance(error, OSError) and error.errno == 27:
        return f"is larger than {MAX_FILE_BYTES} bytes"
    return "cannot be read"


def _parse_json(data: bytes) -> tuple[Any, str]:
    """The value and "", or None and what is wrong: where, never what stands there."""
    try:
        value = json.loads(data.decode())
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "holds text that UTF-8 cannot carry (half of a surrogate pair)"
    except UnicodeDecodeError:
        return None, "is not UTF-8 text"
    except json.JSONDecodeError as error:
        return None, f"is not JSON (line {error.lineno}, column {error.colno})"
    except ValueError:
        return None, "holds a number of too many digits"
    except RecursionError:
        return None, "is nested too deeply"
    return value, ""


def _parse_yaml(data: bytes) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The mapping and None, or what is wrong with it and the fix: where, never what stands there."""
    try:
        value = yaml.safe_load(data.decode())
    except UnicodeDecodeError:
        return {}, ("is not UTF-8 text", "save it as UTF-8")
    # What PyYAML lets pass:
    except (ValueError, ArithmeticError, LookupError, AttributeError, RecursionError):
        what = "holds a value that YAML cannot read, or is nested too deeply"
        return {}, (what, "quote text that looks like a date or a number")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        return {}, (f"is not YAML{where}", "mend it there")
    if value is None:
        return {}, None
    if not isinstance(value, dict) or any(not isinstance(key, str) for key in value):
        return {}, ("is not a mapping of names to values", "write name: value")
    return value, None


def _settings_problems(error: ValidationError, origin: SettingOrigin, reason: Reason) -> list[Problem]:
    problems = []
    for detail in error.errors(include_input=False, include_url=False)[:8]:
        path = ".".join(str(part) for part in detail["loc"])
        problems.append(
            origin.violation(
                f"is not valid ({detail['type']})",
                "correct it in the VLLMEndpoint",
                reason=reason,
                field=path,
            )
        )
    return problems


def _unknown_settings(settings: WorkerSettings) -> list[str]:
    """Settings of a newer operator that this worker does not know."""
    extras = [*(settings.model_extra or {})]
    extras += [f"healthCheck.{name}" for name in settings.health_check.model_extra or {}]
    if (expect := settings.health_check.expect) is not None:
        extras += [f"healthCheck.expect.{name}" for name in expect.model_extra or {}]
    extras += [
        f"handlers.{name}" for name in (settings.handlers.model_extra if settings.handlers else None) or {}
    ]
    return [f"This version of the worker does not know the setting {name[:128]}." for name in extras][:16]

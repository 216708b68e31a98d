"""The settings of the probes: ``healthCheck`` of ``settings.json``, which changes without a restart."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vllmendpoint_api import (
    DEFAULT_FAILURE_THRESHOLD,
    DEFAULT_PERIOD_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    HealthCheckSettings,
    Mode,
    ModelType,
    WorkerSettings,
    names,
)
from vllmendpoint_worker.config.files import parse_json, read_error, read_file
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint

__all__ = ["ProbeRules", "SettingsFile", "declared_model_type"]

logger = logging.getLogger(__name__)

MAX_SECONDS: Final = 86400


@dataclass(frozen=True, slots=True)
class ProbeRules:
    """``period`` and ``timeout`` in seconds."""

    mode: Mode = Mode.ENFORCE
    period: float = float(DEFAULT_PERIOD_SECONDS)
    timeout: float = float(DEFAULT_TIMEOUT_SECONDS)
    failure_threshold: int = DEFAULT_FAILURE_THRESHOLD

    @property
    def probing(self) -> bool:
        return self.mode is not Mode.DISABLED

    @property
    def enforced(self) -> bool:
        """Whether the readiness depends on the probes."""
        return self.mode is Mode.ENFORCE

    @classmethod
    def of(cls, settings: HealthCheckSettings) -> "ProbeRules":
        default = cls()
        return cls(
            mode=Mode(settings.mode or default.mode),
            period=float(min(settings.period_seconds or DEFAULT_PERIOD_SECONDS, MAX_SECONDS)),
            timeout=float(min(settings.timeout_seconds or DEFAULT_TIMEOUT_SECONDS, MAX_SECONDS)),
            failure_threshold=settings.failure_threshold or DEFAULT_FAILURE_THRESHOLD,
        )


class SettingsFile:
    """Reads ``settings.json`` when it has changed. If it is missing, the defaults apply; if it is invalid,
    the last valid settings apply.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        folder = Path(environ.get(names.ENV_SETTINGS_DIR) or names.SETTINGS_DIR)
        self._path = folder / names.SETTINGS_FILE
        self._fingerprint: object = ()
        self.rules = ProbeRules()

    def reload(self) -> ProbeRules:
        """The current rules. Blocks for one ``stat``, and for one small file if it has changed."""
        fingerprint = file_fingerprint(self._path)
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._read()
        return self.rules

    def _read(self) -> None:
        try:
            value, fault = parse_json(read_file(self._path))
        except FileNotFoundError:
            self.rules = ProbeRules()
            return
        except OSError as error:
            value, fault = None, read_error(error)
        if not fault:
            try:
                self.rules = ProbeRules.of(WorkerSettings.model_validate(value).health_check)
            except ValidationError as error:
                fault = f"is not valid ({error.errors(include_input=False, include_url=False)[0]['type']})"
        if fault:
            logger.error("The settings are ignored: file=%s fault=%s", names.SETTINGS_FILE, fault)
        else:
            logger.info("The settings are active: %s", self.rules)


def declared_model_type(environ: Mapping[str, str]) -> ModelType | None:
    """``VLLMENDPOINT_MODEL_TYPE``; None if it is not set or not a type."""
    text = environ.get(names.ENV_MODEL_TYPE, "").strip().lower()
    return next((model_type for model_type in ModelType if model_type.value.lower() == text), None)

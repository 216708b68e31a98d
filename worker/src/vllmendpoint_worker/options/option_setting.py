"""An option of the engine with its value and origin, whether it is set on the command line, in the
environment or in the config file. Pure.

:func:`canonical_form` makes settings of one option comparable, however they are written.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from vllmendpoint_api import PayloadSource, Problem, Reason
from vllmendpoint_worker.json_values import find_unsupported_value
from vllmendpoint_worker.setting_origin import SettingOrigin

__all__ = [
    "FALSE",
    "MAX_NAME",
    "REASON_BY_SOURCE",
    "OptionSetting",
    "canonical_form",
    "destination",
    "find_option",
    "from_arguments",
    "from_config",
    "from_environment",
    "is_number",
    "unsupported_values",
]

FALSE: Final = ("false",)
"""The value of a disabled switch. An enabled switch has no value, as on a command line."""

MAX_NAME: Final = 96
"""Characters of an option's name in a message. ``Problem.field`` has at most 128."""

MAX_CHARACTERS: Final = 1024 * 1024
"""Largest value of an option in the config file, as JSON."""

_VARIABLES: Final = {
    "--dyn-tool-call-parser": "DYN_TOOL_CALL_PARSER",
    "--dyn-reasoning-parser": "DYN_REASONING_PARSER",
    "--custom-jinja-template": "DYN_CUSTOM_JINJA_TEMPLATE",
}
_SPEC_FIELDS: Final = {"--model": "model.uri", "--served-model-name": "model.name"}
REASON_BY_SOURCE: Final = {
    PayloadSource.SPEC: Reason.INVALID_ENGINE_ARGUMENTS,
    PayloadSource.ENVIRONMENT: Reason.INVALID_ENVIRONMENT,
    PayloadSource.CONFIG_FILE: Reason.INVALID_CONFIG_FILE,
}


@dataclass(frozen=True, slots=True)
class OptionSetting:
    """One option, set in one place."""

    option: str
    """As on a command line, without its value: ``--max-model-len``, ``-tp``."""
    value: tuple[str, ...]
    origin: SettingOrigin
    arguments: tuple[str, ...] = field(default=(), compare=False)
    """The command-line arguments that set the option; empty if it is set on the command line already, or if a
    switch is disabled.
    """

    def violation(self, fault: str, fix: str) -> Problem:
        """As ``SettingOrigin.violation``, with the reason of the source."""
        return self.origin.violation(fault, fix, reason=REASON_BY_SOURCE[self.origin.source])


def from_arguments(argv: Sequence[str]) -> list[OptionSetting]:
    """The options of a command line. The last value of a repeated option counts, as in ``argparse``.

    As in vLLM's parser, ``--json-arg.key 1`` sets a part of ``--json-arg``, and ``-O3`` is
    ``--optimization-level 3``.
    """
    values: dict[str, tuple[str, ...]] = {}
    option = ""
    for argument in argv:
        if argument.startswith("-") and not is_number(argument):
            name, equals, value = _expand_optimization_level(argument).partition("=")
            base, dot, key = name.partition(".")
            option = _normalize(base)
            values[option] = (*values.get(option, ()), f".{key}") if dot else ()
            if equals:
                values[option] += (value,)
        elif option:
            values[option] += (argument,)
    return [_argument_setting(option, value) for option, value in values.items()]


def _expand_optimization_level(argument: str) -> str:
    if not argument.startswith("-O"):
        return argument
    level = argument[2:].removeprefix("=")
    return f"--optimization-level={level}" if level else "--optimization-level"


def _argument_setting(option: str, value: tuple[str, ...]) -> OptionSetting:
    where = f"{_SPEC_FIELDS.get(option, 'engine.args')} ({option[:MAX_NAME]})"
    return OptionSetting(option, value, SettingOrigin(PayloadSource.SPEC, where))


def is_number(text: str) -> bool:
    """Whether ``text`` is a value, although it may start with a dash."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def from_environment(environ: Mapping[str, str]) -> list[OptionSetting]:
    """The options that Dynamo reads from the environment and the worker also passes to vLLM's HTTP server."""
    return [
        OptionSetting(option, (value,), SettingOrigin(PayloadSource.ENVIRONMENT, variable, confidential=True))
        for option, variable in _VARIABLES.items()
        if (value := environ.get(variable, "").strip())
    ]


def from_config(config: Mapping[str, Any]) -> list[OptionSetting]:
    """The options of a config file without :func:`unsupported_values`, as
    ``FlexibleArgumentParser.load_config_file`` of vLLM converts them. Null and an empty list set nothing.
    """
    return [
        OptionSetting(option, value, _config_origin(key), arguments=() if item is False else (option, *value))
        for key, item in config.items()
        if item is not None and item != []
        for option, value in [(_normalize(f"--{key}"), _config_value(item))]
    ]


def _config_origin(key: str) -> SettingOrigin:
    return SettingOrigin(PayloadSource.CONFIG_FILE, f"{key[:MAX_NAME]} of the config file")


def _config_value(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return () if value else FALSE
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (json.dumps(value),) if isinstance(value, dict) else (str(value),)


def unsupported_values(config: Mapping[str, Any]) -> list[Problem]:
    """A problem for each option of a config file whose value no command-line argument can represent."""
    problems = []
    for key, value in config.items():
        items = value if isinstance(value, list) else [value]
        items = [item for item in items if not isinstance(item, date)]  # vLLM converts a date with str()
        fault = find_unsupported_value(items, MAX_CHARACTERS, "characters", strict=False)
        if fault is not None:
            problems.append(_config_origin(key).violation(*fault, reason=Reason.INVALID_CONFIG_FILE))
    return problems


def find_option(settings: Iterable[OptionSetting], option: str) -> OptionSetting | None:
    """The first setting of ``option``."""
    return next((setting for setting in settings if setting.option == option), None)


def canonical_form(setting: OptionSetting, names: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The ``dest`` of the option in the engine's parser, and a value that does not depend on its notation.

    ``names``: option -> ``dest``, so that ``-tp`` is ``--tensor-parallel-size``; empty before the engine's
    parsers are imported. The value of an option of one letter may be attached: ``-n2`` is ``-n 2``.
    """
    option = _expand_prefix(setting.option, names)
    value = tuple(_canonical_token(token) for token in setting.value)
    if option not in names and not option.startswith("--") and option[:2] in names:
        return names[option[:2]], (_canonical_token(option[2:]), *value)
    known = names.get(option)
    if option.startswith("--no-") and not value and (known is None or known != destination(option)):
        return known or destination(f"--{option.removeprefix('--no-')}"), FALSE
    return known or destination(option), value


def _expand_prefix(option: str, names: Mapping[str, str]) -> str:
    """The parser accepts a unique prefix of an option."""
    if option in names or not option.startswith("--"):
        return option
    matches = {names[known]: known for known in names if known.startswith(option)}
    return next(iter(matches.values())) if len(matches) == 1 else option


def destination(option: str) -> str:
    """The default ``dest`` of an option in ``argparse``."""
    return option.lstrip("-").replace("-", "_")


def _normalize(option: str) -> str:
    return option.replace("_", "-")


def _canonical_token(token: str) -> str:
    """JSON in one notation: ``0.90`` is ``0.9``, and white space in an object is dropped."""
    try:
        return json.dumps(json.loads(token), sort_keys=True)
    except (ValueError, RecursionError):
        return token

"""The engine's options, wherever they are given: the same one with different values is refused, not merged.

Pure. The order of places is the design's (section 4): arguments (``spec.model`` and ``engine.args`` of a
VLLMEndpoint), ``SM_VLLM_*``, config file. Values that are equal are one value, whatever their spelling.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from vllmendpoint_api import MAX_DEPTH, PayloadSource, Problem, Reason
from vllmendpoint_worker.setting_origin import SettingOrigin

from .arguments import is_number

__all__ = [
    "FALSE",
    "REASON_BY_SOURCE",
    "OptionSetting",
    "canonical_form",
    "destination",
    "find_conflicts",
    "find_option",
    "from_arguments",
    "from_config",
    "from_environment",
    "negative_flags",
    "parser_rejection",
    "unsupported_values",
]

FALSE: Final = ("false",)
"""The value of a switch that is off; one that is on has none, as on a command line."""

MAX_NAME: Final = 96
"""What a sentence tells of an option's name: a problem's field holds 128 characters."""

MAX_CHARACTERS: Final = 1024 * 1024
"""Largest value of a config file's option, written out."""

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
    """One option, given in one place."""

    option: str
    """As on a command line, without a value: ``--max-model-len``, ``-tp``."""
    value: tuple[str, ...]
    origin: SettingOrigin
    arguments: tuple[str, ...] = field(default=(), compare=False)
    """What goes to the engine's parser for it."""


def from_arguments(argv: Sequence[str]) -> list[OptionSetting]:
    """The options of a command line; one that is given twice counts as last given, as for ``argparse``.

    As vLLM's parser has it, ``--json-arg.key 1`` is a part of ``--json-arg``'s value, and ``-O3`` is
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


def from_environment(environ: Mapping[str, str]) -> list[OptionSetting]:
    """Those that Dynamo reads from the environment, and that the worker gives to vLLM's HTTP server too."""
    return [
        OptionSetting(option, (value,), SettingOrigin(PayloadSource.ENVIRONMENT, variable, confidential=True))
        for option, variable in _VARIABLES.items()
        if (value := environ.get(variable, "").strip())
    ]


def from_config(config: Mapping[str, Any]) -> list[OptionSetting]:
    """The options of a config file without :func:`unsupported_values`, as vLLM turns it into arguments.

    A null value sets nothing.
    """
    return [
        OptionSetting(_normalize(f"--{key}"), _config_value(value), _config_origin(key))
        for key, value in config.items()
        if value is not None and value != []
    ]


def unsupported_values(config: Mapping[str, Any]) -> list[Problem]:
    """One problem for each option of a config file that no argument can carry: YAML says more than JSON."""
    return [
        _config_origin(key).violation(*wrong, reason=Reason.INVALID_CONFIG_FILE)
        for key, value in config.items()
        if (wrong := _find_unsupported_value(value)) is not None
    ]


def _find_unsupported_value(value: object) -> tuple[str, str] | None:
    """What is wrong and the fix. YAML can make a value that contains itself, or that is small and endless to
    write out: it is walked by every way that leads to an item, last in first out, within bounds.
    """
    outer = value if isinstance(value, list) else [value]
    stack = [(item, 1) for item in outer if not isinstance(item, date)]  # becomes text, as vLLM has it
    room = MAX_CHARACTERS
    while stack:
        item, depth = stack.pop()
        room -= len(item) if isinstance(item, str) and item else 1
        if room < 0:
            return "is too large", f"keep it within {MAX_CHARACTERS} characters"
        if depth > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH} levels", "make it flatter"
        if isinstance(item, dict):
            stack.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, list):
            stack.extend((inner, depth + 1) for inner in item)
        elif (wrong := _unsupported_scalar(item)) is not None:
            return wrong
    return None


def _unsupported_scalar(item: object) -> tuple[str, str] | None:
    if isinstance(item, date):
        return "holds a date", "put it in quotes"
    if isinstance(item, int) and abs(item) >= 2**63:
        return "holds a number of more than 64 bits", "use a smaller one"
    if isinstance(item, str) and any("\ud800" <= character <= "\udfff" for character in item):
        return "holds text that UTF-8 cannot carry", "remove what is half of a surrogate pair"
    if item is None or isinstance(item, str | int | float):
        return None
    return "holds something that JSON cannot carry", "use text, numbers, lists, objects"


def _config_origin(key: str) -> SettingOrigin:
    return SettingOrigin(PayloadSource.CONFIG_FILE, f"{key[:MAX_NAME]} of the config file")


def _config_value(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return () if value else FALSE
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (json.dumps(value),) if isinstance(value, dict) else (str(value),)


def negative_flags(given: Iterable[OptionSetting], names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What ``false`` in a variable means to the parsers: arguments, and a warning for each option of which
    vLLM has no negative form. A config file's become arguments elsewhere.
    """
    arguments: list[str] = []
    warnings: list[str] = []
    decided: set[str] = set()
    for each in given:
        name, _ = canonical_form(each, names)
        negative = f"--no-{each.option.removeprefix('--')}"
        if each.value == FALSE and each.origin.source is not PayloadSource.SPEC and name not in decided:
            if negative not in names:
                missing = f"the engine has no option {negative[:MAX_NAME]}"
                warnings.append(f"{each.origin.field} is false and has no effect: {missing}.")
            elif each.origin.source is PayloadSource.ENVIRONMENT:
                arguments.append(negative)
        decided.add(name)
    return arguments, warnings


def find_option(given: Iterable[OptionSetting], option: str) -> OptionSetting | None:
    """The first that gives ``option``."""
    return next((each for each in given if each.option == option), None)


def find_conflicts(given: Iterable[OptionSetting], names: Mapping[str, str]) -> list[Problem]:
    """One problem for each option of which a later place says something else than an earlier one.

    ``names``: option -> the parser's name for it, so that ``-tp`` is ``--tensor-parallel-size``; empty before
    the engine's parsers are imported.
    """
    first: dict[str, tuple[OptionSetting, tuple[str, ...]]] = {}
    problems: list[Problem] = []
    for each in given:
        name, value = canonical_form(each, names)
        before, said = first.setdefault(name, (each, value))
        if each.origin.source is before.origin.source is PayloadSource.SPEC:
            first[name] = each, value  # one command line, of which the last word counts
        elif said != value:
            problems.append(
                each.origin.violation(
                    f"differs from {before.origin.field}",
                    "remove one of them, or make them equal",
                    reason=REASON_BY_SOURCE[each.origin.source],
                )
            )
    return problems


def parser_rejection(sentence: str, given: Iterable[OptionSetting]) -> Problem:
    """What the engine's parser said. Of an option of the environment or the config file, whose value the
    sentence may repeat, only the name is told.
    """
    for each in given:
        if each.origin.source is not PayloadSource.SPEC and _mentions(each, sentence):
            return each.origin.violation(
                "is refused by the engine's parser",
                "correct its name or its value",
                reason=REASON_BY_SOURCE[each.origin.source],
            )
    return SettingOrigin(PayloadSource.SPEC, "engine.args").violation(
        f"are refused ({sentence})", "correct them", reason=Reason.INVALID_ENGINE_ARGUMENTS
    )


def _mentions(given: OptionSetting, sentence: str) -> bool:
    """By the option, or by a value that could be a secret."""
    telling = [token for token in given.value if len(token) > 2 and not is_number(token)]
    return any(
        re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", sentence) for word in (given.option, *telling)
    )


def canonical_form(given: OptionSetting, names: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The parser's name of the option, and a value that is compared regardless of its spelling.

    An option of one letter may have its value attached: ``-n2`` is ``-n 2``.
    """
    option = _expand_prefix(given.option, names)
    if option not in names and not option.startswith("--") and option[:2] in names:
        return names[option[:2]], (
            _canonical_token(option[2:]),
            *(_canonical_token(token) for token in given.value),
        )
    known = names.get(option)
    if option.startswith("--no-") and not given.value and (known is None or known != destination(option)):
        return known or destination(f"--{option.removeprefix('--no-')}"), FALSE
    return known or destination(option), tuple(_canonical_token(token) for token in given.value)


def _expand_prefix(option: str, names: Mapping[str, str]) -> str:
    """The parser takes a unique beginning for the whole."""
    if option in names or not option.startswith("--"):
        return option
    meant = {names[known]: known for known in names if known.startswith(option)}
    return next(iter(meant.values())) if len(meant) == 1 else option


def destination(option: str) -> str:
    """What a parser calls the option unless it is given another name."""
    return option.lstrip("-").replace("-", "_")


def _normalize(option: str) -> str:
    return option.replace("_", "-")


def _canonical_token(token: str) -> str:
    """JSON without its spelling: ``0.90`` is ``0.9``, and spaces in an object are none."""
    try:
        return json.dumps(json.loads(token), sort_keys=True)
    except (ValueError, RecursionError):
        return token

"""Finds options of the engine that several places set to different values. Pure.

The order of places is: arguments (``spec.model`` and ``engine.args`` of a VLLMEndpoint), ``SM_VLLM_*``,
config file. A conflict is an error (``docs/decisions/0027-precedence-and-atomic-configuration.md``).

The worker runs this check twice: in the first second of the start, and again with the names of the engine's
parsers. vLLM's own parser cannot replace the first run, because the import of ``AsyncEngineArgs`` takes 8 s
of CPU time (14 s on two busy cores), and a user must see most conflicts before that. A comparison of the
parsed namespaces in the second run would be a second implementation of the check, and the parser stops at the
first invalid option.
"""

import re
from collections.abc import Iterable, Mapping

from vllmendpoint_api import PayloadSource, Problem, Reason
from vllmendpoint_worker.setting_origin import SettingOrigin

from .option_setting import FALSE, MAX_NAME, OptionSetting, canonical_form, is_number

__all__ = ["find_conflicts", "negative_flags", "parser_rejection"]


def find_conflicts(settings: Iterable[OptionSetting], names: Mapping[str, str]) -> list[Problem]:
    """One problem for each setting whose value differs from the first setting of the same option.

    ``settings`` are in the order of places, ``names`` as for :func:`canonical_form`.
    """
    first: dict[str, tuple[OptionSetting, tuple[str, ...]]] = {}
    problems: list[Problem] = []
    for setting in settings:
        name, value = canonical_form(setting, names)
        earlier, earlier_value = first.setdefault(name, (setting, value))
        if setting.origin.source is earlier.origin.source is PayloadSource.SPEC:
            first[name] = setting, value  # one command line, whose last value counts
        elif value != earlier_value:
            fault = f"differs from {earlier.origin.field}"
            problems.append(setting.violation(fault, "Remove one of them, or make them equal."))
    return problems


def negative_flags(
    settings: Iterable[OptionSetting], names: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The ``--no-...`` arguments for variables that are ``false``, and a warning for each disabled switch
    without such an argument in vLLM. :func:`.arguments.config_to_arguments` converts the config file.
    """
    arguments: list[str] = []
    warnings: list[str] = []
    decided: set[str] = set()
    for setting in settings:
        name, _ = canonical_form(setting, names)
        negative = f"--no-{setting.option.removeprefix('--')}"
        source = setting.origin.source
        if setting.value == FALSE and source is not PayloadSource.SPEC and name not in decided:
            if negative not in names:
                warnings.append(
                    f"{setting.origin.field} is false, which has no effect, because the engine has no option "
                    f"{negative[:MAX_NAME]}."
                )
            elif source is PayloadSource.ENVIRONMENT:
                arguments.append(negative)
        decided.add(name)
    return arguments, warnings


def parser_rejection(message: str, settings: Iterable[OptionSetting]) -> Problem:
    """The problem for an error message of the engine's parser.

    If the message mentions a setting of the environment or the config file, it may repeat a secret. The
    problem then names only the setting.
    """
    for setting in settings:
        if setting.origin.source is not PayloadSource.SPEC and _mentions(message, setting):
            return setting.violation("is rejected by the engine's parser", "Correct its name or its value.")
    return SettingOrigin(PayloadSource.SPEC, "engine.args").violation(
        f"are rejected by the engine's parser ({message})",
        "Correct the arguments.",
        reason=Reason.INVALID_ENGINE_ARGUMENTS,
    )


def _mentions(message: str, setting: OptionSetting) -> bool:
    """By the option, or by a value that could be a secret."""
    values = [token for token in setting.value if len(token) > 2 and not is_number(token)]
    return any(
        re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", message) for word in (setting.option, *values)
    )

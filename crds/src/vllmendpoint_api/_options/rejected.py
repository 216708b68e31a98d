"""The arguments and environment variables that a VLLMEndpoint rejects or maps, derived from the option table.

The CEL rules of the CRD, the checks of operator and worker, and the documentation use these tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from .engine import ENGINE_OPTIONS, GMS, NAMESPACE, ONE_POD, EngineOption, OptionRule

__all__ = [
    "COMPARED_OPTIONS",
    "ENGINE_OPTIONS",
    "FRONTEND_ENV",
    "FRONTEND_OPTIONS",
    "MAPPED_OPTIONS",
    "OWNED_ENGINE_ARGS",
    "OWNED_ENV",
    "RENDERED_ENV",
    "SAGEMAKER_OPTION_PREFIX",
    "SERVED_OPTIONS",
    "SHORT_OPTIONS",
    "UNSUPPORTED_ENGINE_ARGS",
    "UNSUPPORTED_ENV",
    "EngineOption",
    "OptionRule",
    "contradicted_routing",
    "engine_arg_name",
    "environment_option",
    "frontend_arg",
    "owned_engine_arg",
    "owned_env",
    "rejected_value",
    "unsupported_engine_arg",
]

_FALSE: Final = ("false", "0", "no", "off")


def _by_rule(*rules: OptionRule) -> dict[str, str]:
    return {
        name: option.instead
        for name, option in ENGINE_OPTIONS.items()
        if option.rule in rules and not option.values
    }


OWNED_ENGINE_ARGS: Final = _by_rule(OptionRule.OWNED)
"""Maps each argument whose values are all rejected to the alternative."""
UNSUPPORTED_ENGINE_ARGS: Final = _by_rule(OptionRule.UNSUPPORTED)
FRONTEND_OPTIONS: Final = _by_rule(OptionRule.FRONTEND)
MAPPED_OPTIONS: Final = _by_rule(OptionRule.MAPPED)
"""Maps an option of vLLM's HTTP server to the option of Dynamo's frontend."""
SHORT_OPTIONS: Final = {short: name for name, option in ENGINE_OPTIONS.items() for short in option.short}
NOT_SHORTENED: Final = ("--data-parallel-size", "--embedding-worker")
"""Complete options that are also a prefix of rejected options, and that are accepted."""

RENDERED_ENV: Final[dict[str, str]] = {
    "DYN_NAMESPACE": NAMESPACE,
    "DYN_NAMESPACE_WORKER_SUFFIX": NAMESPACE,
    "DYN_NAMESPACE_PREFIX": NAMESPACE,
    "DYN_DISCOVERY_BACKEND": "Dynamo discovers workers through Kubernetes",
    "DYN_REQUEST_PLANE": "the operator sets it to tcp",
    "DYN_EVENT_PLANE": "the operator sets it to zmq",
    "DYN_SYSTEM_PORT": "the NetworkPolicy allows this port",
    "DYN_SYSTEM_HOST": "the frontend reads the worker's metadata there",
    "DYN_TCP_RPC_HOST": "the frontend reaches the worker there",
    "DYN_TCP_RPC_PORT": "the NetworkPolicy allows this port",
    "POD_NAME": "the operator sets it from the pod's metadata",
    "POD_NAMESPACE": "the operator sets it from the pod's metadata",
    "POD_UID": "the operator sets it from the pod's metadata",
    "POD_IP": "the operator sets it from the pod's metadata",
}
"""Environment variables that the operator sets or may set, in addition to ``VLLMENDPOINT_*``."""


def _env_of(rule: OptionRule) -> Iterator[tuple[str, str]]:
    for option in ENGINE_OPTIONS.values():
        if option.rule is rule and not option.values:
            yield from ((name, option.instead) for name in option.env)


UNSUPPORTED_ENV: Final[dict[str, str]] = dict(_env_of(OptionRule.UNSUPPORTED)) | {
    "DYN_SNAPSHOT_CONTROL_DIR": "snapshots of a worker are not supported",
    "DYN_GMS_USE_V1": GMS,
}
FRONTEND_ENV: Final[dict[str, str]] = dict(_env_of(OptionRule.FRONTEND))
OWNED_ENV: Final[dict[str, str]] = (
    RENDERED_ENV
    | {name: why for name, why in _env_of(OptionRule.OWNED) if name not in RENDERED_ENV}
    | {
        "DYN_COMPONENT": NAMESPACE,
        "VLLM_DP_RANK_LOCAL": ONE_POD,
        "VLLM_DP_SIZE": ONE_POD,
    }
)
"""Maps each environment variable that the operator sets to the reason."""

OWNED_ENV_PREFIX: Final = "VLLMENDPOINT_"

SAGEMAKER_OPTION_PREFIX: Final = "SM_VLLM_"
"""Prefix of variables that the worker turns into arguments: ``SM_VLLM_NAMESPACE`` is ``--namespace``."""
COMPARED_OPTIONS: Final = ("--model", "--served-model-name")
"""Arguments that such a variable or the config file may repeat. The worker rejects a value that differs from
the spec."""
SERVED_OPTIONS: Final = ("--port", "--host")
"""Arguments that such a variable may repeat. The worker rejects a value that differs from the operator's."""


def engine_arg_name(argument: str) -> str | None:
    """Return the name of the option, ``--served-model-name`` for ``--served_model_name=x``; None for a value.

    vLLM's parser accepts ``_`` instead of ``-`` in option names.
    """
    if not argument.startswith("--"):
        return None
    return argument.split("=", 1)[0].replace("_", "-")


def owned_engine_arg(argument: str) -> str | None:
    """Return the alternative if the operator sets this argument; else None.

    Recognizes what vLLM's parser accepts: an unambiguous prefix (``--served-model`` for
    ``--served-model-name``), a short form, and a short form of one letter with an attached value (``-n2`` for
    ``--nnodes 2``).
    """
    return _alternative(argument, OWNED_ENGINE_ARGS)


def unsupported_engine_arg(argument: str) -> str | None:
    """Return the alternative if the worker does not support this argument; else None."""
    return _alternative(argument, UNSUPPORTED_ENGINE_ARGS)


def frontend_arg(argument: str) -> str | None:
    """Return the alternative if this argument is rejected while ``frontend.mode`` is Managed; else None.

    Ignores abbreviations, because the parsers of the worker reject them.
    """
    return FRONTEND_OPTIONS.get((engine_arg_name(argument) or "").split(".", 1)[0])


def contradicted_routing(
    argument: str, value: str | None = None, *, kv: bool, environment: bool = False
) -> str | None:
    """Return the alternative if this argument contradicts a ``frontend.routing`` that is not the default.

    ``value``: of a key in the config file or of an environment variable; None for an argument. ``kv``:
    whether the mode is KV. ``environment``: ``argument`` is the name of a variable that Dynamo reads.
    """
    for name, option in ENGINE_OPTIONS.items():
        applies = option.rule is OptionRule.ROUTING or (kv and option.rule is OptionRule.KV_EVENTS)
        if not applies:
            continue
        if environment:
            if argument in option.env:
                return option.instead
            continue
        given = (engine_arg_name(argument) or "").split(".", 1)[0]
        if option.only_disabled:
            disabled = value is not None and value.lower() in _FALSE
            if given == f"--no-{name.removeprefix('--')}" or (given == name and disabled):
                return option.instead
        elif given == name:
            return option.instead
    return None


def _alternative(argument: str, table: Mapping[str, str]) -> str | None:
    """Return the alternative in ``table``, also for an abbreviation and a short form of the argument."""
    name = engine_arg_name(argument)
    if name is None:
        form = argument.split("=", 1)[0]
        option = next((long for short, long in SHORT_OPTIONS.items() if _is_short(form, short)), "")
        return f"it is the short form of {option}: {table[option]}" if option in table else None
    name = name.split(".", 1)[0]
    if name == "--" or name in NOT_SHORTENED:
        return None
    if name in table:
        return table[name]
    for option, alternative in table.items():
        if option.startswith(name):
            return f"it is an abbreviation of {option}: {alternative}"
    return None


def _is_short(form: str, short: str) -> bool:
    return form == short or (len(short) == 2 and form.startswith(short))


def rejected_value(arguments: Sequence[str]) -> tuple[str, str] | None:
    """Return the first option with a rejected value, and the alternative; None if there is none."""
    for argument, next_argument in pairwise((*arguments, "")):
        name = engine_arg_name(argument)
        if name is None:
            name = SHORT_OPTIONS.get(argument.split("=", 1)[0], "")
        option = ENGINE_OPTIONS.get(name)
        value = argument.split("=", 1)[1] if "=" in argument else next_argument
        if option is not None and value in option.values:
            return f"{name} {value}", option.instead
    return None


def environment_option(name: str) -> str | None:
    """Return the argument that the worker derives from this environment variable; None if it derives none."""
    if not name.startswith(SAGEMAKER_OPTION_PREFIX):
        return None
    return "--" + name.removeprefix(SAGEMAKER_OPTION_PREFIX).lower().replace("_", "-")


def owned_env(name: str) -> str | None:
    """Return the reason if the operator sets this environment variable; else None."""
    if name.startswith(OWNED_ENV_PREFIX):
        return "the operator uses names with this prefix"
    return OWNED_ENV.get(name)

"""Prepares the command line and the environment for Dynamo and vLLM. Pure: callers pass the known flags."""

from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from .option_setting import from_config, is_number

__all__ = ["clear_environment", "config_to_arguments", "split_by_server"]


def config_to_arguments(config: Mapping[str, Any], flags: AbstractSet[str]) -> list[str]:
    """The config file as arguments. A disabled switch becomes ``--no-...`` if ``flags`` contains that."""
    arguments: list[str] = []
    for setting in from_config(config):
        negative = f"--no-{setting.option.removeprefix('--')}"
        arguments += setting.arguments or ([negative] if negative in flags else [])
    return arguments


def split_by_server(
    argv: Sequence[str], engine_flags: AbstractSet[str], frontend_flags: AbstractSet[str]
) -> tuple[list[str], list[str]]:
    """``argv`` for the engine and for vLLM's HTTP server, whose flags Dynamo's parser rejects.

    A flag that both know goes to both. An unknown flag goes to the engine, whose parser reports it.
    """
    engine: list[str] = []
    frontend: list[str] = []
    targets = [engine]
    for argument in argv:
        if argument.startswith("--"):
            name = "--" + argument[2:].partition("=")[0].partition(".")[0].replace("_", "-")
            targets = [frontend] if name in frontend_flags else [engine]
            if name in frontend_flags and name in engine_flags:
                targets = [engine, frontend]
        elif argument.startswith("-") and not is_number(argument):
            targets = [engine]
        for target in targets:
            target.append(argument)
    return engine, frontend


def clear_environment(
    environ: MutableMapping[str, str], names: Sequence[str], plugins: Sequence[str]
) -> None:
    """Set the environment variables that Dynamo and vLLM need, and remove those in ``names``.

    - The worker handles the variables in ``names`` (``docs/guide/health-check-payloads.md``, "Environment
      variables"). Some values crash Dynamo, for example ``DYN_HEALTH_CHECK_ENABLED=1``.
    - Dynamo's own health check runs every second and returns the worker's verdict. Its times are whole
      seconds.
    - ``VLLM_PLUGINS``, if set, must contain the worker's ``plugins``.
    - LoRA adapters can be loaded at run time only if the user's own environment allows it.
    """
    for name in names:
        environ.pop(name, None)
    # With LoRA, Dynamo sets the unset variable, which would enable vLLM's POST /v1/load_lora_adapter.
    environ.setdefault("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")
    environ["DYN_HEALTH_CHECK_ENABLED"] = "true"
    environ["DYN_CANARY_WAIT_TIME"] = "1"
    environ["DYN_HEALTH_CHECK_REQUEST_TIMEOUT"] = "2"
    if (allowed := environ.get("VLLM_PLUGINS")) is not None:
        environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*filter(None, allowed.split(",")), *plugins]))

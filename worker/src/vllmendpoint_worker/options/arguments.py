"""Arguments and environment for upstream. Pure: the flags that upstream knows are given in."""

import json
from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ["clear_environment", "config_to_arguments", "is_number", "split_by_server"]


def config_to_arguments(config: Mapping[str, Any], flags: AbstractSet[str]) -> list[str]:
    """A config file as arguments, as ``FlexibleArgumentParser.load_config_file`` makes them. What no argument
    can carry has been refused (:func:`.options.unfit`).

    A false switch becomes its ``--no-`` form where ``flags`` knows one, else nothing.
    """
    arguments: list[str] = []
    for key, value in config.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flag = f"--{name}" if value else f"--no-{name}"
            arguments += [flag] if value or flag in flags else []
        elif isinstance(value, list):
            arguments += [f"--{name}", *(str(item) for item in value)] if value else []
        elif isinstance(value, dict):
            arguments += [f"--{name}", json.dumps(value)]
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def split_by_server(
    argv: Sequence[str], engine_flags: AbstractSet[str], frontend_flags: AbstractSet[str]
) -> tuple[list[str], list[str]]:
    """``argv`` for the engine and for the HTTP server, whose flags Dynamo's parser refuses.

    A flag that both know goes to both, one that neither knows to the engine, whose parser says so.
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


def is_number(text: str) -> bool:
    """Whether ``text`` is a value although it begins with a dash."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def clear_environment(
    environ: MutableMapping[str, str], names: Sequence[str], plugins: Sequence[str]
) -> None:
    """Make the environment one that upstream cannot trip over, before its runtime reads it.

    The guide's variables (``names``) are ours: some of their values crash upstream
    (``DYN_HEALTH_CHECK_ENABLED=1``). Upstream's canary asks every second and is answered from our verdict;
    its times are whole seconds. An allow-list of vLLM's plugins must name ours too. Adapters are loaded at
    run time only where the user's own environment allows it.
    """
    for name in names:
        environ.pop(name, None)
    # With LoRA on Dynamo sets it where it is unset, which would open vLLM's POST /v1/load_lora_adapter.
    environ.setdefault("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")
    environ["DYN_HEALTH_CHECK_ENABLED"] = "true"
    environ["DYN_CANARY_WAIT_TIME"] = "1"
    environ["DYN_HEALTH_CHECK_REQUEST_TIMEOUT"] = "2"
    if (allowed := environ.get("VLLM_PLUGINS")) is not None:
        environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*filter(None, allowed.split(",")), *plugins]))

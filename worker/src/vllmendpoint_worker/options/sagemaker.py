"""A container as SageMaker starts it: ``SM_VLLM_*``, the model's folder, no cluster around it. Pure.

The rules are those of AWS's vLLM image (``scripts/docker/vllm/sagemaker_args.py`` of
aws/deep-learning-containers, facts/worker-serving.md), which users of the guide ("Quick Start") come from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vllmendpoint_api import PayloadSource, Problem, Reason, names
from vllmendpoint_worker.setting_origin import SettingOrigin

from .conflicts import FALSE, OptionSetting, find_option, from_arguments

__all__ = [
    "DEFAULT_MODEL_PATH",
    "ENV_MODEL_PATH",
    "ENV_SAGEMAKER_HOST",
    "MODEL_FOLDER",
    "PREFIX",
    "container_environment",
    "fallback_model",
    "holds_model",
    "invalid_port",
    "merge_arguments",
    "missing_model",
    "model_path",
    "options",
    "strip_serve_command",
    "worker_variables",
]

PREFIX: Final = "SM_VLLM_"

ENV_MODEL_PATH: Final = "SAGEMAKER_MODEL_PATH"
DEFAULT_MODEL_PATH: Final = "/opt/ml/model"
"""The guide's "Key Environment Variables"."""

MODEL_FOLDER: Final = f"${ENV_MODEL_PATH} ({DEFAULT_MODEL_PATH} unless set)"
"""The model's folder in a sentence, which repeats no value of the environment."""

ENV_SAGEMAKER_HOST: Final = "VLLMENDPOINT_SAGEMAKER_HOST"
"""Address of the SageMaker port; default: all addresses, IPv4 and IPv6."""

SYSTEM_PORT: Final = "8082"
"""Dynamo's system port where nobody set one: the guide's ``localhost:8082/health``. The operator sets its
own.
"""

_SINGLE_TOKEN: Final = frozenset(
    {"--allowed-origins", "--allowed-methods", "--allowed-headers", "--middleware"}
)
"""Options of which vLLM wants a JSON array as one token."""

_WORKER_VARIABLES: Final = {"--port": names.ENV_SAGEMAKER_PORT, "--host": ENV_SAGEMAKER_HOST}
"""The worker serves vLLM's app itself: these two are its own settings, by vLLM's names."""


def strip_serve_command(argv: Sequence[str]) -> list[str]:
    """SageMaker runs ``docker run IMAGE serve``: the word names no option."""
    return list(argv[1:] if argv[:1] == ["serve"] else argv)


def model_path(environ: Mapping[str, str]) -> str:
    """``SAGEMAKER_MODEL_PATH``: where SageMaker, or the worker itself, puts the model's data."""
    return environ.get(ENV_MODEL_PATH, "").strip() or DEFAULT_MODEL_PATH


def options(environ: Mapping[str, str]) -> tuple[list[OptionSetting], list[str]]:
    """The options that ``SM_VLLM_*`` gives, by AWS's rules, and warnings.

    ``SM_VLLM_MAX_MODEL_LEN=8`` is ``--max-model-len 8``; empty and ``true`` are a bare switch, ``false`` and
    ``[]`` are none; a JSON array is one token an element, ``{..} {..}`` one token each. ``SM_VLLM_MODEL`` has
    to have a value: empty, it is unset.
    """
    found: list[OptionSetting] = []
    warnings: list[str] = []
    for variable in sorted(environ):
        option = "--" + variable.removeprefix(PREFIX).lower().replace("_", "-")
        if not variable.startswith(PREFIX) or option == "--":
            continue
        text = environ[variable]
        if option == "--model" and not text.strip():
            continue
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable[:128], confidential=True)
        if text.strip().lower() == "false":
            found.append(OptionSetting(option, FALSE, origin))
            continue
        value = () if text.strip().lower() == "true" else _tokens(option, text)
        if value is None:
            warnings.append(f"{variable[:128]} is an empty list and says nothing.")
            continue
        found.append(OptionSetting(option, value, origin, (option, *value)))
    return found, warnings


def _tokens(option: str, text: str) -> tuple[str, ...] | None:
    """None: the option is left out."""
    stripped = text.strip()
    if not text:
        return ()
    if option in _SINGLE_TOKEN:
        return (text,)
    try:
        if stripped.startswith("[") and stripped.endswith("]"):
            return tuple(_token(item) for item in json.loads(stripped)) or None
        if (
            stripped.startswith("{")
            and stripped.endswith("}")
            and len(objects := _json_objects(stripped)) > 1
        ):
            return tuple(_token(item) for item in objects)
    except (ValueError, RecursionError):  # no JSON, or nested deeper than Python reads or writes
        pass
    return (text,)


def _token(element: Any) -> str:
    if isinstance(element, dict | list):
        return json.dumps(element, separators=(",", ":"))
    if isinstance(element, bool):
        return "true" if element else "false"
    return "" if element is None else str(element)


def _json_objects(text: str) -> list[Any]:
    """The objects of ``{..} {..}``; none where it is anything else. Raises as ``json`` does."""
    decoder = json.JSONDecoder()
    found: list[Any] = []
    at = 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        if not isinstance(value, dict):
            return []
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def merge_arguments(given: Sequence[OptionSetting], argv: Sequence[str]) -> list[str]:
    """All of it as one command line. What ``argv`` says too is left to it (it says the same, or is
    refused).
    """
    there = {each.option for each in from_arguments(argv)}
    tokens = [token for each in given if each.option not in there for token in each.arguments]
    return [*tokens, *argv]


def worker_variables(given: Sequence[OptionSetting], environ: Mapping[str, str]) -> list[OptionSetting]:
    """What the environment says of those options by the worker's own names: ``DYN_NAMESPACE``, the ports.

    In a pod the operator has set these, and ``SM_VLLM_NAMESPACE`` must not undo it.
    """
    found = []
    for each in given:
        bare = each.option.removeprefix("--").replace("-", "_").upper()
        for variable in (_WORKER_VARIABLES.get(each.option, ""), f"DYN_{bare}"):
            if value := environ.get(variable, "").strip():
                origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable[:128], confidential=True)
                found.append(replace(each, value=(value,), origin=origin, arguments=()))
    return found


def holds_model(files: Sequence[str]) -> bool:
    """Whether the names in a folder are a model's, and not those of a script alone."""
    return any(
        name in ("config.json", "params.json") or name.endswith((".gguf", ".safetensors")) for name in files
    )


def fallback_model(environ: Mapping[str, str], folder: str, files: Sequence[str] | None) -> list[str]:
    """``--model`` where nobody named one: the model's folder where it is not empty, else ``HF_MODEL_ID``.

    ``files``: names in the folder, None where it will be filled. A folder without a model in it (the script
    alone) gives way to ``HF_MODEL_ID``, where AWS's image fails.
    """
    identifier = environ.get("HF_MODEL_ID", "").strip()
    if files is None or holds_model(files) or (files and not identifier):
        return ["--model", folder]
    return ["--model", identifier] if identifier else []


def invalid_port(given: Sequence[OptionSetting]) -> list[Problem]:
    """The one value that the worker itself has to understand."""
    port = find_option(given, "--port")
    if port is None or (len(port.value) == 1 and _is_port(port.value[0])):
        return []
    return [
        port.origin.violation(
            "is not a port number from 0 to 65535", "correct it", reason=Reason.INVALID_ENVIRONMENT
        )
    ]


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and int(text) <= 65535  # int() refuses thousands of digits


def missing_model() -> Problem:
    """Nobody named a model. Upstream would serve one of its own choice."""
    origin = SettingOrigin(PayloadSource.SPEC, "model")
    return origin.violation(
        f"is not named, and there is none in {MODEL_FOLDER}",
        f"set {PREFIX}MODEL, HF_MODEL_ID or --model, or mount a model there",
        reason=Reason.INVALID_ENGINE_ARGUMENTS,
    )


def container_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment before upstream reads it. What is set (and not empty) stays.

    The guide's ``HUGGING_FACE_HUB_TOKEN`` is passed on as ``HF_TOKEN``, which Dynamo's downloads read;
    ``SM_VLLM_PORT`` and ``SM_VLLM_HOST`` set the worker's own. Outside Kubernetes nothing else has to run:
    Dynamo finds workers within this process, unless etcd or NATS are named.
    """
    added: dict[str, str] = {}
    if token := environ.get("HUGGING_FACE_HUB_TOKEN", "").strip():
        added["HF_TOKEN"] = token
    given, _ = options(environ)
    for option, variable in _WORKER_VARIABLES.items():
        if (each := find_option(given, option)) is not None and each.value and not invalid_port([each]):
            added[variable] = each.value[0]
    if not environ.get("KUBERNETES_SERVICE_HOST"):
        added["DYN_SYSTEM_PORT"] = SYSTEM_PORT
        if not environ.get("ETCD_ENDPOINTS"):
            added["DYN_DISCOVERY_BACKEND"] = "mem"
        if not environ.get("NATS_SERVER"):
            added["DYN_EVENT_PLANE"] = "zmq"
    return {name: value for name, value in added.items() if not environ.get(name, "").strip()}

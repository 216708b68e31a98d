"""Reads the environment of a SageMaker container: ``SM_VLLM_*``, and the model's folder. Pure.

The rules are those of AWS's vLLM image (``scripts/docker/vllm/sagemaker_args.py`` of
https://github.com/aws/deep-learning-containers), which the users of ``docs/guide/custom-handlers.md``
("Deploy to SageMaker") know. No parser applies them: ``argparse`` reads no environment variables.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vllmendpoint_api import PayloadSource, Problem, Reason, names
from vllmendpoint_worker.setting_origin import SettingOrigin

from .option_setting import FALSE, OptionSetting, find_option, from_arguments

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
"""``docs/guide/custom-handlers.md`` ("Key environment variables")."""

MODEL_FOLDER: Final = f"${ENV_MODEL_PATH} (default {DEFAULT_MODEL_PATH})"
"""The model's folder in a message, without the value of the variable."""

ENV_SAGEMAKER_HOST: Final = "VLLMENDPOINT_SAGEMAKER_HOST"
"""Address of the SageMaker port. Default: all addresses, IPv4 and IPv6."""

SYSTEM_PORT: Final = "8082"
"""Default of Dynamo's system port: the one of ``docs/guide/health-check-payloads.md`` ("Troubleshooting").
The operator sets another one.
"""

_MAX_NAME: Final = 128

_SINGLE_TOKEN: Final = frozenset(
    {"--allowed-origins", "--allowed-methods", "--allowed-headers", "--middleware"}
)
"""Options for which vLLM needs a JSON array as one token."""

_WORKER_VARIABLES: Final = {"--port": names.ENV_SAGEMAKER_PORT, "--host": ENV_SAGEMAKER_HOST}
"""The worker serves vLLM's app itself, so these options of vLLM set the worker's own variables."""


def strip_serve_command(argv: Sequence[str]) -> list[str]:
    """SageMaker runs ``docker run IMAGE serve``. The word is not an option."""
    return list(argv[1:] if argv[:1] == ["serve"] else argv)


def model_path(environ: Mapping[str, str]) -> str:
    """``SAGEMAKER_MODEL_PATH``: the folder to which SageMaker, or the worker, downloads the model data."""
    return environ.get(ENV_MODEL_PATH, "").strip() or DEFAULT_MODEL_PATH


def options(environ: Mapping[str, str]) -> tuple[list[OptionSetting], list[str]]:
    """The options in ``SM_VLLM_*``, by AWS's rules, and warnings.

    ``SM_VLLM_MAX_MODEL_LEN=8`` is ``--max-model-len 8``. An empty value and ``true`` enable a switch,
    ``false`` disables it. ``[]`` sets nothing. A JSON array is one token per element, ``{..} {..}`` one token
    per object. An empty ``SM_VLLM_MODEL`` is unset.
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
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable[:_MAX_NAME], confidential=True)
        if text.strip().lower() == "false":
            found.append(OptionSetting(option, FALSE, origin))
            continue
        value = () if text.strip().lower() == "true" else _tokens(option, text)
        if value is None:
            warnings.append(f"{variable[:_MAX_NAME]} is an empty list, which has no effect.")
            continue
        found.append(OptionSetting(option, value, origin, (option, *value)))
    return found, warnings


def _tokens(option: str, text: str) -> tuple[str, ...] | None:
    """None if the option is not set."""
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
    except (ValueError, RecursionError):  # not JSON, or nested too deeply for Python
        pass
    return (text,)


def _token(element: Any) -> str:
    if isinstance(element, dict | list):
        return json.dumps(element, separators=(",", ":"))
    if isinstance(element, bool):
        return "true" if element else "false"
    return "" if element is None else str(element)


def _json_objects(text: str) -> list[Any]:
    """The objects of ``{..} {..}``; empty if ``text`` is anything else. Raises as ``json`` does."""
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


def merge_arguments(variables: Sequence[OptionSetting], argv: Sequence[str]) -> list[str]:
    """One command line from ``SM_VLLM_*`` and ``argv``. An option in both is equal, or a conflict."""
    in_argv = {setting.option for setting in from_arguments(argv)}
    tokens = [token for setting in variables if setting.option not in in_argv for token in setting.arguments]
    return [*tokens, *argv]


def worker_variables(variables: Sequence[OptionSetting], environ: Mapping[str, str]) -> list[OptionSetting]:
    """The settings of the same options under the worker's and Dynamo's own names, such as ``DYN_NAMESPACE``.

    In a pod the operator sets these, and ``SM_VLLM_NAMESPACE`` must not override it.
    """
    found = []
    for setting in variables:
        bare = setting.option.removeprefix("--").replace("-", "_").upper()
        for variable in (_WORKER_VARIABLES.get(setting.option, ""), f"DYN_{bare}"):
            if value := environ.get(variable, "").strip():
                origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable[:_MAX_NAME], confidential=True)
                found.append(replace(setting, value=(value,), origin=origin, arguments=()))
    return found


def holds_model(files: Sequence[str]) -> bool:
    """Whether the names in a folder are those of a model, and not of a script alone."""
    return any(
        name in ("config.json", "params.json") or name.endswith((".gguf", ".safetensors")) for name in files
    )


def fallback_model(environ: Mapping[str, str], folder: str, files: Sequence[str] | None) -> list[str]:
    """``--model`` if no setting names a model: the model's folder if it contains files, else ``HF_MODEL_ID``.

    ``files``: names in the folder, None if a download will fill it. ``HF_MODEL_ID`` has priority over a
    folder that contains only a script, with which AWS's image fails.
    """
    identifier = environ.get("HF_MODEL_ID", "").strip()
    if files is None or holds_model(files) or (files and not identifier):
        return ["--model", folder]
    return ["--model", identifier] if identifier else []


def invalid_port(variables: Sequence[OptionSetting]) -> list[Problem]:
    """A problem if ``SM_VLLM_PORT``, which the worker itself uses, is not a port."""
    port = find_option(variables, "--port")
    if port is None or (len(port.value) == 1 and _is_port(port.value[0])):
        return []
    return [port.violation("is not a port number from 0 to 65535", "Correct the number.")]


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and int(text) <= 65535  # int() raises for thousands of digits


def missing_model() -> Problem:
    """No setting names a model. vLLM would serve its own default."""
    return SettingOrigin(PayloadSource.SPEC, "model").violation(
        f"is not set, and {MODEL_FOLDER} does not contain a model",
        f"Set {PREFIX}MODEL, HF_MODEL_ID or --model, or mount a model in that folder.",
        reason=Reason.INVALID_ENGINE_ARGUMENTS,
    )


def container_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment before Dynamo and vLLM read it. Non-empty variables are not
    changed.

    - ``HUGGING_FACE_HUB_TOKEN`` (``docs/guide/custom-handlers.md``, "Deploy to SageMaker") becomes
      ``HF_TOKEN``, which Dynamo's downloader reads.
    - ``SM_VLLM_PORT`` and ``SM_VLLM_HOST`` set the worker's own variables.
    - Outside Kubernetes, Dynamo discovers workers within this process, unless etcd or NATS are configured.
    """
    added: dict[str, str] = {}
    if token := environ.get("HUGGING_FACE_HUB_TOKEN", "").strip():
        added["HF_TOKEN"] = token
    settings, _ = options(environ)
    for option, variable in _WORKER_VARIABLES.items():
        setting = find_option(settings, option)
        if setting is not None and setting.value and not invalid_port([setting]):
            added[variable] = setting.value[0]
    if not environ.get("KUBERNETES_SERVICE_HOST"):
        added["DYN_SYSTEM_PORT"] = SYSTEM_PORT
        if not environ.get("ETCD_ENDPOINTS"):
            added["DYN_DISCOVERY_BACKEND"] = "mem"
        if not environ.get("NATS_SERVER"):
            added["DYN_EVENT_PLANE"] = "zmq"
    return {name: value for name, value in added.items() if not environ.get(name, "").strip()}

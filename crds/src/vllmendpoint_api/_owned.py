"""Engine arguments and environment names that the operator sets itself.

One table: the CRD's CEL rules, the operator's own check and the documents all come from it.
"""

from typing import Final

__all__ = [
    "OWNED_ENGINE_ARGS",
    "OWNED_ENV",
    "engine_arg_name",
    "owned_engine_arg",
    "owned_env",
    "owned_option",
]

OWNED_ENGINE_ARGS: Final[dict[str, str]] = {
    "--model": "set spec.model.uri instead",
    "--served-model-name": "set spec.model.name instead",
    "--revision": "set spec.model.revision instead",
    "--config": "set spec.engine.config instead",
    "--namespace": "each endpoint has a Dynamo namespace of its own",
    "--endpoint": "each endpoint has a Dynamo namespace of its own",
    "--discovery-backend": "workers are found through Kubernetes",
    "--request-plane": "the operator pins it to tcp",
    "--event-plane": "the operator pins it to zmq",
    "--health-check-payload": "set spec.healthCheck.payload instead",
    "--disaggregation-mode": "prefill/decode disaggregation is not supported yet",
    "--is-prefill-worker": "prefill/decode disaggregation is not supported yet",
    "--is-decode-worker": "prefill/decode disaggregation is not supported yet",
    "--headless": "multi-node workers are not supported yet",
    "--nnodes": "multi-node workers are not supported yet",
    "--node-rank": "multi-node workers are not supported yet",
    "--master-addr": "multi-node workers are not supported yet",
    "--master-port": "multi-node workers are not supported yet",
}
"""Argument to what a user should do instead."""

OWNED_ENV: Final[dict[str, str]] = {
    "DYN_NAMESPACE": "each endpoint has a Dynamo namespace of its own",
    "DYN_NAMESPACE_WORKER_SUFFIX": "each endpoint has a Dynamo namespace of its own",
    "DYN_NAMESPACE_PREFIX": "each endpoint has a Dynamo namespace of its own",
    "DYN_DISCOVERY_BACKEND": "workers are found through Kubernetes",
    "DYN_REQUEST_PLANE": "the operator pins it to tcp",
    "DYN_EVENT_PLANE": "the operator pins it to zmq",
    "DYN_SYSTEM_PORT": "the port is part of the NetworkPolicy",
    "DYN_SYSTEM_HOST": "the frontend reads the worker's metadata there",
    "DYN_TCP_RPC_HOST": "the frontend reaches the worker there",
    "DYN_TCP_RPC_PORT": "the port is part of the NetworkPolicy",
    "POD_NAME": "it comes from the pod",
    "POD_NAMESPACE": "it comes from the pod",
    "POD_UID": "it comes from the pod",
    "POD_IP": "it comes from the pod",
}
"""Environment name to the reason why it is the operator's. Names with the prefix
``VLLMENDPOINT_`` are the operator's as well."""

OWNED_ENV_PREFIX: Final = "VLLMENDPOINT_"

SAGEMAKER_OPTION_PREFIX: Final = "SM_VLLM_"
"""Of variables that the worker makes engine arguments of: ``SM_VLLM_NAMESPACE`` is ``--namespace``."""
COMPARED_OPTIONS: Final = ("--model", "--served-model-name")
"""Arguments that such a variable may repeat: the worker refuses another value than the spec's."""


def engine_arg_name(argument: str) -> str | None:
    """``--served_model_name=x`` -> ``--served-model-name``; None for a value.

    vLLM's parser takes ``_`` for ``-`` in option names, and ``-O3``-like short forms are not owned.
    """
    if not argument.startswith("--"):
        return None
    return argument.split("=", 1)[0].replace("_", "-")


def owned_engine_arg(argument: str) -> str | None:
    """What to do instead, if the operator owns this argument, or what vLLM's parser takes for it.

    The parser takes a unique beginning for the whole: ``--served-model`` is ``--served-model-name``.
    """
    name = engine_arg_name(argument)
    if name is None or name == "--":
        return None
    if name in OWNED_ENGINE_ARGS:
        return OWNED_ENGINE_ARGS[name]
    for owned, instead in OWNED_ENGINE_ARGS.items():
        if owned.startswith(name):
            return f"it stands for {owned}: {instead}"
    return None


def owned_option(name: str) -> str | None:
    """What to do instead of this environment name, if it is an engine argument that the operator owns."""
    if not name.startswith(SAGEMAKER_OPTION_PREFIX):
        return None
    argument = "--" + name.removeprefix(SAGEMAKER_OPTION_PREFIX).lower().replace("_", "-")
    return None if argument in COMPARED_OPTIONS else owned_engine_arg(argument)


def owned_env(name: str) -> str | None:
    """Why the operator owns this environment name, if it does."""
    if name.startswith(OWNED_ENV_PREFIX):
        return "the prefix is the operator's own"
    return OWNED_ENV.get(name)

"""What a spec must not say. Admission refuses most of it, but the CRD may be of another version. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vllmendpoint_api import (
    COMPARED_OPTIONS,
    ENGINE_OPTIONS,
    FRONTEND_ENV,
    SERVED_OPTIONS,
    UNSUPPORTED_ENV,
    Reason,
    WorkerSpec,
    engine_arg_name,
    environment_option,
    frontend_arg,
    names,
    owned_engine_arg,
    owned_env,
    rejected_value,
    unsupported_engine_arg,
)
from vllmendpoint_operator.components import has_frontend
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["check"]

_VALUED: Final = {
    variable: name for name, option in ENGINE_OPTIONS.items() if option.values for variable in option.env
}
"""Variables of Dynamo of which only some values are refused, and the option that each one is."""


def check(endpoint: Endpoint) -> None:
    """Raises PlanError."""
    _check_options(endpoint)
    for item in endpoint.spec.worker.env:
        if item.name == "HF_TOKEN" and endpoint.spec.model.token_secret_ref is not None:
            raise PlanError(
                Reason.INVALID_SPEC,
                "model.tokenSecretRef: HF_TOKEN is also set in worker.env; remove one of them",
            )
        if item.value is not None and item.value_from is not None:
            raise PlanError(
                Reason.INVALID_SPEC,
                f"worker.env: {item.name} has both value and valueFrom; remove one of them",
            )


def _check_options(endpoint: Endpoint) -> None:
    spec, beside = endpoint.spec, has_frontend(endpoint)
    for argument in spec.engine.args:
        if (why := _refused_argument(argument, beside)) is not None:
            raise _refused("engine.args", engine_arg_name(argument) or argument.split("=", 1)[0], why)
    if (found := rejected_value(spec.engine.args)) is not None:
        raise _refused("engine.args", found[0], _unsupported(found[1]))
    _check_config(spec.engine.config.inline if spec.engine.config is not None else None, beside)
    _check_variables(spec.worker, beside)


def _check_config(config: Mapping[str, Any] | None, beside: bool) -> None:
    for key, content in (config or {}).items():
        argument = "--" + key.replace("_", "-")
        why = None if argument in COMPARED_OPTIONS else _refused_argument(argument, beside)
        if why is not None and content is not None and content is not False:
            raise _refused("engine.config.inline", key, why)
        if (found := rejected_value((argument, str(content)))) is not None:
            raise _refused("engine.config.inline", f"{key}: {content}", _unsupported(found[1]))


def _check_variables(worker: WorkerSpec, beside: bool) -> None:
    for item in worker.env:
        if (why := _refused_variable(item.name, beside)) is not None:
            raise _refused("worker.env", item.name, why)
        if (why := _refused_content(item.name, item.value)) is not None:
            raise _refused("worker.env", f"{item.name}={item.value}", why)
    for name, value in _template_variables(worker.pod_template):
        # What the operator renders itself is compared with the rendering (plan.template).
        if owned_env(name) is not None:
            continue
        what, why = name, _refused_variable(name, beside)
        if why is None:
            what, why = f"{name}={value}", _refused_content(name, value)
        if why is not None:
            message = f"worker.podTemplate: container main, env: {what} {why}"
            raise PlanError(Reason.INVALID_POD_TEMPLATE, message)


def _template_variables(template: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Names and values in the environment of a podTemplate's main container, whatever shape the rest has."""
    pod = (template or {}).get("spec")
    containers = pod.get("containers") if isinstance(pod, dict) else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, dict) and container.get("name") == names.MAIN_CONTAINER:
            env = container.get("env")
            for item in env if isinstance(env, list) else ():
                if isinstance(item, dict) and isinstance(item.get("name"), str) and "$patch" not in item:
                    yield item["name"], item.get("value")


def _refused_argument(argument: str, beside: bool) -> str | None:
    """What an argument is, and what to do instead, where it is refused; ``beside`` a managed frontend."""
    if (instead := owned_engine_arg(argument)) is not None:
        return f"is set by the operator; remove it: {instead}"
    if (why := unsupported_engine_arg(argument)) is not None:
        return _unsupported(why)
    if beside and (instead := frontend_arg(argument)) is not None:
        return f"is read by the server on port 8080, not at status.url; remove it: {instead}"
    return None


def _refused_variable(name: str, beside: bool) -> str | None:
    if (why := owned_env(name)) is not None:
        return f"is set by the operator; remove it: {why}"
    if name in UNSUPPORTED_ENV:
        return _unsupported(UNSUPPORTED_ENV[name])
    if beside and name in FRONTEND_ENV:
        return f"is read by the server on port 8080, not at status.url; remove it: {FRONTEND_ENV[name]}"
    argument = environment_option(name)
    if argument is None or argument in (*COMPARED_OPTIONS, *SERVED_OPTIONS):
        return None
    return _refused_argument(argument, beside)


def _refused_content(name: str, value: Any) -> str | None:
    """Why this value of the variable is refused, where others are not."""
    argument = environment_option(name) or _VALUED.get(name)
    found = None if argument is None or value is None else rejected_value((argument, str(value)))
    return None if found is None else _unsupported(found[1])


def _unsupported(why: str) -> str:
    return f"is not supported by the worker; remove it: {why}"


def _refused(field: str, name: str, why: str) -> PlanError:
    return PlanError(Reason.INVALID_SPEC, f"{field}: {name} {why}")

"""Rejects engine options and variables that the operator owns, or that have no effect. Pure.

The CEL rules of the CRD reject most of them on admission. These checks add what CEL cannot express, and apply
if the installed CRD is of another version.
"""

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

__all__ = ["check_spec"]

_VARIABLES_WITH_REJECTED_VALUES: Final = {
    variable: name for name, option in ENGINE_OPTIONS.items() if option.values for variable in option.env
}
"""Environment variable of Dynamo -> the option that it sets, if only some values are rejected."""


def check_spec(endpoint: Endpoint) -> None:
    """Raises PlanError with the first problem."""
    spec, frontend = endpoint.spec, has_frontend(endpoint)
    _check_arguments(spec.engine.args, frontend)
    if spec.engine.config is not None and spec.engine.config.inline is not None:
        _check_config(spec.engine.config.inline, frontend)
    _check_environment(spec.worker, frontend)
    _check_pod_template(spec.worker.pod_template, frontend)
    for item in spec.worker.env:
        if item.name == "HF_TOKEN" and spec.model.token_secret_ref is not None:
            raise PlanError(
                Reason.INVALID_SPEC,
                "model.tokenSecretRef: HF_TOKEN is also set in worker.env. Remove one of them.",
            )
        if item.value is not None and item.value_from is not None:
            raise PlanError(
                Reason.INVALID_SPEC,
                f"worker.env: {item.name} has both value and valueFrom. Remove one of them.",
            )


def _check_arguments(arguments: tuple[str, ...], frontend: bool) -> None:
    for argument in arguments:
        if (problem := _argument_problem(argument, frontend)) is not None:
            raise _invalid("engine.args", engine_arg_name(argument) or argument.split("=", 1)[0], problem)
    if (found := rejected_value(arguments)) is not None:
        option, reason = found
        raise _invalid("engine.args", option, _unsupported(reason))


def _check_config(config: Mapping[str, Any], frontend: bool) -> None:
    for key, value in config.items():
        argument = "--" + key.replace("_", "-")
        problem = None if argument in COMPARED_OPTIONS else _argument_problem(argument, frontend)
        if problem is not None and value is not None and value is not False:
            raise _invalid("engine.config.inline", key, problem)
        if (found := rejected_value((argument, str(value)))) is not None:
            raise _invalid("engine.config.inline", f"{key}: {value}", _unsupported(found[1]))


def _check_environment(worker: WorkerSpec, frontend: bool) -> None:
    for item in worker.env:
        if (problem := _variable_problem(item.name, frontend)) is not None:
            raise _invalid("worker.env", item.name, problem)
        if (problem := _value_problem(item.name, item.value)) is not None:
            raise _invalid("worker.env", f"{item.name}={item.value}", problem)


def _check_pod_template(template: Mapping[str, Any] | None, frontend: bool) -> None:
    for name, value in _template_variables(template):
        # The merge compares these with the rendered template (plan.pods.user_template).
        if owned_env(name) is not None:
            continue
        subject, problem = name, _variable_problem(name, frontend)
        if problem is None:
            subject, problem = f"{name}={value}", _value_problem(name, value)
        if problem is not None:
            raise PlanError(
                Reason.INVALID_POD_TEMPLATE,
                f"worker.podTemplate: In env of the container main, {subject} {problem}.",
            )


def _template_variables(template: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Name and value of each variable of the main container, whatever types the podTemplate has."""
    pod = (template or {}).get("spec")
    containers = pod.get("containers") if isinstance(pod, dict) else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, dict) and container.get("name") == names.MAIN_CONTAINER:
            env = container.get("env")
            for item in env if isinstance(env, list) else ():
                if isinstance(item, dict) and isinstance(item.get("name"), str) and "$patch" not in item:
                    yield item["name"], item.get("value")


def _argument_problem(argument: str, frontend: bool) -> str | None:
    """Predicate of a sentence about a rejected argument. ``frontend``: the endpoint has a frontend."""
    if (alternative := owned_engine_arg(argument)) is not None:
        return _owned(alternative)
    if (reason := unsupported_engine_arg(argument)) is not None:
        return _unsupported(reason)
    if frontend and (alternative := frontend_arg(argument)) is not None:
        return _not_at_url(alternative)
    return None


def _variable_problem(name: str, frontend: bool) -> str | None:
    """Predicate of a sentence about a variable that is rejected with any value."""
    if (alternative := owned_env(name)) is not None:
        return _owned(alternative)
    if name in UNSUPPORTED_ENV:
        return _unsupported(UNSUPPORTED_ENV[name])
    if frontend and name in FRONTEND_ENV:
        return _not_at_url(FRONTEND_ENV[name])
    argument = environment_option(name)
    if argument is None or argument in (*COMPARED_OPTIONS, *SERVED_OPTIONS):
        return None
    return _argument_problem(argument, frontend)


def _value_problem(name: str, value: Any) -> str | None:
    """Predicate of a sentence about a variable that is rejected with this value."""
    argument = environment_option(name) or _VARIABLES_WITH_REJECTED_VALUES.get(name)
    found = None if argument is None or value is None else rejected_value((argument, str(value)))
    return None if found is None else _unsupported(found[1])


def _owned(alternative: str) -> str:
    return f"is set by the operator. Remove it: {alternative}"


def _unsupported(reason: str) -> str:
    return f"is not supported by the worker. Remove it: {reason}"


def _not_at_url(alternative: str) -> str:
    return f"is read by the server on port 8080, not at status.url. Remove it: {alternative}"


def _invalid(field: str, subject: str, problem: str) -> PlanError:
    return PlanError(Reason.INVALID_SPEC, f"{field}: {subject} {problem}.")

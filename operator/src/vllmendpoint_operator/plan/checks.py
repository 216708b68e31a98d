"""Rejects engine options and variables that the operator owns, or that have no effect. Pure.

The CEL rules of the CRD reject most of them on admission. These checks add what CEL cannot express, and apply
if the installed CRD is of another version. ``with_frontend`` is whether the endpoint has a frontend: some
options then do not affect ``status.url``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vllmendpoint_api import (
    COMPARED_OPTIONS,
    ENGINE_OPTIONS,
    FRONTEND_ENV,
    SERVED_OPTIONS,
    UNSUPPORTED_ENV,
    ModelType,
    PrefillSpec,
    Reason,
    RoutingMode,
    RoutingSpec,
    VLLMEndpointSpec,
    WorkerSpec,
    contradicted_routing,
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
    spec, with_frontend = endpoint.spec, has_frontend(endpoint)
    _check_arguments("engine.args", spec.engine.args, with_frontend)
    if spec.engine.config is not None and spec.engine.config.inline is not None:
        _check_config(spec.engine.config.inline, with_frontend)
    _check_environment(spec.worker, with_frontend)
    _check_pod_template("worker.podTemplate", spec.worker.pod_template, with_frontend)
    if spec.prefill is not None:
        _check_prefill(spec, spec.prefill, with_frontend)
    _check_sources(spec)
    _check_routing(spec, with_frontend)


def _check_prefill(spec: VLLMEndpointSpec, prefill: PrefillSpec, with_frontend: bool) -> None:
    if not with_frontend:
        raise PlanError(
            Reason.INVALID_SPEC,
            "prefill: Only a frontend sends requests to prefill workers, and frontend.mode is None. Set "
            "frontend.mode to Managed, or remove this field.",
        )
    if spec.model.type == ModelType.EMBEDDING:
        raise PlanError(
            Reason.INVALID_SPEC, "prefill: A model of type Embedding does not decode. Remove this field."
        )
    if spec.frontend.routing.mode == RoutingMode.KV:
        raise PlanError(
            Reason.INVALID_SPEC,
            "prefill: frontend.routing.mode KV is not supported with prefill yet. Set another mode.",
        )
    _check_arguments("prefill.engine.args", prefill.engine.args, with_frontend)
    _check_pod_template("prefill.podTemplate", prefill.pod_template, with_frontend)


def _check_routing(spec: VLLMEndpointSpec, with_frontend: bool) -> None:
    """Raises PlanError for an option that contradicts ``frontend.routing``."""
    routing = spec.frontend.routing
    if routing == RoutingSpec():
        return
    if not with_frontend:
        raise PlanError(
            Reason.INVALID_SPEC,
            "frontend.routing: There is no frontend because frontend.mode is None. Remove this field.",
        )
    kv = routing.mode == RoutingMode.KV
    if kv and spec.model.type == ModelType.EMBEDDING:
        raise PlanError(
            Reason.INVALID_SPEC,
            "frontend.routing.mode: A model of type Embedding has no KV cache to route by. Set another mode.",
        )
    prefill = spec.prefill or PrefillSpec()
    arguments = [("engine.args", argument) for argument in spec.engine.args]
    arguments += [("prefill.engine.args", argument) for argument in prefill.engine.args]
    for field, argument in arguments:
        if alternative := contradicted_routing(argument, kv=kv):
            raise _contradiction(field, engine_arg_name(argument) or argument, alternative)
    config = spec.engine.config
    for key, value in (config.inline or {}).items() if config is not None else ():
        argument = "--" + key.replace("_", "-")
        if value is not None and (alternative := contradicted_routing(argument, str(value), kv=kv)):
            raise _contradiction("engine.config.inline", key, alternative)
    for name, value, field in _variables(spec, prefill):
        option = environment_option(name)
        alternative = (
            contradicted_routing(name, kv=kv, environment=True)
            if option is None
            else contradicted_routing(option, str(value), kv=kv)
        )
        if alternative:
            raise _contradiction(field, name, alternative)


def _variables(spec: VLLMEndpointSpec, prefill: PrefillSpec) -> Iterator[tuple[str, Any, str]]:
    """Name, value and field of each environment variable of the workers."""
    for item in spec.worker.env:
        yield item.name, item.value, "worker.env"
    for field, template in (
        ("worker.podTemplate", spec.worker.pod_template),
        ("prefill.podTemplate", prefill.pod_template),
    ):
        for name, value in _template_variables(template):
            yield name, value, field


def _contradiction(field: str, subject: str, alternative: str) -> PlanError:
    reason = Reason.INVALID_POD_TEMPLATE if field.endswith(".podTemplate") else Reason.INVALID_SPEC
    return PlanError(reason, f"{field}: {subject} contradicts frontend.routing. Remove it: {alternative}.")


def _check_arguments(field: str, arguments: tuple[str, ...], with_frontend: bool) -> None:
    for argument in arguments:
        if (problem := _argument_problem(argument, with_frontend)) is not None:
            raise _invalid(field, engine_arg_name(argument) or argument.split("=", 1)[0], problem)
    if (found := rejected_value(arguments)) is not None:
        option, reason = found
        raise _invalid(field, option, _unsupported(reason))


def _check_config(config: Mapping[str, Any], with_frontend: bool) -> None:
    for key, value in config.items():
        argument = "--" + key.replace("_", "-")
        # The worker compares these with the spec; null and false leave an option unset.
        is_allowed = argument in COMPARED_OPTIONS or value is None or value is False
        problem = None if is_allowed else _argument_problem(argument, with_frontend)
        if problem is not None:
            raise _invalid("engine.config.inline", key, problem)
        if (found := rejected_value((argument, str(value)))) is not None:
            _, reason = found
            raise _invalid("engine.config.inline", f"{key}: {value}", _unsupported(reason))


def _check_environment(worker: WorkerSpec, with_frontend: bool) -> None:
    for item in worker.env:
        if (problem := _variable_problem(item.name, with_frontend)) is not None:
            raise _invalid("worker.env", item.name, problem)
        if (problem := _value_problem(item.name, item.value)) is not None:
            raise _invalid("worker.env", f"{item.name}={item.value}", problem)


def _check_pod_template(field: str, template: Mapping[str, Any] | None, with_frontend: bool) -> None:
    for name, value in _template_variables(template):
        # The podTemplate may repeat the operator's value: plan.pods.user_template rejects any other value.
        if owned_env(name) is not None:
            continue
        subject, problem = name, _variable_problem(name, with_frontend)
        if problem is None:
            subject, problem = f"{name}={value}", _value_problem(name, value)
        if problem is not None:
            raise PlanError(
                Reason.INVALID_POD_TEMPLATE,
                f"{field}: In env of the container main, {subject} {problem}.",
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


def _check_sources(spec: VLLMEndpointSpec) -> None:
    """Raises PlanError if a variable has two sources."""
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


def _argument_problem(argument: str, with_frontend: bool) -> str | None:
    """Predicate of a sentence about a rejected argument."""
    if (alternative := owned_engine_arg(argument)) is not None:
        return _owned(alternative)
    if (reason := unsupported_engine_arg(argument)) is not None:
        return _unsupported(reason)
    if with_frontend and (alternative := frontend_arg(argument)) is not None:
        return _not_at_url(alternative)
    return None


def _variable_problem(name: str, with_frontend: bool) -> str | None:
    """Predicate of a sentence about a variable that is rejected with any value."""
    if (alternative := owned_env(name)) is not None:
        return _owned(alternative)
    if name in UNSUPPORTED_ENV:
        return _unsupported(UNSUPPORTED_ENV[name])
    if with_frontend and name in FRONTEND_ENV:
        return _not_at_url(FRONTEND_ENV[name])
    argument = environment_option(name)
    # The worker compares the values of these options with the operator's.
    if argument is None or argument in (*COMPARED_OPTIONS, *SERVED_OPTIONS):
        return None
    return _argument_problem(argument, with_frontend)


def _value_problem(name: str, value: Any) -> str | None:
    """Predicate of a sentence about a variable that is rejected with this value."""
    argument = environment_option(name) or _VARIABLES_WITH_REJECTED_VALUES.get(name)
    if argument is None or value is None or (found := rejected_value((argument, str(value)))) is None:
        return None
    _, reason = found
    return _unsupported(reason)


def _owned(alternative: str) -> str:
    return f"is set by the operator. Remove it: {alternative}"


def _unsupported(reason: str) -> str:
    return f"is not supported by the worker. Remove it: {reason}"


def _not_at_url(alternative: str) -> str:
    return f"is read by the server on port 8080, not at status.url. Remove it: {alternative}"


def _invalid(field: str, subject: str, problem: str) -> PlanError:
    return PlanError(Reason.INVALID_SPEC, f"{field}: {subject} {problem}.")

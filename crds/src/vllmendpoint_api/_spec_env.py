"""``worker.env`` and ``worker.envFrom``: a container's environment, as far as a pod can be made of it.

Written out, since what the schema lets through the API server must take: a source that a Deployment is
refused for is refused here, with the field and the fix. ``fileKeyRef`` goes by ``worker.podTemplate``.
"""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from ._base import Contract
from ._owned import (
    COMPARED_OPTIONS,
    OWNED_ENGINE_ARGS,
    OWNED_ENV,
    OWNED_ENV_PREFIX,
    SAGEMAKER_OPTION_PREFIX,
    SERVED_OPTIONS,
    UNSUPPORTED_ENGINE_ARGS,
    UNSUPPORTED_ENV,
)
from ._rules import DataKey, Name, cel_among, cel_list, option_rule, rules

__all__ = ["EnvFrom", "EnvSource", "EnvVar", "FieldRef", "KeyRef", "ResourceFieldRef", "SourceRef"]

_ARGUMENT: Final = f"('--' + self.substring({len(SAGEMAKER_OPTION_PREFIX)}).lowerAscii().replace('_', '-'))"
_VARIABLE: Final = r"[-._a-zA-Z][-._a-zA-Z0-9]*"
_OWNED_RULE: Final = {
    "rule": f"!self.startsWith('{OWNED_ENV_PREFIX}') && !{cel_among(OWNED_ENV, 'self')}",
    "messageExpression": "'worker.env: ' + self + ' is set by the operator; remove it'",
    "message": "worker.env: this name is set by the operator; remove it",
}
_UNSUPPORTED_RULE: Final = {
    "rule": f"!{cel_among(UNSUPPORTED_ENV, 'self')}",
    "messageExpression": "'worker.env: ' + self + ' is not supported by the worker; remove it'",
    "message": "worker.env: this name is not supported by the worker; remove it",
}
_OPTION_RULE: Final = {
    "rule": f"!self.startsWith('{SAGEMAKER_OPTION_PREFIX}') || "
    f"{_ARGUMENT} in {cel_list([*COMPARED_OPTIONS, *SERVED_OPTIONS])} || "
    f"!{option_rule(_ARGUMENT, OWNED_ENGINE_ARGS | UNSUPPORTED_ENGINE_ARGS)}",
    "messageExpression": "'worker.env: ' + self + ' is an engine argument that the operator sets, or the "
    "worker does not support; remove it'",
    "message": "worker.env: this name is an engine argument that the operator sets, or the worker does not "
    "support; remove it",
}


def _one_of(what: str, *names: str) -> dict[str, str]:
    found = ", ".join(f"has(self.{name})" for name in names)
    return {
        "rule": f"[{found}].filter(is, is).size() == 1",
        "message": f"{what}: name one of {', '.join(names)}",
    }


class KeyRef(Contract):
    """A key of a ConfigMap or a Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]
    key: Annotated[DataKey, Field(description="Key in the object.")]
    optional: Annotated[bool | None, Field(description="Whether the pod may start without it.")] = None


class FieldRef(Contract):
    """A field of the pod."""

    field_path: Annotated[
        str,
        Field(
            max_length=400,
            pattern=r"^(metadata\.(name|namespace|uid)|metadata\.(labels|annotations)\['[^']+'\]|"
            r"spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs))$",
            description="Path of the field, for instance spec.nodeName.",
        ),
    ]
    api_version: Annotated[
        str | None, Field(pattern="^v1$", max_length=2, description="Version of the path. Default: v1.")
    ] = None


class ResourceFieldRef(Contract):
    """A resource of the container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.divisor) || "
                "(self.resource.endsWith('.cpu') ? self.divisor in ['1', '1m'] : self.divisor != '1m')",
                "message": "worker.env: resourceFieldRef.divisor: 1 or 1m for cpu, 1 or a unit of bytes for "
                "the rest",
            }
        )
    )
    resource: Annotated[
        str,
        Field(
            max_length=64,
            pattern=r"^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-[1-9][0-9]*[KMG]i)$",
            description="The resource, for instance limits.memory.",
        ),
    ]
    divisor: Annotated[
        str | None,
        Field(
            max_length=3,
            pattern=r"^1(m|[kMGTPE]|[KMGTPE]i)?$",
            description="What it is counted in. Default: 1.",
        ),
    ] = None


class EnvSource(Contract):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _one_of(
                "worker.env: valueFrom", "configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"
            )
        )
    )
    config_map_key_ref: Annotated[KeyRef | None, Field(description="A key of a ConfigMap.")] = None
    secret_key_ref: Annotated[KeyRef | None, Field(description="A key of a Secret.")] = None
    field_ref: Annotated[FieldRef | None, Field(description="A field of the pod.")] = None
    resource_field_ref: Annotated[
        ResourceFieldRef | None, Field(description="A resource of the container.")
    ] = None


class EnvVar(Contract):
    """An environment variable, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.value) && has(self.valueFrom))",
                "messageExpression": "'worker.env: ' + self.name + "
                "' has both value and valueFrom; remove one'",
                "message": "worker.env: a variable has both value and valueFrom; remove one",
            }
        )
    )
    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            pattern=f"^{_VARIABLE}$",
            description="Name of the variable.",
            json_schema_extra=rules(_OWNED_RULE, _UNSUPPORTED_RULE, _OPTION_RULE),
        ),
    ]
    value: Annotated[
        str | None,
        Field(
            max_length=32_768,
            description="Its value, verbatim. Unlike in a container, $(NAME) and $$ are not replaced; to "
            "refer to another variable, set the environment in podTemplate.",
        ),
    ] = None
    value_from: Annotated[
        EnvSource | None, Field(description="Source of the value, as in a container's env.")
    ] = None


class SourceRef(Contract):
    """A ConfigMap or a Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]
    optional: Annotated[bool | None, Field(description="Whether the pod may start without it.")] = None


class EnvFrom(Contract):
    """An object whose keys become environment, as in a container."""

    model_config = ConfigDict(json_schema_extra=rules(_one_of("worker.envFrom", "configMapRef", "secretRef")))
    prefix: Annotated[
        str | None,
        Field(
            max_length=64,
            pattern=f"^({_VARIABLE})?$",
            description="What each name begins with. Default: nothing.",
        ),
    ] = None
    config_map_ref: Annotated[SourceRef | None, Field(description="A ConfigMap.")] = None
    secret_ref: Annotated[SourceRef | None, Field(description="A Secret.")] = None

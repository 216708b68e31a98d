"""``worker.env`` and ``worker.envFrom``, with the schema of a container's environment.

The schema is complete, so that the API server accepts every Deployment that results from an accepted spec.
``fileKeyRef`` is possible only in ``worker.podTemplate``.
"""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from vllmendpoint_api._base import Contract
from vllmendpoint_api._options.rejected import (
    COMPARED_OPTIONS,
    OWNED_ENGINE_ARGS,
    OWNED_ENV,
    OWNED_ENV_PREFIX,
    SAGEMAKER_OPTION_PREFIX,
    SERVED_OPTIONS,
    UNSUPPORTED_ENGINE_ARGS,
    UNSUPPORTED_ENV,
)

from .common import DataKey, Name, cel_among, cel_list, option_rule, rules

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
        "message": f"{what}: set exactly one of {', '.join(names)}",
    }


class KeyRef(Contract):
    """Key of a ConfigMap or Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]
    key: Annotated[DataKey, Field(description="Key in the object.")]
    optional: Annotated[
        bool | None,
        Field(description="Whether the pod can start without the key. Defaults to false."),
    ] = None


class FieldRef(Contract):
    """Field of the pod."""

    field_path: Annotated[
        str,
        Field(
            max_length=400,
            pattern=r"^(metadata\.(name|namespace|uid)|metadata\.(labels|annotations)\['[^']+'\]|"
            r"spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs))$",
            description="Path of the field, for example spec.nodeName.",
        ),
    ]
    api_version: Annotated[
        str | None,
        Field(pattern="^v1$", max_length=2, description="API version of the path. Defaults to v1."),
    ] = None


class ResourceFieldRef(Contract):
    """Resource of the container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.divisor) || "
                "(self.resource.endsWith('.cpu') ? self.divisor in ['1', '1m'] : self.divisor != '1m')",
                "message": "worker.env: resourceFieldRef.divisor: must be 1 or 1m for cpu, and 1 or a unit "
                "of bytes such as 1Mi for other resources",
            }
        )
    )
    resource: Annotated[
        str,
        Field(
            max_length=64,
            pattern=r"^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-[1-9][0-9]*[KMG]i)$",
            description="Name of the resource, for example limits.memory.",
        ),
    ]
    divisor: Annotated[
        str | None,
        Field(
            max_length=3,
            pattern=r"^1(m|[kMGTPE]|[KMGTPE]i)?$",
            description="Unit of the value. Defaults to 1: cores for cpu, bytes for the other resources.",
        ),
    ] = None


class EnvSource(Contract):
    """Source of the value of an environment variable. Exactly one field must be set."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _one_of(
                "worker.env: valueFrom", "configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"
            )
        )
    )
    config_map_key_ref: Annotated[KeyRef | None, Field(description="Key of a ConfigMap.")] = None
    secret_key_ref: Annotated[KeyRef | None, Field(description="Key of a Secret.")] = None
    field_ref: Annotated[FieldRef | None, Field(description="Field of the pod.")] = None
    resource_field_ref: Annotated[
        ResourceFieldRef | None, Field(description="Resource of the container.")
    ] = None


class EnvVar(Contract):
    """Environment variable of the main container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.value) && has(self.valueFrom))",
                "messageExpression": "'worker.env: ' + self.name + "
                "' has both value and valueFrom; remove one of them'",
                "message": "worker.env: a variable has both value and valueFrom; remove one of them",
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
            description="Value of the variable, used verbatim: $(NAME) and $$ are not expanded. Set the "
            "variable in podTemplate to refer to another one. Defaults to empty.",
        ),
    ] = None
    value_from: Annotated[
        EnvSource | None, Field(description="Source of the value. Mutually exclusive with value.")
    ] = None


class SourceRef(Contract):
    """ConfigMap or Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]
    optional: Annotated[
        bool | None,
        Field(description="Whether the pod can start without the object. Defaults to false."),
    ] = None


class EnvFrom(Contract):
    """ConfigMap or Secret whose keys become environment variables of the main container."""

    model_config = ConfigDict(json_schema_extra=rules(_one_of("worker.envFrom", "configMapRef", "secretRef")))
    prefix: Annotated[
        str | None,
        Field(
            max_length=64,
            pattern=f"^({_VARIABLE})?$",
            description="Prefix that is added to each key. Defaults to no prefix.",
        ),
    ] = None
    config_map_ref: Annotated[
        SourceRef | None, Field(description="ConfigMap whose keys become variables.")
    ] = None
    secret_ref: Annotated[SourceRef | None, Field(description="Secret whose keys become variables.")] = None

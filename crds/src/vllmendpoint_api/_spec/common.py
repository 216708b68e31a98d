"""Types and CEL rules that the modules of the spec share."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from vllmendpoint_api._base import Contract
from vllmendpoint_api._options.rejected import NOT_SHORTENED

__all__ = [
    "DNS_SUBDOMAIN",
    "ConfigMapKeyRef",
    "Count",
    "DataKey",
    "IntOrPercent",
    "LocalObjectReference",
    "Name",
    "cel_among",
    "cel_list",
    "option_rule",
    "rules",
]


def rules(*rules: Mapping[str, str | bool]) -> Any:
    """Return the schema extension with these CEL rules."""
    return {"x-kubernetes-validations": list(rules)}


def cel_list(names: list[str]) -> str:
    """Return a CEL list of strings."""
    return "[" + ", ".join(f"'{n}'" for n in names) + "]"


def cel_among(names: Iterable[str], text: str) -> str:
    """Return a CEL condition: ``text`` is one of ``names``. One string costs less than a list."""
    return f"':{':'.join(names)}:'.contains(':' + {text} + ':')"


def option_rule(text: str, options: Iterable[str], *, shortened: bool = True) -> str:
    """Return a CEL condition: ``text`` is one of ``options``, or a prefix of one if ``shortened``."""
    names = list(options)
    kept = [name for name in NOT_SHORTENED if any(option.startswith(name) for option in names)]
    unless = "".join(f" && n != '{name}'" for name in kept)
    among = f"{cel_list(names)}.exists(o, o.startsWith(n)){unless}" if shortened else cel_among(names, "n")
    return f"[{text}.find('^--[^=.]+').replace('_', '-')].exists(n, n != '' && {among})"


DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""Name of an object. The API server rejects all other names."""
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$")]
"""Key of a ConfigMap or a Secret."""
Count = Annotated[int, Field(ge=0, le=10_000)]
IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": 10_000,
            "maxLength": 4,
            "pattern": r"^(100|[1-9]?[0-9])%$",
        }
    ),
    Field(union_mode="left_to_right"),
]


class ConfigMapKeyRef(Contract):
    """Key of a ConfigMap in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[DataKey, Field(description="Key in the ConfigMap. Defaults to config.yaml.")] = (
        "config.yaml"
    )


class LocalObjectReference(Contract):
    """Reference to an object in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the object.")]

"""The pydantic base of every model in the contract."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

__all__ = ["MAX_DEPTH", "Contract", "JsonObject", "Quantity"]


class Contract(BaseModel):
    """camelCase on the wire, snake_case in code, immutable, and strict about unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_enum_values=True,
        protected_namespaces=(),
    )

    def wire(self) -> dict[str, Any]:
        """The JSON form: camelCase, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


MAX_DEPTH: Final = 32
"""Levels of a free-form object, in a spec, in a report and in what a worker reads: the API server takes ten
thousand, and cannot be told not to."""


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError. Level by level: recursion is what has to be kept away."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


JsonObject = Annotated[
    dict[str, Any],
    AfterValidator(_shallow),
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A free-form object that the API server keeps as it is."""

Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "minimum": 0,
            "pattern": r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
            r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]{1,2}))?$",
        }
    ),
    Field(union_mode="left_to_right"),
]
"""A Kubernetes quantity, not negative: ``500m``, ``8Gi``, ``1``."""

"""The pydantic base class of all models of the API, and types for free-form objects and quantities."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

__all__ = ["MAX_DEPTH", "Contract", "JsonObject", "Quantity"]


class Contract(BaseModel):
    """Base class: camelCase in JSON, snake_case in code, immutable. Unknown fields are an error."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_enum_values=True,
        protected_namespaces=(),
    )

    def wire(self) -> dict[str, Any]:
        """Return the JSON form, with camelCase names and without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


MAX_DEPTH: Final = 32
"""Maximum depth of a free-form object in a spec, a report or a file that a worker reads. The API server
allows 10,000 levels, and a CRD cannot lower that limit."""


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError. Iterates level by level, because recursion could exceed Python's recursion limit."""
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
"""A free-form object. The API server preserves its unknown fields."""

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
"""A non-negative Kubernetes quantity, for example ``500m``, ``8Gi`` or ``1``."""

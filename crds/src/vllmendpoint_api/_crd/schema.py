"""Generates the CustomResourceDefinition from the pydantic models.

``python -m vllmendpoint_api`` prints it, ``make generate`` writes it and ``make lint`` compares it.
"""

from typing import Any, Final

from pydantic import BaseModel

from vllmendpoint_api import _names as names
from vllmendpoint_api._spec.endpoint import VLLMEndpointSpec
from vllmendpoint_api._status import VLLMEndpointStatus

__all__ = ["custom_resource_definition", "structural_schema"]

_DROPPED: Final = ("title", "default", "additionalProperties", "$defs")
_NAME_RULES: Final[list[dict[str, Any]]] = [
    {
        "rule": f"size(self.metadata.name) <= {names.NAME_MAX_LENGTH}",
        "message": f"metadata.name: must be at most {names.NAME_MAX_LENGTH} characters long, because the "
        "names of the endpoint's pods and Services contain it",
    },
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "metadata.name: must consist of lowercase letters, digits and '-', start with a letter "
        "and end with a letter or digit, because the name of a Service contains it",
    },
    *(
        {
            # Applies to new endpoints only. Existing endpoints keep their names.
            "rule": f"oldSelf.hasValue() || !self.metadata.name.endsWith('{suffix}')",
            "optionalOldSelf": True,
            "message": f"metadata.name: must not end with {suffix}, because the {pods}' Service of the "
            "endpoint without that suffix has this name; choose another name",
        }
        for suffix, pods in (
            (names.WORKERS_SUFFIX, "workers"),
            (names.PREFILL_SUFFIX, "prefill workers"),
        )
    ),
]


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's JSON schema as a structural schema, without ``$ref``, ``null`` and titles.

    Keeps defaults, except objects and empty values, so that the stored object shows the effective values.
    """
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    if "x-kubernetes-int-or-string" not in node and "anyOf" in node:
        (only,) = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
        return _structural({**only, **{k: v for k, v in node.items() if k != "anyOf"}}, defs)
    if "allOf" in node:
        (only,) = node["allOf"]
        return _structural({**only, **{k: v for k, v in node.items() if k != "allOf"}}, defs)

    out = {key: value for key, value in node.items() if key not in _DROPPED}
    default = node.get("default")
    if isinstance(default, str | int | float | bool | list) and default not in ("", []):
        out["default"] = default
    if "description" in out:
        out["description"] = " ".join(str(out["description"]).split())
    if "properties" in out:
        out["properties"] = {name: _structural(value, defs) for name, value in out["properties"].items()}
    if isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _structural(node["additionalProperties"], defs)
    if "items" in out:
        out["items"] = _structural(out["items"], defs)
    return out


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD of VLLMEndpoint."""
    spec = structural_schema(VLLMEndpointSpec)
    status = structural_schema(VLLMEndpointStatus)
    for name, field in status["properties"].items():
        if name != "observedGeneration":
            field.pop("default", None)  # the operator writes the complete status
    # Otherwise kstatus treats a resource that no operator has reconciled as current.
    status["default"] = {"observedGeneration": -1}
    status.pop("required", None)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": _printer_columns(),
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "Model that is served by NVIDIA Dynamo and vLLM. The "
                            "status reports whether its engines generate tokens.",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                # A limit, for the cost estimate of the rules on the name.
                                "metadata": {
                                    "type": "object",
                                    "properties": {"name": {"type": "string", "maxLength": 63}},
                                },
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": _NAME_RULES,
                        }
                    },
                }
            ],
        },
    }


def _printer_columns() -> list[dict[str, Any]]:
    def condition(name: str, field: str) -> str:
        return f'.status.conditions[?(@.type=="{name}")].{field}'

    columns = [
        ("Model", "string", ".status.modelName", 0),
        ("Ready", "string", condition("Ready", "status"), 0),
        ("Replicas", "integer", ".status.replicas", 0),
        ("Generating", "integer", ".status.generatingReplicas", 0),
        ("Routed", "integer", ".status.routedReplicas", 0),
        ("Reason", "string", condition("Ready", "reason"), 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("URL", "string", ".status.url", 1),
        ("Payload", "string", ".status.healthCheck.source", 1),
        ("Handlers", "string", ".status.handlers.invocations.source", 1),
    ]
    return [
        {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}
        for name, kind, path, wide in columns
    ]

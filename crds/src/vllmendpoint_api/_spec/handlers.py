"""``spec.handlers``."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from vllmendpoint_api._base import Contract

from .common import DataKey, Name, rules

__all__ = ["HandlerScript", "HandlersSpec", "ScriptKeyRef"]


class ScriptKeyRef(Contract):
    """Key of a ConfigMap in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[DataKey, Field(description="Key in the ConfigMap. Defaults to model.py.")] = "model.py"


class HandlerScript(Contract):
    """Python script with the handlers. It replaces the script in the model data (model.py)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "has(self.inline) != has(self.configMapKeyRef)",
                "message": "handlers.script: set exactly one of inline and configMapKeyRef",
            }
        )
    )
    inline: Annotated[
        str | None, Field(min_length=1, max_length=262_144, description="Content of the script.")
    ] = None
    config_map_key_ref: Annotated[
        ScriptKeyRef | None, Field(description="Key of a ConfigMap that contains the script.")
    ] = None


def _handler(field: str) -> Any:
    return rules(
        {
            "rule": "self.matches('^[^\\\\s:]+:[^\\\\s:]+$')",
            "message": f"handlers.{field}: must have the form file:function or module:function, for example "
            f"model:{field}_handler, handlers.py:f, /opt/ml/model/handlers.py:f or package.module:f",
        }
    )


class HandlersSpec(Contract):
    """Custom handlers for /ping and /invocations, as in SageMaker containers."""

    script: Annotated[
        HandlerScript | None,
        Field(
            description="Python script with the handlers, which `model:` in ping and invocations refers to. "
            "Defaults to model.py in the model data, if it exists."
        ),
    ] = None
    ping: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Handler of /ping: model:f, file.py:f, /path/file.py:f or package.module:f.",
            json_schema_extra=_handler("ping"),
        ),
    ] = None
    invocations: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Handler of /invocations: model:f, file.py:f, /path/file.py:f or package.module:f.",
            json_schema_extra=_handler("invocations"),
        ),
    ] = None

"""``spec.healthCheck`` and ``spec.handlers``: how a worker is asked, and who answers."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ._base import Contract, JsonObject
from ._health import Level, Mode
from ._rules import DataKey, Name, rules

__all__ = [
    "Expect",
    "HandlerScript",
    "Handlers",
    "HealthCheck",
    "ScriptKeyRef",
]


class Expect(Contract):
    """What an answer must be to count as generating."""

    regex: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Regular expression (RE2) that is searched for in the generated text.",
            json_schema_extra=rules(
                {
                    "rule": "''.matches(self) in [true, false]",
                    "message": "healthCheck.expect.regex: not a regular expression (RE2 syntax)",
                },
            ),
        ),
    ]


class HealthCheck(Contract):
    """How the engine is asked to generate. Nothing here has a default in the schema: a default
    would outrank the environment and the config file."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.level) && has(self.payload))",
                "message": "healthCheck: level and payload are both set; remove one "
                "(a level stands for a payload)",
            }
        )
    )
    mode: Annotated[
        Mode | None,
        Field(
            description="Enforce: readiness follows the verdict (default). Observe: the verdict is "
            "reported only. Disabled: no probes."
        ),
    ] = None
    level: Annotated[
        Level | None,
        Field(description="Minimal, Standard or Comprehensive: the payload of that level."),
    ] = None
    payload: Annotated[
        JsonObject | None,
        Field(
            description="The request that the engine is asked to answer: prompt, messages or input, "
            "and sampling fields.",
            json_schema_extra={"minProperties": 1, "maxProperties": 64},
        ),
    ] = None
    expect: Annotated[
        Expect | None,
        Field(description="What the answer must be: generating garbage is not generating."),
    ] = None
    period_seconds: Annotated[
        int | None, Field(ge=1, le=86_400, description="Time between probes when idle. Default: 30.")
    ] = None
    timeout_seconds: Annotated[
        int | None, Field(ge=1, le=3_600, description="Time for one whole answer. Default: 5.")
    ] = None
    failure_threshold: Annotated[
        int | None,
        Field(ge=1, le=100, description="Failed probes in a row before the verdict is Failing. Default: 2."),
    ] = None
    success_threshold: Annotated[
        int | None,
        Field(ge=1, le=100, description="Good probes in a row before the verdict is back. Default: 1."),
    ] = None
    restart_after_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=86_400,
            description="A worker that has certainly stalled this long ends itself. 0: never. Default: 600.",
        ),
    ] = None


class ScriptKeyRef(Contract):
    """A key of a ConfigMap in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[DataKey, Field(description="Key in the ConfigMap.")] = "model.py"


class HandlerScript(Contract):
    """The script with the handlers (model.py). It takes the place of the one in the model's data."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "has(self.inline) != has(self.configMapKeyRef)",
                "message": "handlers.script: set exactly one of inline and configMapKeyRef",
            }
        )
    )
    inline: Annotated[
        str | None, Field(min_length=1, max_length=262_144, description="The script itself.")
    ] = None
    config_map_key_ref: Annotated[
        ScriptKeyRef | None, Field(description="A ConfigMap's key that holds the script.")
    ] = None


def _handler(field: str) -> Any:
    return rules(
        {
            "rule": "self.matches('^[^\\\\s:]+:[^\\\\s:]+$')",
            "message": f"handlers.{field}: give where:function, for instance model:{field}_handler, "
            "handlers.py:f, /opt/ml/model/handlers.py:f or package.module:f",
        }
    )


class Handlers(Contract):
    """Custom handlers for /ping and /invocations, as SageMaker's containers have them."""

    script: Annotated[
        HandlerScript | None, Field(description="The script; `model:` in a handler's path means it.")
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

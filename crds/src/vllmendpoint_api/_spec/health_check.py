"""``spec.healthCheck``."""

from typing import Annotated

from pydantic import ConfigDict, Field

from vllmendpoint_api._base import Contract, JsonObject
from vllmendpoint_api._health import Level, Mode

from .common import rules

__all__ = ["Expect", "HealthCheckSpec"]


class Expect(Contract):
    """Condition on the text that a probe generates."""

    regex: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Regular expression in RE2 syntax. The probe fails with UnexpectedAnswer if the "
            "generated text contains no match.",
            json_schema_extra=rules(
                {
                    "rule": "''.matches(self) in [true, false]",
                    "message": "healthCheck.expect.regex: must be a regular expression in RE2 syntax",
                },
            ),
        ),
    ]


class HealthCheckSpec(Contract):
    """Health check of the engine. No field has a default in the schema, because a default would take
    precedence over the environment and the config file."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.level) && has(self.payload))",
                "message": "healthCheck: level and payload are both set; remove one of them",
            }
        )
    )
    mode: Annotated[
        Mode | None,
        Field(
            description="Enforce: the readiness of the worker follows the verdict. Observe: the worker only "
            "reports the verdict. Disabled: the worker sends no probes. Defaults to Enforce."
        ),
    ] = None
    level: Annotated[
        Level | None,
        Field(
            description="Predefined payload: Minimal (1 token), Standard (5 tokens) or Comprehensive (50 "
            "tokens). Mutually exclusive with payload. Defaults to Minimal."
        ),
    ] = None
    payload: Annotated[
        JsonObject | None,
        Field(
            description="Body of the probe's request: prompt, messages or input, and sampling fields. "
            "Defaults to the payload of level for the type of the model.",
            json_schema_extra={"minProperties": 1, "maxProperties": 64},
        ),
    ] = None
    expect: Annotated[
        Expect | None,
        Field(description="Condition on the text that a probe generates. If unset, any text passes."),
    ] = None
    period_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=86_400,
            description="Seconds between probes of an idle engine. Defaults to 30.",
        ),
    ] = None
    timeout_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=3_600,
            description="Seconds after which a probe without a complete response times out. Defaults to 5.",
        ),
    ] = None
    failure_threshold: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="Consecutive failed probes after which the verdict becomes Failing. Defaults to 2.",
        ),
    ] = None
    success_threshold: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="Consecutive successful probes after which the verdict becomes Generating again. "
            "Defaults to 1.",
        ),
    ] = None
    restart_after_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=86_400,
            description="Seconds after which a worker with a stalled engine exits and is restarted. 0: "
            "never. Defaults to 600.",
        ),
    ] = None

"""Where a handler comes from, and which wins: the one table that code, docs and tests share.

Source: the guide "Customize Handlers" ("Handler Resolution Priority"), with the resource above it (design,
section 4).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["HANDLER_PRECEDENCE", "HandlerRow", "HandlerSource"]


class HandlerSource(StrEnum):
    """Where the handler in force came from, as reported in ``status.handlers``."""

    SPEC = "Spec"
    ENVIRONMENT = "Environment"
    DECORATOR = "Decorator"
    FUNCTION = "Function"
    DEFAULT = "Default"


@dataclass(frozen=True, slots=True)
class HandlerRow:
    source: HandlerSource
    ping: str
    """Where a user sets the handler of ``/ping``."""
    invocations: str


HANDLER_PRECEDENCE: Final = (
    HandlerRow(HandlerSource.SPEC, "`handlers.ping` of the VLLMEndpoint", "`handlers.invocations`"),
    HandlerRow(
        HandlerSource.ENVIRONMENT, "`CUSTOM_FASTAPI_PING_HANDLER`", "`CUSTOM_FASTAPI_INVOCATION_HANDLER`"
    ),
    HandlerRow(
        HandlerSource.DECORATOR,
        "`@custom_ping_handler` in the script",
        "`@custom_invocation_handler` in the script",
    ),
    HandlerRow(
        HandlerSource.FUNCTION, "`custom_sagemaker_ping_handler`", "`custom_sagemaker_invocation_handler`"
    ),
    HandlerRow(HandlerSource.DEFAULT, "vLLM's own, by the verdict", "vLLM's own"),
)
"""First match wins, for ping and invocations apart."""

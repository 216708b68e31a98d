"""Sources of handlers, in order of precedence. The code, the documentation and the tests use this table.

Source: the guide "Customize Handlers", section "Handler Resolution Priority". The VLLMEndpoint has precedence
over the sources in the guide.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["HANDLER_PRECEDENCE", "SCRIPT_SOURCE", "HandlerRow", "HandlerSource"]


class HandlerSource(StrEnum):
    """Source of a handler, as reported in ``status.handlers``."""

    SPEC = "Spec"
    ENVIRONMENT = "Environment"
    DECORATOR = "Decorator"
    FUNCTION = "Function"
    DEFAULT = "Default"


SCRIPT_SOURCE: Final = "Script"
"""Source of a problem with the script itself, which no :class:`HandlerSource` names."""


@dataclass(frozen=True, slots=True)
class HandlerRow:
    """One source of handlers, and how a user sets the handler of ``/ping`` and ``/invocations`` there."""

    source: HandlerSource
    ping: str
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
    HandlerRow(HandlerSource.DEFAULT, "vLLM's own, which follows the verdict", "vLLM's own"),
)
"""The first source that sets a handler wins, separately for ping and invocations."""

"""SageMaker-style custom handlers of ``/ping`` and ``/invocations`` (the guide "Customize Handlers").

Reading what is asked for (:func:`read`) runs none of the user's code; :class:`HandlerRoom` imports, binds and
swaps; :class:`PingWatch` asks the custom ping handler. Who decides between environment, decorator and
function name is SageMaker's own package, through ``_standards``.
"""

from ._ping import PingWatch
from ._room import Generation, HandlerRoom
from ._wanted import HANDLER_VARIABLES, MIDDLEWARE_VARIABLES, Route, Wanted, read

__all__ = [
    "HANDLER_VARIABLES",
    "MIDDLEWARE_VARIABLES",
    "Generation",
    "HandlerRoom",
    "PingWatch",
    "Route",
    "Wanted",
    "read",
]

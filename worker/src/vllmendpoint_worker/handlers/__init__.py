"""SageMaker-style custom handlers of ``/ping`` and ``/invocations`` (the guide "Customize Handlers").

:class:`HandlerRoom` imports, binds and swaps what :mod:`vllmendpoint_worker.config.handler_config` has read;
:class:`PingWatch` asks the custom ping handler. Who decides between environment, decorator and function name
is SageMaker's own package, through ``_standards``.
"""

from ._manager import Generation, HandlerRoom
from ._ping import PingWatch
from ._routes import complete
from ._unblock import Unblocker
from .loading._load import Loaded

__all__ = [
    "Generation",
    "HandlerRoom",
    "Loaded",
    "PingWatch",
    "Unblocker",
    "complete",
]

"""Serves the customer's handlers of ``/ping`` and ``/invocations`` and probes the custom ping handler.

Imports ``config``, ``serving``, ``packages`` and ``process``; only ``loading`` imports SageMaker's
``model_hosting_container_standards``. The page docs/guide/custom-handlers.md describes what users write.
"""

from ._generation import Generation
from ._interrupter import HandlerInterrupter
from ._manager import HandlerManager
from ._ping_prober import PingProber
from ._sagemaker_routes import install_sagemaker_routes
from .loading._loader import LoadedHandlers

__all__ = [
    "Generation",
    "HandlerInterrupter",
    "HandlerManager",
    "LoadedHandlers",
    "PingProber",
    "install_sagemaker_routes",
]

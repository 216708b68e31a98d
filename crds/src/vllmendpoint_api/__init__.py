"""The contract of VLLMEndpoint: spec, status, worker settings, worker report, payload precedence.

Both halves of the system import it; it imports neither.
"""

from . import _names as names
from ._base import Contract, JsonObject, Quantity
from ._health import *  # noqa: F403
from ._health import __all__ as _health
from ._report import *  # noqa: F403
from ._report import __all__ as _report
from ._settings import *  # noqa: F403
from ._settings import __all__ as _settings

__all__ = ["Contract", "JsonObject", "Quantity", "names", *_health, *_report, *_settings]

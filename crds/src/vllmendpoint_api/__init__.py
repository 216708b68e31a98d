"""The VLLMEndpoint API: spec, status, worker settings, worker report and payload precedence.

The operator and the worker import this package. It imports neither of them.
"""

from . import _names as names
from ._base import MAX_DEPTH, Contract, JsonObject, Quantity
from ._conditions import *  # noqa: F403
from ._conditions import __all__ as _conditions
from ._frontend_report import *  # noqa: F403
from ._frontend_report import __all__ as _frontend_report
from ._handlers import *  # noqa: F403
from ._handlers import __all__ as _handlers
from ._health import *  # noqa: F403
from ._health import __all__ as _health
from ._rejected_options import *  # noqa: F403
from ._rejected_options import __all__ as _rejected_options
from ._report import *  # noqa: F403
from ._report import __all__ as _report
from ._schema import *  # noqa: F403
from ._schema import __all__ as _schema
from ._settings import *  # noqa: F403
from ._settings import __all__ as _settings
from ._spec import *  # noqa: F403
from ._spec import __all__ as _spec
from ._spec_common import ConfigMapKeyRef, LocalObjectReference
from ._spec_engine import *  # noqa: F403
from ._spec_engine import __all__ as _spec_engine
from ._spec_env import *  # noqa: F403
from ._spec_env import __all__ as _spec_env
from ._spec_handlers import *  # noqa: F403
from ._spec_handlers import __all__ as _spec_handlers
from ._spec_health_check import *  # noqa: F403
from ._spec_health_check import __all__ as _spec_health_check
from ._spec_worker import *  # noqa: F403
from ._spec_worker import __all__ as _spec_worker
from ._status import *  # noqa: F403
from ._status import __all__ as _status

__all__ = [  # noqa: PLE0604
    "MAX_DEPTH",
    "ConfigMapKeyRef",
    "Contract",
    "JsonObject",
    "LocalObjectReference",
    "Quantity",
    "names",
    *_conditions,
    *_frontend_report,
    *_handlers,
    *_health,
    *_rejected_options,
    *_report,
    *_schema,
    *_settings,
    *_spec,
    *_spec_handlers,
    *_spec_health_check,
    *_spec_engine,
    *_spec_env,
    *_spec_worker,
    *_status,
]

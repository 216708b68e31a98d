"""The VLLMEndpoint API: spec, status, worker settings, worker report and payload precedence.

The operator and the worker import this package. It imports neither of them.
"""

from . import _names as names
from ._base import MAX_DEPTH, Contract, JsonObject, Quantity
from ._conditions import *  # noqa: F403
from ._conditions import __all__ as _conditions
from ._crd.schema import *  # noqa: F403
from ._crd.schema import __all__ as _schema
from ._frontend_report import *  # noqa: F403
from ._frontend_report import __all__ as _frontend_report
from ._handlers import *  # noqa: F403
from ._handlers import __all__ as _handlers
from ._health import *  # noqa: F403
from ._health import __all__ as _health
from ._options.rejected import *  # noqa: F403
from ._options.rejected import __all__ as _rejected_options
from ._report import *  # noqa: F403
from ._report import __all__ as _report
from ._settings import *  # noqa: F403
from ._settings import __all__ as _settings
from ._spec.common import ConfigMapKeyRef, LocalObjectReference
from ._spec.endpoint import *  # noqa: F403
from ._spec.endpoint import __all__ as _spec_endpoint
from ._spec.engine import *  # noqa: F403
from ._spec.engine import __all__ as _spec_engine
from ._spec.env import *  # noqa: F403
from ._spec.env import __all__ as _spec_env
from ._spec.handlers import *  # noqa: F403
from ._spec.handlers import __all__ as _spec_handlers
from ._spec.health_check import *  # noqa: F403
from ._spec.health_check import __all__ as _spec_health_check
from ._spec.prefill import *  # noqa: F403
from ._spec.prefill import __all__ as _spec_prefill
from ._spec.worker import *  # noqa: F403
from ._spec.worker import __all__ as _spec_worker
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
    *_spec_endpoint,
    *_spec_engine,
    *_spec_env,
    *_spec_handlers,
    *_spec_health_check,
    *_spec_prefill,
    *_spec_worker,
    *_status,
]

"""Build the status of an endpoint from its spec, the observed objects and the plan. Pure: no I/O, no clock.

Imports ``components``, ``desired_state``, ``observe`` and ``errors``; not ``plan``, ``apply`` or
``controller``. ``conditions`` has one module per condition; ``diagnosis`` explains why a pod is not ready.
"""

from .endpoint_status import endpoint_status, invalid_spec_status, partial_spec_status

__all__ = ["endpoint_status", "invalid_spec_status", "partial_spec_status"]

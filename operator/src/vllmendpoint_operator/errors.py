"""Exceptions that the operator raises.

OperatorError
├── KubeError                    the API server returned an error, or no valid response arrived (status 0)
│   ├── NotFound                 404
│   ├── Conflict                 409
│   ├── Gone                     410: the resourceVersion of a watch is too old
│   ├── WatchListUnsupported     422: the API server cannot send a list as part of a watch
│   ├── Rejected                 400, 403, 422: the object is invalid or forbidden; a retry does not help
│   ├── MissingCredentials       no request was sent: there are no credentials, or they cannot be read
│   ├── NamespaceTerminating     403 because the namespace is being deleted: nothing is left to reconcile
│   └── Throttled                429
├── Inaccessible                 the API server repeatedly answers 403 or 404 to list and watch requests
├── RestartRequired              this process cannot continue, but a new one can: it exits with code 1
│   ├── LeaseLost                the lease expired, so no write is allowed
│   └── UntrustedCertificate     no loaded certificate authority signed the API server's certificate
└── ConditionError               the spec does not take effect; carries the reason and message of a condition
    ├── PlanError                the spec, or an object that it references, does not allow a plan
    └── TerminalError            the API server rejected a child, or its name is taken; a retry does not help
"""

from vllmendpoint_api import Reason

__all__ = [
    "ConditionError",
    "Conflict",
    "Gone",
    "Inaccessible",
    "KubeError",
    "LeaseLost",
    "MissingCredentials",
    "NamespaceTerminating",
    "NotFound",
    "OperatorError",
    "PlanError",
    "Rejected",
    "RestartRequired",
    "TerminalError",
    "Throttled",
    "UntrustedCertificate",
    "WatchListUnsupported",
]


class OperatorError(Exception):
    """Base class of all exceptions of the operator."""


class KubeError(OperatorError):
    """The API server returned an error.

    Args:
        status: HTTP status code; 0 if no valid response arrived.
        message: the ``message`` of the returned ``Status`` object.
        retry_after: seconds from the header ``Retry-After``; None without one.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NotFound(KubeError):
    pass


class Conflict(KubeError):
    pass


class Gone(KubeError):
    pass


class MissingCredentials(KubeError):
    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class WatchListUnsupported(KubeError):
    pass


class Rejected(KubeError):
    pass


class NamespaceTerminating(KubeError):
    pass


class Throttled(KubeError):
    pass


class Inaccessible(OperatorError):
    """A namespace does not exist, or the operator has no permissions in it."""

    def __init__(self, plural: str, refusal: KubeError) -> None:
        super().__init__(f"{plural}: {refusal}")


class RestartRequired(OperatorError):
    pass


class LeaseLost(RestartRequired):
    pass


class UntrustedCertificate(RestartRequired):
    pass


class ConditionError(OperatorError):
    """The spec does not take effect; the reason and message appear in a condition of the endpoint."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class PlanError(ConditionError):
    pass


class TerminalError(ConditionError):
    pass

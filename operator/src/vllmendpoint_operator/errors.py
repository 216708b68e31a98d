"""The operator's exceptions.

OperatorError
├── KubeError                the API server answered with an error
│   ├── NotFound             404
│   ├── Conflict             409
│   ├── Gone                 410: a watch's resourceVersion is too old
│   ├── NotStreamed          422: the API server lists in answers only, not by a watch
│   ├── Rejected             400, 403, 422: the object itself is refused; trying again does not help
│   ├── NoLogin              nothing was asked: there are no credentials, or they cannot be read
│   ├── NamespaceGoing       403, since the namespace is being deleted: there is nothing left to do
│   └── Throttled            429
├── Inaccessible             the API server lets us neither list nor watch there: 403, 404, again and again
├── StartAnew                this process cannot go on; the next one may
│   ├── LeaseLost            the lease ran out: nothing may be written any more
│   └── Untrusted            the API server's certificate is of no authority known here, or of one no longer
└── PlanError                the spec cannot be planned; carries a condition's reason
"""

from vllmendpoint_api import Reason

__all__ = [
    "Conflict",
    "Gone",
    "Inaccessible",
    "KubeError",
    "LeaseLost",
    "NamespaceGoing",
    "NoLogin",
    "NotFound",
    "NotStreamed",
    "OperatorError",
    "PlanError",
    "Rejected",
    "StartAnew",
    "Throttled",
    "Untrusted",
]


class OperatorError(Exception):
    """Base of all."""


class KubeError(OperatorError):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asked to wait, if it did."""


class NotFound(KubeError):
    pass


class Conflict(KubeError):
    pass


class Gone(KubeError):
    pass


class NoLogin(KubeError):
    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class NotStreamed(KubeError):
    pass


class Rejected(KubeError):
    pass


class NamespaceGoing(KubeError):
    pass


class Throttled(KubeError):
    pass


class Inaccessible(OperatorError):
    """A namespace that is gone, or in which the operator has no rights."""

    def __init__(self, plural: str, refusal: KubeError) -> None:
        super().__init__(f"{plural}: {refusal}")


class StartAnew(OperatorError):
    pass


class LeaseLost(StartAnew):
    pass


class Untrusted(StartAnew):
    pass


class PlanError(OperatorError):
    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

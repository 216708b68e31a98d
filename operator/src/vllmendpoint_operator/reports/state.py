"""What the operator knows about one pod's report stream; pure, so that snapshots can hold it."""

from dataclasses import dataclass

from vllmendpoint_api import FrontendReport, WorkerReport

__all__ = ["ReportTarget", "StreamState"]


@dataclass(frozen=True, slots=True)
class ReportTarget:
    """A pod that serves reports."""

    uid: str
    address: str
    """The pod's IP address."""
    owner: tuple[str, str]
    """(namespace, name) of the endpoint."""
    is_frontend: bool = False
    """Whether the pod sends the reports of a frontend, not of a worker."""


@dataclass(frozen=True, slots=True)
class StreamState:
    report: WorkerReport | None = None
    """The newest report of a worker; it stays after the stream has ended."""
    connected: bool = False
    grace_expired: bool = False
    """A report has arrived, or none arrived within the grace period: a missing stream is now a finding."""
    error: str = ""
    """Why the stream ended or could not be opened."""
    frontend: FrontendReport | None = None
    """The newest report of a frontend; it stays after the stream has ended."""
    silent: bool = False
    """A heartbeat is missing, but the stream is not closed yet."""

    @property
    def disconnected(self) -> bool:
        return self.grace_expired and not self.connected

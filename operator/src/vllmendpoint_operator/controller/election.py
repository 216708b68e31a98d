"""Elects one leader by a Lease; the leader stops writing before its Lease expires.

kopf's peering is not a lock. ``leaderelection`` of the package ``kubernetes`` bounds neither a request that
hangs nor the time of the last write, so two leaders could write at the same time.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

from vllmendpoint_operator.errors import KubeError, LeaseLost, NotFound
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import LEASE

__all__ = ["LeaderElection"]

log = logging.getLogger(__name__)

_RELEASE_SECONDS: Final = 2.0
"""Maximum time for the release of the lease when the process ends."""


class LeaderElection:
    """``async with LeaderElection(...) as election`` waits for the lease; :meth:`renew` renews it.

    Times are seconds of ``clock``, which must be monotonic. The times that another holder writes into the
    lease are ignored, because clocks of machines differ: its lease expires a duration after the last change
    that this process observed.

    Args:
        namespace: namespace of the Lease.
        name: name of the Lease.
        identity: unique name of this process.
        duration: seconds until a lease that is not renewed expires.
        while_waiting: context that is entered while another process holds the lease.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        clock: Callable[[], float] = monotonic,
        while_waiting: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration
        self._clock = clock
        self._while_waiting = while_waiting
        self.lease_reachable = False
        """Whether the last request for the lease succeeded."""
        self._valid_until = 0.0
        self._observed_record: tuple[str, float] = ("", 0.0)
        """(contents of another holder's lease, time at which they were first observed)."""

    @property
    def _retry_seconds(self) -> float:
        return self._duration / 6

    def remaining_seconds(self) -> float:
        """Maximum duration of a write that starts now, so that it ends before the lease expires.

        Raises LeaseLost if too little time remains to start a write.
        """
        self.check_valid()
        return self._valid_until - self._clock()

    def check_valid(self) -> None:
        """Raises LeaseLost if less than a third of the duration remains."""
        if self._clock() >= self._valid_until - self._duration / 3:
            raise LeaseLost("The lease was not renewed in time. This process stops writing and must restart.")

    async def __aenter__(self) -> "LeaderElection":
        log.info("waiting for the lease", extra=self._log_fields())
        if not await self.try_acquire_or_renew():
            async with self._while_waiting():
                while not await self.try_acquire_or_renew():  # noqa: ASYNC110  (a lease sends no events)
                    await asyncio.sleep(self._retry_seconds)
        log.info("this process leads", extra=self._log_fields())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._clock() < self._valid_until:
            await self._release()

    async def renew(self) -> None:
        """Renew the lease until cancelled. Raises LeaseLost before another process may lead."""
        while True:
            await asyncio.sleep(self._retry_seconds)
            await self.try_acquire_or_renew()
            self.check_valid()

    async def try_acquire_or_renew(self) -> bool:
        """Make one attempt. Return whether this process holds the lease; False also if a request fails.

        Raises LeaseLost if another process has taken the lease while it was valid.
        """
        started = self._clock()
        try:
            async with asyncio.timeout(self._retry_seconds * 2):
                is_holder = await self._acquire_or_renew()
        except (KubeError, TimeoutError) as error:
            log.warning("cannot acquire or renew the lease", extra=self._log_fields(error))
            self.lease_reachable = False
            return False
        self.lease_reachable = True
        if is_holder:
            # From the time before the request: other processes may count from any time after it.
            self._valid_until = started + self._duration
        elif self._valid_until > started:
            raise LeaseLost(
                "Another process has taken the lease. This process stops writing and must restart."
            )
        return is_holder

    async def _acquire_or_renew(self) -> bool:
        try:
            lease = await self._kube.get(LEASE, self._namespace, self._name)
        except NotFound:
            return await self._write_lease(None)
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity):
            record = f"{holder} {spec.get('renewTime')} {spec.get('leaseTransitions')}"
            if record != self._observed_record[0]:
                self._observed_record = (record, self._clock())
            duration = float(spec.get("leaseDurationSeconds") or self._duration)
            if self._clock() < self._observed_record[1] + duration:
                return False
        return await self._write_lease(lease)

    async def _write_lease(self, lease: dict[str, Any] | None) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (lease or {}).get("spec") or {}
        is_renewal = old.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._duration),
            "acquireTime": old.get("acquireTime") if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if is_renewal else 1),
        }
        # A Conflict does not end the leadership: the next attempt reads who holds the lease.
        if lease is None:
            await self._create_lease(spec)
        else:
            await self._kube.replace(LEASE, {**lease, "spec": spec})
        return True

    async def _create_lease(self, spec: dict[str, Any]) -> None:
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": spec,
        }
        await self._kube.create(LEASE, body)

    async def _release(self) -> None:
        """Clear the holder, so that the next process need not wait until the lease expires."""
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                lease = await self._kube.get(LEASE, self._namespace, self._name)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._kube.replace(LEASE, lease)
        except (KubeError, TimeoutError) as error:
            log.warning("cannot release the lease", extra=self._log_fields(error))
        self._valid_until = 0.0

    def _log_fields(self, error: Exception | None = None) -> dict[str, str]:
        fields = {"lease": f"{self._namespace}/{self._name}", "identity": self._identity}
        return fields if error is None else fields | {"error": str(error) or type(error).__name__}

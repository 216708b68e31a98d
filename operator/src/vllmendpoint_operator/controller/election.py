"""One leader, by a Lease, that stops writing before the Lease runs out.

kopf's peering is no lock. The official client's election bounds neither a hanging request nor the
moment of the last write, hence this one.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from vllmendpoint_operator.errors import KubeError, LeaseLost, NotFound
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import LEASE

__all__ = ["LeaderElection"]

log = logging.getLogger(__name__)


class LeaderElection:
    """``async with LeaderElection(...) as election`` waits for the lease; :meth:`renew` renews it.

    Times are seconds of a monotonic clock: of others' leases only the moment at which a record was
    seen to change counts, never the time written in it. ``while_waiting`` is entered while another holds the
    lease.
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
        """The lease could be looked at, the last time."""
        self._valid_until = 0.0
        self._observed_record: tuple[str, float] = ("", 0.0)
        """Of another's lease: its record, and when it was seen to change."""

    @property
    def _retry_seconds(self) -> float:
        return self._duration / 6

    def remaining_seconds(self) -> float:
        """Seconds that a write begun now may take, so that it cannot land after the lease has run out.

        Raises LeaseLost where that is too short to begin one.
        """
        self.check_valid()
        return self._valid_until - self._clock()

    def check_valid(self) -> None:
        """Raises LeaseLost when the lease is about to run out."""
        if self._clock() >= self._valid_until - self._duration / 3:
            raise LeaseLost("the lease was not renewed in time: nothing is written any more")

    async def __aenter__(self) -> "LeaderElection":
        log.info("waiting for the lease %s/%s", self._namespace, self._name)
        if not await self._try_acquire_or_renew():
            async with self._while_waiting():
                while not await self._try_acquire_or_renew():  # noqa: ASYNC110  (nothing could wake us)
                    await asyncio.sleep(self._retry_seconds)
        log.info("leading as %s", self._identity)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._clock() < self._valid_until:
            await self._release()

    async def renew(self) -> None:
        """Renew for ever. Raises LeaseLost when it cannot, before another may lead."""
        while True:
            await asyncio.sleep(self._retry_seconds)
            await self._try_acquire_or_renew()
            self.check_valid()

    async def _try_acquire_or_renew(self) -> bool:
        started = self._clock()
        try:
            async with asyncio.timeout(self._retry_seconds * 2):
                won = await self._acquire_or_renew()
        except (KubeError, TimeoutError) as error:
            log.warning("lease: %s", error or type(error).__name__)
            self.lease_reachable = False
            return False
        self.lease_reachable = True
        if won:
            # From before the request: the server may have counted from any moment since.
            self._valid_until = started + self._duration
        elif self._valid_until > started:
            raise LeaseLost("another operator took the lease")
        return won

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
            if self._clock() < self._observed_record[1] + float(
                spec.get("leaseDurationSeconds") or self._duration
            ):
                return False
        return await self._write_lease(lease)

    async def _write_lease(self, lease: dict[str, Any] | None) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (lease or {}).get("spec") or {}
        same = old.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._duration),
            "acquireTime": old.get("acquireTime") if same else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if same else 1),
        }
        # A Conflict is no loss: whoever wrote in between, the next look tells who holds the lease.
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
        """Let the next one lead at once rather than after the lease's whole time."""
        try:
            async with asyncio.timeout(2):
                lease = await self._kube.get(LEASE, self._namespace, self._name)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._kube.replace(LEASE, lease)
        except (KubeError, TimeoutError) as error:
            log.warning("the lease could not be released: %s", error)
        self._valid_until = 0.0

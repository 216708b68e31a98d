"""At most one process leads, and it stops writing before its lease expires."""

import asyncio
import copy
import itertools

import pytest

from vllmendpoint_operator.controller.election import LeaderElection
from vllmendpoint_operator.errors import Conflict, KubeError, LeaseLost, NotFound


class Api:
    """An API server with one Lease.

    ``now``: a clock that tests set; ``failure``: message of the error of each request, or ``hang``;
    ``modified``: another client changes the Lease before the next update.
    """

    def __init__(self):
        self.now = 100.0
        self.lease = None
        self.versions = itertools.count(1)
        self.failure = None
        self.modified = False

    async def get(self, kind, namespace, name):
        await self._fail_if_configured()
        if self.lease is None:
            raise NotFound(404, "no lease")
        return copy.deepcopy(self.lease)

    async def create(self, kind, body):
        await self._fail_if_configured()
        if self.lease is not None:
            raise Conflict(409, "exists")
        self._store(body)

    async def replace(self, kind, body):
        await self._fail_if_configured()
        if self.modified:
            self.modified = False
            self._store(self.lease)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "changed")
        self._store(body)

    async def _fail_if_configured(self):
        if self.failure == "hang":
            await asyncio.sleep(3600)
        if self.failure:
            raise KubeError(500, self.failure)

    def _store(self, body):
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(next(self.versions))

    @property
    def holder(self):
        return self.lease["spec"]["holderIdentity"]


@pytest.fixture
def api():
    return Api()


@pytest.fixture
def candidate(api):
    def make(identity, duration=15.0):
        return LeaderElection(
            api, namespace="ns", name="l", identity=identity, duration=duration, clock=lambda: api.now
        )

    return make


async def test_the_first_process_leads(api, candidate):
    a = candidate("a")
    with pytest.raises(LeaseLost):
        a.check_valid()
    assert await a.try_acquire_or_renew()
    a.check_valid()
    assert api.holder == "a"
    assert api.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_never_writes_at_the_end_of_its_lease(api, candidate):
    a = candidate("a")
    await a.try_acquire_or_renew()
    api.now += 9.9
    a.check_valid()
    api.now += 0.2
    with pytest.raises(LeaseLost):
        a.check_valid()


async def test_the_lease_is_valid_from_before_the_request(api, candidate):
    a = candidate("a")
    original = api.replace

    async def slow(kind, body):
        api.now += 4
        await original(kind, body)

    await a.try_acquire_or_renew()
    api.replace = slow
    api.now += 1
    assert await a.try_acquire_or_renew()
    assert a.remaining_seconds() == pytest.approx(15 - 4)


async def test_another_holders_lease_must_expire_first(api, candidate):
    a, b = candidate("a"), candidate("b")
    await a.try_acquire_or_renew()
    for _ in range(14):
        assert not await b.try_acquire_or_renew()
        api.now += 1
    await a.try_acquire_or_renew()
    for _ in range(15):
        assert not await b.try_acquire_or_renew(), "the lease is valid from when the renewal was observed"
        api.now += 1
    assert await b.try_acquire_or_renew()
    assert api.holder == "b"
    with pytest.raises(LeaseLost):
        a.check_valid()


async def test_two_processes_never_lead_at_the_same_time(api, candidate):
    """For each time at which the leader may die."""
    for death in range(15):
        api.lease = None
        a, b = candidate(f"a{death}"), candidate(f"b{death}")
        await a.try_acquire_or_renew()
        await b.try_acquire_or_renew()
        for second in range(40):
            api.now += 1
            if second < death and second % 2 == 0:
                await a.try_acquire_or_renew()
            if await b.try_acquire_or_renew():
                break
            assert second < 35
        with pytest.raises(LeaseLost):
            a.check_valid()


async def test_one_of_two_candidates_takes_an_expired_lease(api, candidate):
    a, b, c = candidate("a"), candidate("b"), candidate("c")
    await a.try_acquire_or_renew()
    await b.try_acquire_or_renew()
    await c.try_acquire_or_renew()
    api.now += 16
    assert [await b.try_acquire_or_renew(), await c.try_acquire_or_renew()] == [True, False]


async def test_a_leader_stops_when_it_reads_another_holder(api, candidate):
    a = candidate("a")
    await a.try_acquire_or_renew()
    api.lease["spec"]["holderIdentity"] = "b"
    with pytest.raises(LeaseLost):
        await a.try_acquire_or_renew()


async def test_a_change_by_another_client_does_not_lose_the_lease(api, candidate):
    a = candidate("a")
    await a.try_acquire_or_renew()
    api.modified = True
    assert not await a.try_acquire_or_renew()
    a.check_valid()
    assert await a.try_acquire_or_renew()


@pytest.mark.parametrize("failure", ["etcd is down", "hang"])
async def test_renew_raises_before_the_lease_expires(api, candidate, failure):
    """With the real clock, for requests that fail and for requests that hang."""
    loop = asyncio.get_running_loop()
    a = LeaderElection(api, namespace="n", name="l", identity="a", duration=1.2, clock=loop.time)
    started = loop.time()
    assert await a.try_acquire_or_renew()
    api.failure = failure
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLost):
            await a.renew()
    assert loop.time() - started < 3  # 1.2 s, and time for a loaded machine


async def test_after_a_release_another_process_leads_without_delay(api, candidate):
    async with candidate("a"):
        assert not await candidate("b").try_acquire_or_renew()
    assert api.holder == ""
    assert await candidate("b").try_acquire_or_renew()


async def test_release_does_not_change_another_holders_lease(api, candidate):
    async with candidate("a"):
        api.lease["spec"]["holderIdentity"] = "b"
    assert api.holder == "b"

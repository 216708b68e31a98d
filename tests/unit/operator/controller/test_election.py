"""One leader, which stops writing before its Lease runs out."""

import asyncio
import copy
import itertools

import pytest

from vllmendpoint_operator.controller.election import LeaderElection
from vllmendpoint_operator.errors import Conflict, KubeError, LeaseLost, NotFound


class Store:
    """One Lease in an API server, with a clock by hand and answers that can be made to fail or hang."""

    def __init__(self):
        self.now = 100.0
        self.lease = None
        self.versions = itertools.count(1)
        self.failure = None
        self.touched = False

    async def get(self, kind, namespace, name):
        await self._answer()
        if self.lease is None:
            raise NotFound(404, "no lease")
        return copy.deepcopy(self.lease)

    async def create(self, kind, body):
        await self._answer()
        if self.lease is not None:
            raise Conflict(409, "exists")
        self._keep(body)

    async def replace(self, kind, body):
        await self._answer()
        if self.touched:
            self.touched = False
            self._keep(self.lease)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "changed")
        self._keep(body)

    async def _answer(self):
        if self.failure == "hang":
            await asyncio.sleep(3600)
        if self.failure:
            raise KubeError(500, self.failure)

    def _keep(self, body):
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(next(self.versions))

    @property
    def holder(self):
        return self.lease["spec"]["holderIdentity"]


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def candidate(store):
    def make(identity, duration=15.0):
        return LeaderElection(
            store, namespace="ns", name="l", identity=identity, duration=duration, clock=lambda: store.now
        )

    return make


async def test_the_first_leads(store, candidate):
    a = candidate("a")
    with pytest.raises(LeaseLost):
        a.check_valid()
    assert await a._try_acquire_or_renew()
    a.check_valid()
    assert store.holder == "a"
    assert store.lease["spec"]["leaseTransitions"] == 1


async def test_never_writes_at_the_end_of_its_lease(store, candidate):
    a = candidate("a")
    await a._try_acquire_or_renew()
    store.now += 9.9
    a.check_valid()
    store.now += 0.2
    with pytest.raises(LeaseLost):
        a.check_valid()


async def test_the_lease_counts_from_before_the_request(store, candidate):
    a = candidate("a")
    original = store.replace

    async def slow(kind, body):
        store.now += 4
        await original(kind, body)

    await a._try_acquire_or_renew()
    store.replace = slow
    store.now += 1
    assert await a._try_acquire_or_renew()
    assert a.remaining_seconds() == pytest.approx(15 - 4)


async def test_anothers_lease_is_waited_out(store, candidate):
    a, b = candidate("a"), candidate("b")
    await a._try_acquire_or_renew()
    for _ in range(14):
        assert not await b._try_acquire_or_renew()
        store.now += 1
    await a._try_acquire_or_renew()
    for _ in range(15):
        assert not await b._try_acquire_or_renew(), "the renewal counts from when it was seen"
        store.now += 1
    assert await b._try_acquire_or_renew()
    assert store.holder == "b"
    with pytest.raises(LeaseLost):
        a.check_valid()


async def test_never_two_at_a_time(store, candidate):
    """Whatever moment the leader dies at, and however long its last write may take."""
    for death in range(15):
        store.lease = None
        a, b = candidate(f"a{death}"), candidate(f"b{death}")
        await a._try_acquire_or_renew()
        await b._try_acquire_or_renew()
        for second in range(40):
            store.now += 1
            if second < death and second % 2 == 0:
                await a._try_acquire_or_renew()
            if await b._try_acquire_or_renew():
                break
            assert second < 35
        with pytest.raises(LeaseLost):
            a.check_valid()


async def test_the_loser_of_a_race_to_take_over_waits(store, candidate):
    a, b, c = candidate("a"), candidate("b"), candidate("c")
    await a._try_acquire_or_renew()
    await b._try_acquire_or_renew()
    await c._try_acquire_or_renew()
    store.now += 16
    assert [await b._try_acquire_or_renew(), await c._try_acquire_or_renew()] == [True, False]


async def test_a_leader_that_sees_another_stops_at_once(store, candidate):
    a = candidate("a")
    await a._try_acquire_or_renew()
    store.lease["spec"]["holderIdentity"] = "b"
    with pytest.raises(LeaseLost):
        await a._try_acquire_or_renew()


async def test_a_touch_by_somebody_else_is_no_loss(store, candidate):
    a = candidate("a")
    await a._try_acquire_or_renew()
    store.touched = True
    assert not await a._try_acquire_or_renew()
    a.check_valid()
    assert await a._try_acquire_or_renew()


@pytest.mark.parametrize("failure", ["etcd is down", "hang"])
async def test_hold_ends_before_the_lease_does(store, candidate, failure):
    """With a real clock: errors and hanging requests alike."""
    loop = asyncio.get_running_loop()
    a = LeaderElection(store, namespace="n", name="l", identity="a", duration=1.2, clock=loop.time)
    started = loop.time()
    assert await a._try_acquire_or_renew()
    store.failure = failure
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLost):
            await a.renew()
    assert loop.time() - started < 3  # 1.2, and what a loaded machine adds


async def test_release_lets_the_next_one_lead_at_once(store, candidate):
    async with candidate("a"):
        assert not await candidate("b")._try_acquire_or_renew()
    assert store.holder == ""
    assert await candidate("b")._try_acquire_or_renew()


async def test_release_leaves_anothers_lease_alone(store, candidate):
    async with candidate("a"):
        store.lease["spec"]["holderIdentity"] = "b"
    assert store.holder == "b"

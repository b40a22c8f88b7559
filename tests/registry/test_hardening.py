"""What went wrong in the registry, or could have: each test is an attack that once got through, or nearly."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import workers
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity
from tests.support.actors import Owner
from tests.support.cluster import as_actor
from tests.support.rules import ME, STARTED, A, B, C, Clock, make_table, pin, resolve
from tests.support.values import MB
from tests.support.waiting import stays, wait_until


def test_a_stopped_owner_is_not_dead_and_a_killed_one_is(cluster: str) -> None:
    """Ray's control service is asked before a lease ends for its owner's sake: a process that only hangs loses nothing."""
    owner = as_actor(Owner).remote()
    (ref,), pid = ray.get([owner.put.remote(b"x" * MB), owner.pid.remote()], timeout=60)
    mine = ray.put(1)
    address = workers.owner_of(ref)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert not workers.is_surely_dead(address)
    finally:
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: workers.is_surely_dead(address))
    assert not workers.is_surely_dead(workers.owner_of(mine))


@pytest.mark.slow
def test_an_owner_that_does_not_respond_for_half_a_minute_keeps_its_leases(cluster: str) -> None:
    """Longer than the network's own patience, after which its silence looks just like death."""
    owner = as_actor(Owner).remote()
    (ref,), pid = ray.get([owner.put.remote(b"x" * MB), owner.pid.remote()], timeout=60)
    os.kill(pid, signal.SIGSTOP)
    try:
        payload = safe_refs.dumps(ref)
        stays(lambda: (found := safe_refs.stats()) is not None and found.owner_gone == 0, 35)
    finally:
        os.kill(pid, signal.SIGCONT)
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.owner_gone == 0
    assert ray.get(safe_refs.loads(payload), timeout=30) == b"x" * MB
    safe_refs.release(payload)


def test_an_owner_that_does_not_respond_does_not_hold_up_the_listing(cluster: str) -> None:
    """`leases()` answers while an owner is stopped; sizes that can't be had count as 0."""
    owner = as_actor(Owner).remote()
    (ref,), pid = ray.get([owner.put.remote(b"x" * MB), owner.pid.remote()], timeout=60)
    payload = safe_refs.dumps([ref, ray.put(b"y" * MB)])
    os.kill(pid, signal.SIGSTOP)
    try:
        (info,) = safe_refs.leases(timeout=10)
        assert info.references == 2
    finally:
        os.kill(pid, signal.SIGCONT)
    safe_refs.release(payload)


@pytest.mark.long
def test_many_owners_do_not_bring_the_registry_down(cluster: str) -> None:
    """Ray's look-up of objects of several owners in one call can end the asking process (Ray issue 65523): we never do so.

    Without that care it died within seconds of idling, or of the first calls of `leases()`, with three owners.
    """
    owners = [as_actor(Owner).remote() for _ in range(4)]
    refs = [ray.get(owner.put.remote(b"x" * MB), timeout=60)[0] for owner in owners]
    payload = safe_refs.dumps([*refs, ray.put(1)])
    generation = safe_refs.inspect(payload).generation
    deadline = time.monotonic() + 8
    calls = 0
    while time.monotonic() < deadline or calls < 200:
        (info,) = safe_refs.leases()
        assert info.size_bytes is not None
        assert info.size_bytes > 4 * MB
        calls += 1
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.generation == generation
    assert len(safe_refs.loads(payload)) == 5
    safe_refs.release(payload)


@pytest.mark.parametrize("ttl", [1e9, math.inf])
def test_a_very_long_ttl_does_not_stop_the_clock_for_others(cluster: str, ttl: float) -> None:
    """After a lease with a ttl of decades, or of infinity, others still expire on time."""
    long = safe_refs.pin(ray.put(1), ttl=ttl)
    short = safe_refs.pin(ray.put(2), ttl=0.2)
    wait_until(lambda: len(safe_refs.leases(sizes=False)) == 1, 10)
    with pytest.raises(safe_refs.LeaseExpiredError):
        short.get(5)
    assert (safe_refs.expires_in_s(long) is None) is (ttl == math.inf)
    long.release()


@pytest.mark.parametrize("wrong", [0, -1, math.nan, 1e10, 10**400, "5", True], ids=lambda wrong: repr(wrong)[:12])
def test_senseless_spans_are_refused_before_anything_is_asked(cluster: str, wrong: Any) -> None:
    """A timeout or ttl that can't be meant fails at once, and spends no use of a lease."""
    handle = safe_refs.pin(ray.put("v"), uses=1)
    for call in (lambda: handle.resolve(timeout=wrong), lambda: safe_refs.pin(ray.put(1), ttl=wrong)):
        with pytest.raises((ValueError, TypeError)):
            call()
    with pytest.raises(ValueError, match="timeout"):
        handle.resolve(timeout=math.inf)
    assert handle.get(20) == "v"


def test_the_registry_takes_nothing_while_it_is_being_shut_down(cluster: str) -> None:
    """A `dumps` that meets a closing registry is held by the next one, and opens."""
    safe_refs.init()
    actor: Any = ray.get_actor("registry:default", namespace="safe_refs")

    def close(shard: Any) -> None:
        shard.is_closing = True

    ray.get(actor.__ray_call__.remote(close), timeout=20)
    killer = threading.Timer(0.5, lambda: ray.kill(actor, no_restart=True))
    killer.start()
    payload = safe_refs.dumps(ray.put("held"))
    killer.join()
    assert ray.get(safe_refs.loads(payload), timeout=20) == "held"
    safe_refs.release(payload)


def test_an_owner_believed_dead_is_asked_again_for_a_new_lease() -> None:
    """A verdict on an owner does not make later leases of its immortal, or unasked."""
    table: LeaseTable[str] = make_table(Clock())
    table.pin(A, ["a", "b"], [b"one", b"two"], safe_refs_terms(), ME)
    table.bury(b"one")
    table.pin(B, ["a"], [b"one"], safe_refs_terms(), ME)
    table.release(A, ME)
    assert table.owners.living() == [b"one"]
    assert table.bury(b"one") == 1


def safe_refs_terms() -> Any:
    from safe_refs.registry.records import Terms

    return Terms()


def test_renewing_and_releasing_leave_no_deadlines_behind() -> None:
    """A heartbeat of a hundred thousand renewals, or as many leases come and gone, costs no memory."""
    table: LeaseTable[str] = make_table(Clock())
    pin(table, A, "x", ttl=1e6)
    for number in range(10_000):
        table.renew(A, STARTED, 1e6)
        pin(table, number.to_bytes(16, "big"), "y", ttl=1e6)
        table.release(number.to_bytes(16, "big"), ME)
    assert len(table._deadlines) < 100


def test_many_leases_that_end_at_once_leave_no_deadlines_behind() -> None:
    """Ten thousand of them, however they end, and nothing begins afterwards: what they left is gone at once, not after their ttl."""
    table: LeaseTable[str] = make_table(Clock())
    leases = [number.to_bytes(16, "big") for number in range(10_000)]
    for lease in leases:
        pin(table, lease, "y", ttl=1e6)
    for lease in leases[:5_000]:
        table.release(lease, ME)
    for lease in leases[5_000:-1]:
        assert table.lose(lease, "a test")
    assert len(table._deadlines) < 100
    assert table.next_deadline_in_s() == 1e6


def test_a_lost_lease_stays_lost_after_somebody_released_it() -> None:
    """Releasing a lease of an earlier registry does not make its end look like that release."""
    table: LeaseTable[str] = make_table(Clock())
    table.release(A, ME)
    with pytest.raises(safe_refs.LeaseLostError):
        table.resolve(A, Identity(b"epoch..0", 2), slot=None, take=False, origin=ME)


def test_a_release_after_the_time_is_over_is_no_release() -> None:
    """It ends nothing, and the lease's end is still told as what it was."""
    clock = Clock()
    table = make_table(clock)
    pin(table, A, "x", ttl=5.0)
    clock.now += 6
    assert table.release(A, ME) == 0
    with pytest.raises(safe_refs.LeaseExpiredError):
        resolve(table, A)
    assert table.stats().expired == 1
    assert C not in table.tombstones

"""The actors that anchoring goes through: their deaths and their silence cost nothing."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import cluster as ray_cluster
from safe_refs.anchoring import borrower as borrowing
from safe_refs.anchoring import lending, relays
from tests.support.actors import Borrower, borrower
from tests.support.anchoring import anchored
from tests.support.processes import dies
from tests.support.store import holds
from tests.support.values import VALUE_BYTES, opens, reads, value
from tests.support.waiting import stays, wait_until


@pytest.mark.long
def test_relays_that_die_cost_no_payload(cluster: str) -> None:
    """They are killed, two of the three at a time, while a borrower pins: nothing depends on it for long, and all outlives it."""
    maker = borrower()
    pid = ray.get(maker.set_up.remote({}), timeout=60)
    ray.get(maker.keep.remote([ray.put(value(number)) for number in range(5)]), timeout=60)
    rounds = []
    for number in range(6):
        waiting = maker.dumps_each.remote(30, number)
        time.sleep(0.03 * number)  # at another moment each time
        for relay in (*relays.FOR_SHARDS[:2], relays.FOR_CLIENTS[0]):
            if (number + relay) % 2:
                ray.kill(relays.Relays().handle(relay), no_restart=False)
        rounds.append(ray.get(waiting, timeout=120))
    wait_until(anchored, 30)
    assert [row.short_id for row in safe_refs.leases() if row.depends_on] == []
    assert ray.get(maker.read.remote(), timeout=60) == list(range(5))
    os.kill(pid, signal.SIGKILL)
    stays(lambda: holds(5 * VALUE_BYTES), 5)
    for payload in (payload for left in rounds for payload in left):
        assert all(reads(ref) in set(range(5)) for ref in safe_refs.loads(payload))
    safe_refs.release([payload for left in rounds for payload in left])


@pytest.mark.long
def test_a_relay_that_nobody_needs_ends(cluster: str) -> None:
    """Its process goes, and so does its name: what answers to it later is a new one."""

    def hurry(_: Any) -> int:
        relays.STAYS_S = 0.5
        return os.getpid()

    for _ in range(2):
        idle = ray_cluster.start_actor("relay:idle", relays.SafeRefsRelay, (3.0, 0.0), place=0)
        pid = ray.get(idle.__ray_call__.remote(hurry), timeout=60)
        assert dies(pid)
        wait_until(
            lambda: "relay:idle" not in {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
        )


@pytest.mark.long
def test_relays_end_when_no_lease_is_held_and_start_again_when_needed(cluster: str) -> None:
    """While leases are held, the shards' two stay: who resolves one is to be safe soon. A borrower waits for its own to start."""

    def running() -> set[str]:
        names = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
        return {name for name in names if name.startswith("relay:")}

    maker = borrower()
    pid = ray.get(maker.set_up.remote({}), timeout=60)
    ray.get(maker.keep.remote([ray.put(value(1))]), timeout=60)
    payloads = ray.get(maker.dumps_each.remote(1, 0), timeout=60)
    wait_until(anchored, 30)
    assert running()
    wait_until(lambda: len(running()) == 2, relays.STAYS_S + 40)
    stays(lambda: len(running()) == 2, 2)
    safe_refs.release(payloads)
    wait_until(lambda: not running(), relays.STAYS_S + 40)
    begun = time.monotonic()
    payloads = ray.get(maker.dumps_each.remote(1, 1), timeout=60)
    assert time.monotonic() - begun < lending.CONFIRMED_S
    wait_until(anchored, 30)
    assert len(running()) <= 3  # none of them a spare
    os.kill(pid, signal.SIGKILL)
    assert dies(pid)
    assert [reads(ref) for payload in payloads for ref in safe_refs.loads(payload)] == [1]
    safe_refs.release(payloads)


@pytest.mark.long
def test_a_silent_relay_has_a_spare(cluster: str) -> None:
    """Relays that are stopped, or cut off, are not waited for: others take their part, for borrowers and for shards."""
    maker = borrower()
    pid = ray.get(maker.set_up.remote({}), timeout=60)
    ray.get(maker.keep.remote([ray.put(value(1))]), timeout=60)
    safe_refs.release(ray.get(maker.dumps.remote(), timeout=60))
    wait_until(anchored, 30)
    time.sleep(borrowing._RELAY_FRESH_S)  # who has just answered isn't asked again
    silent = [relays.Relays().handle(number) for number in (relays.FOR_SHARDS[0], relays.FOR_CLIENTS[0])]
    stopped = [process for _, process in ray.get([each.where.remote() for each in silent], timeout=60)]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        payload = ray.get(maker.dumps.remote(), timeout=60)
        os.kill(pid, signal.SIGKILL)
        wait_until(anchored, 20)
        assert [row.depends_on for row in safe_refs.leases()] == [None]
        # What is resolved is anchored, too.
        reader = borrower()
        ray.get(reader.load.remote([payload]), timeout=60)
        wait_until(anchored, 20)
        assert ray.get(reader.read_first.remote(), timeout=60) == 1
        safe_refs.release(payload)
        assert ray.get(reader.read_first.remote(), timeout=60) == 1
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


@pytest.mark.long
def test_a_relay_that_cannot_be_had_is_waited_for_only_once(cluster: str) -> None:
    """Pins by a borrower are held all the same, and depend on it; when the relay is there again, one pin anchors what did, too."""

    def without(self: Borrower) -> tuple[list[bytes], float]:
        payloads = [safe_refs.dumps(self.refs[0])]
        hold, relays.Relays.hold = relays.Relays.hold, lambda *_: None  # type: ignore[method-assign] # the relay is out of reach
        try:
            payloads.append(safe_refs.dumps(self.refs[1]))
            began = time.monotonic()
            payloads.append(safe_refs.dumps(self.refs[2]))
            return payloads, time.monotonic() - began
        finally:
            relays.Relays.hold = hold  # type: ignore[method-assign] # as before

    def again(self: Borrower) -> bytes:
        time.sleep(borrowing._DOWN_S)  # for which none is asked again
        return safe_refs.dumps(self.refs[0])

    actor = borrower()
    ray.get(relays.Relays().handle(relays.FOR_CLIENTS[0]).hello.remote(), timeout=60)
    ray.get(actor.keep.remote([ray.put(value(number)) for number in range(3)]), timeout=60)
    payloads, second_s = ray.get(actor.__ray_call__.remote(without), timeout=60)
    assert second_s < 1
    wait_until(lambda: len([row for row in safe_refs.leases() if row.depends_on]) == 2)
    payloads.append(ray.get(actor.__ray_call__.remote(again), timeout=60))
    ray.kill(actor)
    stays(lambda: holds(3 * VALUE_BYTES), 3)
    assert [opens(payload) for payload in payloads] == [0, 1, 2, 0]
    safe_refs.release(payloads)

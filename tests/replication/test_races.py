"""Many calls at once while a shard dies and comes back: no wrong answer, no use granted twice, and both agree in the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.replication.records import Record
from tests.support.cluster import as_actor
from tests.support.shards import (
    Start,
    both,
    decider,
    figures,
    is_back,
    kill,
    knows,
    stopped,
    wait_until_whole,
)
from tests.support.values import outcomes
from tests.support.waiting import wait_until


class Loader:
    """Loads payloads over and over in a process of its own; notes what went wrong."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self.seen: Counter[str] = Counter()
        self.longest_s = 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            for number, payload in enumerate(self.payloads):
                begun = time.perf_counter()
                try:
                    value = ray.get(safe_refs.loads(payload), timeout=20)
                    self.seen["right" if value == number else "wrong"] += 1
                except Exception as error:
                    self.seen[type(error).__name__] += 1
                self.longest_s = max(self.longest_s, time.perf_counter() - begun)

    def loads(self) -> int:
        return sum(self.seen.values())

    def end(self) -> tuple[dict[str, int], float]:
        self.stop.set()
        self.thread.join(60)
        return dict(self.seen), self.longest_s


@pytest.mark.long
def test_a_shard_that_comes_back_says_nothing_wrong_and_brings_nothing_back(start: Start) -> None:
    """Loads during crashes and restarts of either shard never fail; what was released meanwhile stays released."""
    name = start(2, 2)
    refs = [ray.put(number) for number in range(60)]
    payloads = [safe_refs.dumps(ref) for ref in refs]
    released = payloads[50:]
    readers = [as_actor(Loader).options(max_concurrency=2).remote(payloads[:50]) for _ in range(2)]
    for round_, victim in enumerate((0, 1)):
        loads = ray.get(readers[0].loads.remote(), timeout=60)
        kill(name, victim)
        assert safe_refs.release(released[round_ * 5 : round_ * 5 + 5]) == 5
        wait_until_whole(name)
        wait_until(lambda loads=loads: ray.get(readers[0].loads.remote(), timeout=60) > loads + 50)  # type: ignore[misc]
    for reader in readers:
        seen, longest_s = ray.get(reader.end.remote(), timeout=60)
        assert set(seen) == {"right"}
        assert longest_s < 6
    assert outcomes(released) == ["LeaseReleasedError"] * 10
    wait_until(lambda: both(name, "live_leases") == (50, 50))
    for reader in readers:
        ray.kill(reader)
    assert safe_refs.release(payloads) == 50


def race(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make all calls, 8 at a time; what they gave, or their lease's error."""

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except safe_refs.LeaseError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(attempt, calls))


@pytest.mark.long
def test_uses_and_takes_are_granted_at_most_once_also_in_a_crash(start: Start) -> None:
    """Many clients race for the same payloads while a shard is killed: never more grants than uses, and nearly all are granted."""
    name = start(2, 2)
    for victim in (0, 1):
        taken = [safe_refs.dumps(ray.put(number)) for number in range(40)]
        counted = [safe_refs.dumps(ray.put(number), uses=3) for number in range(40)]
        calls = [
            (number, lambda payload=payload, take=take: safe_refs.loads(payload, take=take))
            for number in range(40)
            for payload, take in ((taken[number], True), (counted[number], False))
            for _ in range(5)
        ]
        killer = threading.Timer(0.15, kill, (name, victim))
        killer.start()
        results = race([call for _, call in calls])
        killer.join()
        grants: Counter[tuple[int, str]] = Counter()
        for (number, _), result, kind in zip(calls, results, (["take"] * 5 + ["uses"] * 5) * 40, strict=True):
            if not isinstance(result, safe_refs.LeaseError):
                assert ray.get(result, timeout=20) == number
                grants[number, kind] += 1
        del results
        takes, uses = ([grants[number, kind] for number in range(40)] for kind in ("take", "uses"))
        assert max(takes) == 1
        assert max(uses) == 3
        # A use may be lost with the answer of the shard that was killed.
        assert sum(takes) >= 35
        assert sum(uses) >= 110
        wait_until_whole(name)
        safe_refs.release([*taken, *counted])
        wait_until(lambda: both(name, "live_leases") == (0, 0))


@pytest.mark.long
def test_renewals_are_not_taken_in_different_orders(start: Start) -> None:
    """Clients renew leases at once, while a shard is killed and comes back: both replicas end up with the same ttl."""
    name = start(2, 2)
    payloads = [safe_refs.dumps(ray.put(number), ttl=100) for number in range(6)]
    killer = threading.Timer(0.2, kill, (name, decider(name, payloads[0])))
    killer.start()
    race([partial(safe_refs.renew, payload, ttl) for ttl in range(1000, 31000, 1000) for payload in payloads])
    killer.join()
    wait_until(lambda: is_back(name))
    wait_until(lambda: both(name, "live_leases") == (6, 6))

    def ttls(shard: int) -> list[Any]:
        return [record.terms.ttl for record in knows(name, shard, payloads) if isinstance(record, Record)]

    wait_until(lambda: ttls(0) == ttls(1))
    assert len(ttls(0)) == 6
    safe_refs.release(payloads)


@pytest.mark.long
def test_a_renewal_that_reached_one_shard_counts_at_the_other_which_was_silent_until_the_old_ttl_was_over(
    start: Start,
) -> None:
    """It ends the lease by the time that it knows, hears of the renewal, and has it again; so it lives until the new ttl is over."""
    name = start(2, 2)
    payload = safe_refs.dumps(ray.put("renewed in time"), ttl=4)
    begun = time.monotonic()
    silent = 1 - decider(name, payload)
    with stopped(name, silent):
        safe_refs.renew(payload, 10, timeout=1)  # one shard grants it, the other is not waited for any longer
        renewed = time.monotonic()
        assert renewed < begun + 4
        wait_until(lambda: time.monotonic() > begun + 4.2)
        assert ray.get(safe_refs.loads(payload), timeout=20) == "renewed in time"
    while time.monotonic() < renewed + 7:
        assert ray.get(safe_refs.loads(payload), timeout=20) == "renewed in time"
    assert both(name, "live_leases") == (1, 1)
    assert both(name, "expired") == (0, 0)
    assert [record.terms.ttl for shard in (0, 1) for record in knows(name, shard, [payload]) if record] == [10.0, 10.0]  # type: ignore[union-attr] # it is live
    wait_until(lambda: both(name, "live_leases") == (0, 0))
    assert time.monotonic() > begun + 10
    assert outcomes([payload]) == ["LeaseExpiredError"]
    assert figures(name, silent).expired == 1

"""Leases on two shards: a crash of one of them costs nothing, of both it is told at once. On a real Ray."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import _ray
from safe_refs.registry import contact
from safe_refs.registry.leases import Copy
from tests.conftest import as_actor, is_empty
from tests.shards import Start, both, decider, figures, is_back, is_whole, kill, knows, start, stopped, wait_until_whole
from tests.test_registry import wait_until

__all__ = ["start"]  # a fixture
KB = 2**10


def outcomes(payloads: Iterable[bytes], **how: Any) -> list[str]:
    """For each payload what loading it gives: the value, or the error's class."""
    found = []
    for payload in payloads:
        try:
            found.append(str(ray.get(safe_refs.loads(payload, **how), timeout=20)))
        except safe_refs.LeaseError as error:
            found.append(type(error).__name__)
    return found


def test_every_call_reaches_both(start: Start) -> None:
    """When `dumps` returns both hold the lease, `loads` resolves from both, and a release or renewal is known to both."""
    name = start(2, 2)
    payloads = [safe_refs.dumps(ray.put(number), ttl=500) for number in range(5)]
    assert both(name, "live_leases") == (5, 5)
    handle = safe_refs.pin(ray.put("pinned"))
    assert both(name, "live_leases") == (6, 6)
    assert outcomes([payloads[0]]) == ["0"]
    assert both(name, "resolved") == (1, 1)
    safe_refs.renew(payloads[1], 5000)
    for shard in (0, 1):
        (copy,) = knows(name, shard, [payloads[1]])
        assert isinstance(copy, Copy)
        assert copy.left_s is not None
        assert 4000 < copy.left_s <= 5000
    assert safe_refs.release([*payloads, handle]) == 6
    assert both(name, "live_leases") == (0, 0)
    assert outcomes(payloads) == ["LeaseReleasedError"] * 5


def test_listing_and_figures_count_each_lease_once(start: Start) -> None:
    """`stats()` and `leases()` are of leases, not of replicas: filtered, sorted, paged and limited as with one shard."""
    name = start(3, 2)
    refs = [ray.put(bytes(number * KB)) for number in range(1, 31)]
    payloads = []
    for number, ref in enumerate(refs):
        more = [ray.put(None) for _ in range(number % 3)]
        payloads.append(safe_refs.dumps([ref, *more], label=f"n{number}", ttl=1000 - number))
        time.sleep(0.02)  # the age of leases on different shards is compared to a few milliseconds
    del more, ref
    assert sum(figures(name, shard).live_leases for shard in range(3)) == 60
    found = safe_refs.stats()
    assert found is not None
    assert (found.live_leases, found.live_references, found.pinned) == (30, 60, 30)
    assert (found.shards, found.replicas, found.recovering) == (3, 2, 0)
    labels = [f"n{number}" for number in range(30)]
    assert [info.label for info in safe_refs.leases()] == labels
    assert [info.label for info in safe_refs.leases(limit=7)] == labels[:7]
    assert [info.label for info in safe_refs.leases(sort="expires", limit=3, sizes=False)] == ["n29", "n28", "n27"]
    assert [info.label for info in safe_refs.leases(sort="bytes", limit=2)] == ["n29", "n28"]
    assert [info.references for info in safe_refs.leases(sort="references", limit=11)] == [3] * 10 + [2]
    assert [info.label for info in safe_refs.leases(label="n11")] == ["n11"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safe_refs.admin._PAGE", 4)
        assert [info.label for info in safe_refs.leases()] == labels
        assert [info.label for info in safe_refs.leases(limit=13, sort="bytes")] == labels[:16:-1]
    assert safe_refs.release(payloads) == 30
    del refs
    assert safe_refs.leases() == []


def test_with_one_replica_dead_all_goes_on_and_it_hears_of_it_afterwards(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """`dumps` returns with a warning, releases, renewals, uses and takes count; the dead one knows all that when it is back."""
    name = start(2, 2)
    for victim in (0, 1):
        fresh = [safe_refs.dumps(ray.put(number)) for number in range(4)]
        used = safe_refs.dumps(ray.put("used"), uses=2)
        renewed = safe_refs.dumps(ray.put("renewed"), ttl=50)
        ref = ray.put("made while it is down")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="safe_refs"):
            kill(name, victim)
            made = safe_refs.dumps(ref)
        (warning,) = caplog.messages
        assert f"is held by 1 of 2 replicas: shard(s) {victim} of registry {name!r} are down" in warning
        assert outcomes([made, used]) == ["made while it is down", "used"]
        assert safe_refs.release(fresh[:2]) == 2
        assert outcomes([fresh[2]], take=True) == ["2"]
        safe_refs.renew(renewed, 7000)
        wait_until_whole(name)
        wait_until(lambda: both(name, "live_leases") == (4, 4))
        held, *ended, kept, counted, longer = knows(name, victim, [made, *fresh, used, renewed])
        assert isinstance(held, Copy)
        assert ended == ["released"] * 3
        assert isinstance(kept, Copy)
        assert isinstance(counted, Copy)
        assert len(counted.used) == 1
        assert isinstance(longer, Copy)
        assert longer.terms.ttl == 7000
        assert outcomes([used, used]) == ["used", "LeaseUsedUpError"]
        assert safe_refs.release([made, fresh[3], renewed]) == 3
        wait_until(lambda: both(name, "live_leases") == (0, 0))


class Reader:
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


def test_a_shard_that_comes_back_says_nothing_wrong_and_brings_nothing_back(start: Start) -> None:
    """Loads during crashes and restarts of either shard never fail; what was released meanwhile stays released."""
    name = start(2, 2)
    refs = [ray.put(number) for number in range(60)]
    payloads = [safe_refs.dumps(ref) for ref in refs]
    released = payloads[50:]
    readers = [as_actor(Reader).options(max_concurrency=2).remote(payloads[:50]) for _ in range(2)]
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


def test_a_slow_client_gets_what_it_took(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes between asking the one replica and the other, the second doesn't refuse it its own take or last use."""
    start(2, 2)
    taken, used = safe_refs.dumps(ray.put("taken")), safe_refs.dumps(ray.put("used"), uses=1)
    ask_each = contact.ask_each

    def slowly(*args: Any, **how: Any) -> dict[int, Any]:
        replies = ask_each(*args, **how)
        time.sleep(0.3)  # the first replica tells the second of the end meanwhile
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(contact, "ask_each", slowly)
        assert outcomes([taken], take=True) == ["taken"]
        assert outcomes([used]) == ["used"]
    assert outcomes([taken, used]) == ["LeaseReleasedError", "LeaseUsedUpError"]


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
        return [copy.terms.ttl for copy in knows(name, shard, payloads) if isinstance(copy, Copy)]

    wait_until(lambda: ttls(0) == ttls(1))
    assert len(ttls(0)) == 6
    safe_refs.release(payloads)


def test_shards_that_do_not_answer_are_waited_for_no_longer_than_told(start: Start) -> None:
    """One silent: `loads` goes on with the other, `dumps` fails in time and holds nothing. Both silent: every call fails in time."""
    name = start(2, 2)
    payload = safe_refs.dumps(ray.put("there"))
    refs = [ray.put(number) for number in range(2)]

    def fails(call: Callable[[], Any], timeout: float) -> None:
        begun = time.monotonic()
        with pytest.raises(safe_refs.RegistryUnavailableError):
            call()
        assert time.monotonic() - begun < timeout + 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_REFS_TIMEOUT", "1")
        with stopped(name, 0):
            assert outcomes([payload]) == ["there"]
            fails(lambda: safe_refs.dumps(refs[0]), 1)
        with stopped(name, 0, 1):
            fails(lambda: safe_refs.dumps(refs[1]), 1)
            fails(lambda: safe_refs.loads(payload, timeout=0.5), 0.5)
            fails(lambda: safe_refs.loads(payload, take=True, timeout=0.5), 0.5)
            fails(lambda: safe_refs.leases(timeout=0.5), 0.5)
    wait_until(lambda: both(name, "live_leases") == (0, 0))  # the take was carried out in the end
    assert outcomes([payload]) == ["LeaseReleasedError"]


def test_without_replicas_a_crash_is_told_at_once(start: Start) -> None:
    """Each payload of the shard that crashed gives `LeaseLostError`, in seconds; those of the others go on, as its own value each."""
    name = start(2, 1)
    payloads = [safe_refs.dumps(ray.put(number)) for number in range(60)]
    shard_of = [decider(name, payload) for payload in payloads]
    kill(name, 1)
    begun = time.monotonic()
    expected = ["LeaseLostError" if shard == 1 else str(number) for number, shard in enumerate(shard_of)]
    assert outcomes(payloads) == expected
    assert time.monotonic() - begun < 6
    begun = time.monotonic()
    assert outcomes(payloads) == expected  # also once it is back and holds others' leases
    assert time.monotonic() - begun < 3
    again = [safe_refs.dumps(ray.put(number)) for number in range(20)]
    assert outcomes(payloads) == expected
    assert outcomes(again) == [str(number) for number in range(20)]
    assert safe_refs.release(payloads) == shard_of.count(0)
    assert safe_refs.release(again) == 20


def test_if_all_replicas_crash_at_once_it_is_told_as_lost(start: Start) -> None:
    """`LeaseLostError` as soon as they are back, never a hang; new payloads work, as the next generation."""
    name = start(2, 2)
    payloads = [safe_refs.dumps(ray.put(bytes(200 * KB))) for _ in range(10)]
    kill(name, 0, 1)
    begun = time.monotonic()
    assert outcomes(payloads) == ["LeaseLostError"] * 10
    assert time.monotonic() - begun < 8
    gc.collect()
    assert is_empty(within_s=5)
    wait_until_whole(name)
    new = safe_refs.dumps(ray.put("new"))
    assert (safe_refs.inspect(new).generation or 0) > 1
    assert outcomes([new, payloads[0]]) == ["new", "LeaseLostError"]
    assert safe_refs.release([*payloads, new]) == 1


def test_a_call_that_met_a_dead_shard_keeps_nothing(start: Start) -> None:
    """Neither its references nor their objects wait for a garbage collection, which in an idle process may never come."""
    name = start(2, 2)
    gc.collect()
    gc.disable()
    try:
        ref = ray.put(bytes(500_000))
        payload = safe_refs.dumps(ref)
        kill(name, 1)
        id_ = ref.binary()
        with suppress(safe_refs.RegistryUnavailableError):
            safe_refs.release(safe_refs.dumps([ref, ref]))
        loaded = safe_refs.loads(payload)
        wait_until(lambda: is_whole(name), 60)
        assert safe_refs.release(payload) == 1
        del ref, loaded
        wait_until(lambda: not _ray.counted([id_]), 20)
    finally:
        gc.enable()

"""Leases on two shards: a crash of one of them costs nothing, of both it is told at once. On a real Ray."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import counts
from safe_refs.registry.calls import Registry
from safe_refs.replication.merging import PATIENCE_S
from safe_refs.replication.records import Record
from tests.support.shards import (
    Start,
    both,
    decider,
    figures,
    is_whole,
    kill,
    knows,
    place,
    stopped,
    wait_until_whole,
)
from tests.support.store import is_empty
from tests.support.values import outcomes
from tests.support.waiting import wait_until

KB = 2**10


def place_or_none(registry: str, shard: int) -> tuple[str, int] | None:
    """Where a shard runs, if it answers."""
    try:
        return place(registry, shard)
    except ray.exceptions.RayActorError:
        return None


def test_a_keepalives_renewals_are_the_same_on_all_replicas(start: Start) -> None:
    """They give time, leave the terms alone, and change nothing of a lease that has as much time, or no limit."""
    name = start(2, 2)
    payloads = [safe_refs.dumps(ray.put(ttl), ttl=ttl) for ttl in (100, 900, None)]
    with safe_refs.keepalive(payloads, ttl=500):
        for shard in range(2):
            short, long, endless = (each for each in knows(name, shard, payloads) if isinstance(each, Record))
            assert (short.renewals, short.given_s, short.terms.ttl) == (1, 500, 100)
            assert (long.renewals, long.given_s, long.terms.ttl) == (0, 900, 900)
            assert (endless.renewals, endless.left_s, endless.terms.ttl) == (0, None, None)
            assert 400 < (short.left_s or 0) <= 500 < 800 < (long.left_s or 0) <= 900
    assert safe_refs.release(payloads) == 3


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
        (record,) = knows(name, shard, [payloads[1]])
        assert isinstance(record, Record)
        assert record.left_s is not None
        assert 4000 < record.left_s <= 5000
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


@pytest.mark.long
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
        assert isinstance(held, Record)
        assert ended == ["released"] * 3
        assert isinstance(kept, Record)
        assert isinstance(counted, Record)
        assert len(counted.used) == 1
        assert isinstance(longer, Record)
        assert longer.terms.ttl == 7000
        assert outcomes([used, used]) == ["used", "LeaseUsedUpError"]
        assert safe_refs.release([made, fresh[3], renewed]) == 3
        wait_until(lambda: both(name, "live_leases") == (0, 0))


def test_a_slow_client_gets_what_it_took(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes between asking the one replica and the other, the second doesn't refuse it its own take or last use."""
    name = start(2, 2)
    taken, used = safe_refs.dumps(ray.put("taken")), safe_refs.dumps(ray.put("used"), uses=1)
    ask = Registry.ask

    def slowly(*args: Any, **how: Any) -> dict[int, Any]:
        replies = ask(*args, **how)
        # The first replica tells the second of the end meanwhile: then both hold equally many leases.
        wait_until(lambda: len(set(both(name, "live_leases"))) == 1)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "ask", slowly)
        assert outcomes([taken], take=True) == ["taken"]
        assert outcomes([used]) == ["used"]
    assert outcomes([taken, used]) == ["LeaseReleasedError", "LeaseUsedUpError"]


@pytest.mark.long
def test_shards_that_do_not_answer_are_waited_for_no_longer_than_the_timeout(start: Start) -> None:
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


@pytest.mark.long
def test_a_load_waits_for_a_silent_shard_while_the_other_recovers(start: Start) -> None:
    """The restarted shard asks the silent one, so that neither can answer: a load has its timeout, and not just two seconds."""
    name = start(2, 2)
    payload = safe_refs.dumps(ray.put("there"))
    with ThreadPoolExecutor(1) as pool:
        with stopped(name, 1):
            before = place(name, 0)
            kill(name, 0)
            wait_until(lambda: place_or_none(name, 0) not in (None, before))
            loading = pool.submit(safe_refs.loads, payload, timeout=60)
            time.sleep(3 * PATIENCE_S)
            assert not loading.done(), loading.exception()
        assert ray.get(loading.result(60)) == "there"
    wait_until_whole(name)


@pytest.mark.long
def test_without_replicas_a_crash_is_reported_at_once(start: Start) -> None:
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


def test_if_all_replicas_crash_at_once_it_is_reported_as_lost(start: Start) -> None:
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


@pytest.mark.long
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
        wait_until(lambda: not counts.counted([id_]), 20)
    finally:
        gc.enable()

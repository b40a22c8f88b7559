"""`wait=False`, `pipeline` and `flush`: references are passed on without waiting, and held all the same."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable

import pytest
import ray

import safe_refs
from safe_refs import aio, logs, terms
from safe_refs.registry import verbs
from safe_refs.threads import Background
from tests.support.groups import sender
from tests.support.processes import Driver
from tests.support.shards import Start, is_whole, kill, stopped
from tests.support.store import holds, is_empty
from tests.support.values import MB, got
from tests.support.waiting import stays, until, wait_until


def test_it_is_held_after_flush(cluster: str) -> None:
    """Whatever the caller dropped meanwhile; two thousand leases, and the store is empty after their release."""
    payloads = [safe_refs.dumps({"ref": ray.put(number)}, wait=False, label="soon") for number in range(2000)]
    safe_refs.flush()
    gc.collect()
    found = safe_refs.stats()
    assert found is not None
    assert found.live_leases == 2000
    assert ray.get([each["ref"] for each in safe_refs.loads_many(payloads[::100])], timeout=30) == list(
        range(0, 2000, 100)
    )
    assert safe_refs.release(payloads) == 2000
    assert is_empty(10)


def test_references_live_until_they_are_held(cluster: str, gate: threading.Event) -> None:
    """The caller drops its own before anything went out."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put(b"kept" * MB), wait=False)
    gc.collect()
    stays(lambda: holds(4 * MB), 1.5)  # Ray would free it within that time
    gate.set()
    safe_refs.flush()
    assert got(safe_refs.loads(payload)) == b"kept" * MB
    safe_refs.release(payload)


def test_a_reader_that_comes_too_early_waits(cluster: str, gate: threading.Event) -> None:
    """By `loads`, by a handle, by its text: up to a bound, and not by an error."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put("early"), wait=False)
    handle = safe_refs.pin(ray.put("handle"), wait=False)
    threading.Timer(0.5, gate.set).start()
    begun = time.monotonic()
    assert ray.get(safe_refs.loads(payload), timeout=20) == "early"
    assert time.monotonic() - begun > 0.3
    assert safe_refs.SafeRef.parse(str(handle)).get() == "handle"
    safe_refs.flush()
    assert safe_refs.release([payload, handle]) == 2


def test_a_reader_waits_up_to_a_bound(cluster: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is told that the lease isn't there."""
    monkeypatch.setattr(verbs, "COMES_S", 0.5)
    safe_refs.init()
    payload = safe_refs.dumps(ray.put("late"), wait=False)
    begun = time.monotonic()
    with pytest.raises(safe_refs.LeaseNotFoundError):
        safe_refs.loads(payload)
    assert 0.4 < time.monotonic() - begun < 5
    gate.set()
    safe_refs.flush()
    assert safe_refs.release(payload) == 1


def test_a_release_that_overtakes_its_pin_wins(cluster: str, gate: threading.Event) -> None:
    """Nothing is held afterwards, and a reader is told by whom it was released."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put("overtaken"), wait=False)
    assert safe_refs.release(payload) == 0
    gate.set()
    safe_refs.flush()
    assert safe_refs.leases() == []
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(payload)


def test_a_failure_is_logged_and_raised_by_flush_once(
    cluster: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that fit are held. However many fail, it is one line a minute, and the next one says how many there were."""
    now = [0.0]
    monkeypatch.setattr(logs.once_a_minute, "_clock", lambda: now[0])
    safe_refs.init(max_leases=3)
    try:
        with caplog.at_level(logging.WARNING, logger="safe_refs"):
            payloads = [safe_refs.dumps(ray.put(number), wait=False) for number in range(203)]
            with pytest.raises(safe_refs.RegistryFullError) as caught:
                safe_refs.flush()
            now[0] = 61.0
            payloads.append(safe_refs.dumps(ray.put(203), wait=False))
            with pytest.raises(safe_refs.RegistryFullError):
                safe_refs.flush()
        safe_refs.flush()
        lines = [message for message in caplog.messages if "could not be held" in message]
        assert len(lines) == 2
        assert lines[1].endswith("(and 199 more like this in the last 61 s)")
        assert len(safe_refs.leases()) == 3
        ids = [(safe_refs.inspect(payload).lease_id or "")[:8] for payload in payloads]
        assert f"lease {ids[3]} could not be held: the registry's" in lines[0]
        assert f"lease {ids[-1]} could not be held: the registry's" in lines[1]
        assert str(caught.value).startswith(f"lease {ids[3]} could not be held: the registry's max_leases is 3")
        assert (caught.value.lease, caught.value.allowed) == (ids[3], 3)
    finally:
        safe_refs.shutdown()


@pytest.mark.parametrize(("shards", "replicas"), [(1, 1), pytest.param(3, 2, marks=pytest.mark.long)])
def test_a_reader_hears_why_a_lease_never_began(start: Start, shards: int, replicas: int) -> None:
    """Not that somebody released it: by `loads`, `get` and `renew`, and with its reason; to release it does nothing."""
    start(shards, replicas)
    safe_refs.init(max_leases=shards)
    for number in range(shards * 10):  # so that each shard has its share
        with contextlib.suppress(safe_refs.RegistryFullError):
            safe_refs.dumps(ray.put(number))
    handles = [safe_refs.pin(ray.put(number), wait=False) for number in range(3)]
    payload = safe_refs.dumps(ray.put("full"), wait=False)
    with pytest.raises(safe_refs.RegistryFullError):
        safe_refs.flush()
    calls: list[Callable[[], object]] = [lambda: safe_refs.loads(payload), lambda: safe_refs.renew(payload, 60)]
    for call in (*calls, *(handle.get for handle in handles)):
        with pytest.raises(
            safe_refs.LeaseRejectedError, match="without waiting: the registry's max_leases is"
        ) as caught:
            call()
        assert caught.value.ended_at is not None
        assert caught.value.reason.startswith("the registry's max_leases is")
        assert str(caught.value).startswith(
            f"lease {caught.value.lease} was rejected by registry {caught.value.registry!r} at "
        )
    assert safe_refs.release([payload, *handles]) == 0


def test_a_pipeline_hears_of_its_own_failures(cluster: str) -> None:
    """Whoever flushes meanwhile; and of no others."""
    safe_refs.init(max_leases=2)

    def pass_on() -> None:
        with safe_refs.pipeline():
            for number in range(3):
                safe_refs.dumps(ray.put(number))
            elsewhere = threading.Thread(target=safe_refs.flush)
            elsewhere.start()
            elsewhere.join()

    try:
        with pytest.raises(safe_refs.RegistryFullError):
            pass_on()
        safe_refs.dumps(ray.put(3), wait=False)
        with safe_refs.pipeline():
            pass
        with pytest.raises(safe_refs.RegistryFullError):
            safe_refs.flush()
    finally:
        safe_refs.shutdown()


def test_flush_waits_for_what_was_posted_before(cluster: str) -> None:
    """While another thread posts on and on."""
    safe_refs.init()
    over = threading.Event()
    payloads: list[bytes] = []

    def post() -> None:
        ref = ray.put("again and again")
        # Not faster than a shard on a busy machine: each flush would wait for as many pins as may wait.
        while not over.wait(0.0005):
            payloads.append(safe_refs.dumps(ref, wait=False))

    poster = threading.Thread(target=post)
    poster.start()
    try:
        for _ in range(20):
            safe_refs.flush(20)
    finally:
        over.set()
        poster.join()
    safe_refs.flush()
    assert safe_refs.release(payloads) == len(payloads)


def test_a_reader_that_comes_too_early_holds_up_no_other(cluster: str, gate: threading.Event) -> None:
    """One waits for a pin that its maker didn't wait for; others, who share the thread that asks, are answered meanwhile."""
    safe_refs.init()
    there = safe_refs.dumps(ray.put("there"))
    coming = safe_refs.dumps(ray.put("coming"), wait=False)

    async def load() -> float:
        early = asyncio.ensure_future(aio.loads(coming))
        await until(lambda: bool(sender().background._threads))  # it asks again, by itself
        begun = time.monotonic()
        for _ in range(5):
            await aio.loads(there)
        took = time.monotonic() - begun
        assert not early.done()
        gate.set()
        assert await (await early) == "coming"
        return took

    assert asyncio.run(asyncio.wait_for(load(), 60)) < 2
    assert safe_refs.release([there, coming]) == 2


def test_flush_waits_no_longer_than_the_timeout(cluster: str) -> None:
    """And may be called again."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put(1))
    with stopped("default", 0):
        late = safe_refs.dumps(ray.put(2), wait=False)
        begun = time.monotonic()
        with pytest.raises(safe_refs.RegistryUnavailableError, match=r"flush\(\) again"):
            safe_refs.flush(0.3)
        assert time.monotonic() - begun < 5
    safe_refs.flush()
    assert safe_refs.release([payload, late]) == 2


def test_pipeline_covers_a_block(cluster: str) -> None:
    """It flushes at its end, also by an exception; `wait=True` inside waits; other threads are left alone."""
    with safe_refs.pipeline():
        payloads = [safe_refs.dumps(ray.put(number)) for number in range(50)]
        assert safe_refs.inspect(payloads[0]).handles[0].address.soon
        waited = safe_refs.dumps(ray.put("waited"), wait=True)
        assert not safe_refs.inspect(waited).handles[0].address.soon
        elsewhere: list[bool] = []
        thread = threading.Thread(target=lambda: elsewhere.append(terms.ask(None, None, None, None, None).waits))
        thread.start()
        thread.join()
        assert elsewhere == [True]
    assert len(safe_refs.leases()) == 51

    def fail() -> None:
        payloads.append(safe_refs.dumps(ray.put("raised")))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), safe_refs.pipeline():
        fail()
    assert len(safe_refs.leases()) == 52
    assert terms.ask(None, None, None, None, None).waits
    assert safe_refs.release([*payloads, waited]) == 52


def test_it_is_a_setting_too(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment, by `init` before that; arguments beat them."""
    monkeypatch.setenv("SAFE_REFS_WAIT", "0")
    assert not safe_refs.settings().wait
    assert terms.ask(None, None, None, True, None).waits
    safe_refs.init(wait=True)
    assert safe_refs.settings().wait
    monkeypatch.setenv("SAFE_REFS_WAIT", "1")
    safe_refs.init(wait=False)
    assert not safe_refs.settings().wait
    safe_refs.init()
    assert safe_refs.settings().wait


def test_a_scope_ends_them_too(cluster: str) -> None:
    """Whether they were held already or not."""
    with safe_refs.scope():
        for number in range(20):
            safe_refs.dumps(ray.put(number), wait=False)
    safe_refs.flush()
    assert safe_refs.leases() == []


def test_many_at_once_without_waiting(cluster: str) -> None:
    """`dumps_many(wait=False)` queues them all."""
    refs = [ray.put(number) for number in range(100)]
    payloads = safe_refs.dumps_many(refs, wait=False)
    safe_refs.flush()
    assert ray.get(safe_refs.loads_many(payloads), timeout=30) == list(range(100))
    assert safe_refs.release(payloads) == 100


@pytest.mark.long
def test_with_a_replica_killed_all_are_held(start: Start) -> None:
    """What was posted before, while and after."""
    name = start(2, 2)
    payloads = []
    for number in range(300):
        if number == 100:
            kill(name, 0)
        payloads.append(safe_refs.dumps(ray.put(number), wait=False))
    safe_refs.flush(60)
    assert ray.get(safe_refs.loads_many(payloads), timeout=60) == list(range(300))
    wait_until(lambda: is_whole(name), 60)
    assert safe_refs.release(payloads) == 300


def test_a_driver_that_ends_flushes(cluster: str, driver: Driver) -> None:
    """The objects are another job's; the driver does nothing but post, and ends."""
    handles = safe_refs.pin([ray.put(number) for number in range(200)])
    posted = driver(
        """
        handles = [safe_refs.SafeRef.parse(text) for text in args]
        refs = [handle.resolve() for handle in handles]
        print(json.dumps([safe_refs.dumps(ref, wait=False).hex() for ref in refs]))
        """,
        *map(str, handles),
    )
    payloads = [bytes.fromhex(each) for each in posted]
    assert [got(safe_refs.loads(payload)) for payload in payloads] == list(range(200))
    assert safe_refs.release([*payloads, handles[0]]) == 201


def test_a_thread_of_ours_does_not_wait_for_what_it_is_to_do(cluster: str, gate: threading.Event) -> None:
    """The collector may run a destructor there, and that one may flush. All other pins, and callers, would wait for it."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put("kept"), wait=False)
    raised: list[str] = []

    def flush() -> None:
        begun = time.monotonic()
        try:
            safe_refs.flush(timeout=20)
        except safe_refs.RegistryUnavailableError as error:
            raised.append(str(error))
        raised.append("in time" if time.monotonic() - begun < 5 else "late")

    Background().run(flush)
    wait_until(lambda: len(raised) == 2)
    gate.set()
    safe_refs.flush()
    assert "in a thread of safe_refs" in raised[0]
    assert raised[1] == "in time"
    assert safe_refs.release(payload) == 1

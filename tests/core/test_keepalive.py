"""`keepalive`: a lease lives as long as a process renews it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio, asks
from tests.support.loops import Ticks
from tests.support.processes import PRELUDE
from tests.support.shards import stopped
from tests.support.store import live
from tests.support.values import MB
from tests.support.waiting import stays, until, wait_until


def test_keepalive_renews_while_its_block_runs(cluster: str) -> None:
    """A lease with a ttl of a second lives through a block of three, and runs out after it."""
    payload = safe_refs.dumps(ray.put("alive"), ttl=1)
    with safe_refs.keepalive(payload, ttl=1.2) as kept:
        stays(lambda: len(live()) == 1, 3)
        assert ray.get(safe_refs.loads(payload), timeout=20) == "alive"
    assert kept.error is None
    wait_until(lambda: live() == [], 5)
    with pytest.raises(safe_refs.LeaseExpiredError):
        safe_refs.loads(payload)


def test_keepalive_never_shortens(cluster: str) -> None:
    """A lease with a longer ttl keeps its time, and one without a ttl has none afterwards, either; one with a shorter gets more."""
    long, endless, short = (safe_refs.pin(ray.put(1), ttl=ttl) for ttl in (600, None, 2))

    def left() -> list[float | None]:
        return [
            None if span is None else span // 10 * 10 for span in map(safe_refs.expires_in_s, (long, endless, short))
        ]

    with safe_refs.keepalive([long, endless, short], ttl=59):
        assert left() == [590, None, 50]
    assert left() == [590, None, 50]
    with safe_refs.keepalive([long, endless, short], ttl=0.3):
        stays(lambda: left() == [590, None, 50], 1)  # three renewals later
    assert left() == [590, None, 50]
    assert safe_refs.release([long, endless, short]) == 3


def test_keepalive_works_in_an_event_loop(cluster: str) -> None:
    """As `async with`: it renews as ever, says how a lease ended, and entering and leaving keep nobody waiting."""

    async def main() -> None:
        payload = safe_refs.dumps(ray.put("alive"), ttl=1)
        kept = aio.keepalive(payload, ttl=0.9)
        async with Ticks() as ticks, kept:
            with pytest.raises(RuntimeError, match="renewing already"):
                await kept.__aenter__()
            await asyncio.sleep(2)
            assert live() == [None]
        assert ticks.longest_s < 0.5

        async def lose_it() -> None:
            async with kept:
                await aio.release(payload)
                await until(lambda: kept.error is not None)

        with pytest.raises(safe_refs.LeaseReleasedError):
            await lose_it()

    asyncio.run(main())


def test_who_is_cancelled_while_entering_a_keepalive_renews_nothing(registry: str) -> None:
    """The thread that is asking for him goes on, and starts no renewals."""
    payload = safe_refs.dumps(ray.put("v"), ttl=60)

    async def main() -> None:
        kept = aio.keepalive(payload, ttl=0.9)
        with stopped(registry, 0):
            entering = asyncio.create_task(kept.__aenter__())
            await asyncio.sleep(0.3)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        async with kept:  # which may be entered anew
            pass

    asyncio.run(main())  # the end of which waits for the thread
    assert "safe_refs-keepalive" not in {thread.name for thread in threading.enumerate()}
    safe_refs.release(payload)


def test_keepalive_reports_a_lease_that_ended_under_way(cluster: str) -> None:
    """At the end of the block, unless that raises something itself; entering with an ended lease fails at once."""
    payload = safe_refs.dumps(ray.put(1))

    def lose_it() -> None:
        with safe_refs.keepalive(payload, ttl=0.3) as kept:
            safe_refs.release(payload)
            wait_until(lambda: kept.error is not None, 5)

    with pytest.raises(safe_refs.LeaseReleasedError):
        lose_it()
    with pytest.raises(safe_refs.LeaseReleasedError), safe_refs.keepalive(payload, ttl=5):
        pass


@pytest.mark.long
def test_a_creator_killed_in_a_keepalive_lets_its_lease_run_out(registry: str, ray_cluster: str) -> None:
    """SIGKILL in the middle of a `keepalive` of 1 s: renewed until then, and gone at most ttl and sweep later."""
    ref = ray.put(b"x" * MB)
    handle = safe_refs.pin(ref, ttl=5)
    code = PRELUDE + (
        "handle = safe_refs.SafeRef.parse(args[0])\n"
        "with safe_refs.keepalive(handle, ttl=1):\n"
        "    print('renewing', flush=True)\n"
        "    time.sleep(60)  # until it is killed\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, ray_cluster, str(handle)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "renewing\n"
        wait_until(lambda: (safe_refs.expires_in_s(handle) or 5) <= 1, 10)
        stays(lambda: 0 < (safe_refs.expires_in_s(handle) or 0) <= 1, 2)
    finally:
        child.kill()
        child.wait()
    killed = time.monotonic()
    wait_until(lambda: live() == [], 10)
    assert time.monotonic() - killed < 1 + 1 + 1  # ttl, sweep, and a second for a busy machine


def test_a_keepalive_can_be_entered_again(cluster: str) -> None:
    """It renews in the second block as it did in the first; but not in two blocks at once."""
    payload = safe_refs.dumps(ray.put("v"))
    kept = safe_refs.keepalive(payload, ttl=0.9)
    for _ in range(2):
        with kept:
            with pytest.raises(RuntimeError, match="renewing already"):
                kept.__enter__()
            stays(lambda: live() == [None], 1.5)
    safe_refs.release(payload)


def test_a_keepalive_goes_on_after_any_error(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expects is logged, the next renewal is tried, and what fails to the last is raised at the end."""
    payload = safe_refs.dumps(ray.put("v"))
    renew, failures, failed = asks.renew, [ZeroDivisionError("once")], threading.Event()

    def fail_at_times(*args: Any, **how: Any) -> None:
        if failures:
            failed.set()
            raise failures[0]
        renew(*args, **how)

    with safe_refs.keepalive(payload, ttl=0.9):
        monkeypatch.setattr(asks, "renew", fail_at_times)
        assert failed.wait(10)
        failures.clear()
        stays(lambda: live() == [None], 1.5)
    monkeypatch.undo()

    def fail_to_the_last() -> None:
        with safe_refs.keepalive(payload, ttl=0.9):
            failures.append(ZeroDivisionError("to the last"))
            failed.clear()
            monkeypatch.setattr(asks, "renew", fail_at_times)
            assert failed.wait(10)

    with pytest.raises(ZeroDivisionError):
        fail_to_the_last()
    monkeypatch.undo()
    safe_refs.release(payload)


def test_a_keepalive_that_fails_logs_once_a_minute(
    cluster: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The registry is silent for all of its leases, again and again: that is one line."""
    payloads = [safe_refs.dumps(ray.put("v"), ttl=100) for _ in range(20)]
    failed: list[None] = []

    def fail(*_: Any, **__: Any) -> None:
        failed.append(None)
        raise safe_refs.RegistryUnavailableError("silent")

    with caplog.at_level(logging.WARNING, logger="safe_refs"), safe_refs.keepalive(payloads, ttl=0.6):
        monkeypatch.setattr(asks, "renew", fail)
        wait_until(lambda: len(failed) > 50)
    monkeypatch.undo()
    assert sum("could not be renewed" in message for message in caplog.messages) == 1
    safe_refs.release(payloads)

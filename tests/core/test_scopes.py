"""Scopes, keepalives, and the ttl that a process gives by default."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import asks
from tests.support.processes import PRELUDE
from tests.support.values import MB
from tests.support.waiting import stays, wait_until


def live() -> list[str | None]:
    return [info.label for info in safe_refs.leases(sizes=False)]


def test_leases_made_in_a_scope_end_with_it(cluster: str) -> None:
    """Whatever the code called inside makes, by `dumps`, `dump` or `pin`; what was made before or after stays."""

    def elsewhere() -> Any:
        return safe_refs.pin([ray.put(1), ray.put(2)])

    before = safe_refs.dumps(ray.put("before"), label="before")
    with safe_refs.scope():
        inside = safe_refs.dumps(ray.put("inside"))
        handles = elsewhere()
        assert len(live()) == 3
    assert live() == ["before"]
    for lost in (lambda: safe_refs.loads(inside), handles[1].resolve):
        with pytest.raises(safe_refs.LeaseReleasedError):
            lost()
    after = safe_refs.dumps(ray.put("after"))
    assert safe_refs.release([before, after]) == 2


def test_a_scope_ends_its_leases_also_on_an_exception(cluster: str) -> None:
    """And the exception passes."""

    def fail() -> None:
        with safe_refs.scope():
            safe_refs.dumps(ray.put(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert live() == []


def test_keep_exempts_a_lease(cluster: str) -> None:
    """By payload, handle or text; what is kept is the caller's to release. In nested scopes it belongs to the one around."""
    with safe_refs.scope() as scope:
        kept = scope.keep(safe_refs.dumps(ray.put("kept")))
        safe_refs.dumps(ray.put("not kept"))
        assert ray.get(safe_refs.loads(kept), timeout=20) == "kept"
    assert len(live()) == 1
    assert safe_refs.release(kept) == 1
    with safe_refs.scope():
        with safe_refs.scope() as inner:
            inner.keep(str(safe_refs.pin(ray.put("passed on"), label="passed on")))
            safe_refs.pin(ray.put("inner"))
        assert live() == ["passed on"]
    assert live() == []
    with pytest.raises(RuntimeError, match="closed"):
        inner.keep(kept)


def test_a_scope_gives_its_terms_to_what_is_made_inside(cluster: str) -> None:
    """Its ttl and label count where a call names none; the innermost scope that has one decides."""
    with safe_refs.scope(ttl=100, label="outer"), safe_refs.scope(label="inner"):
        safe_refs.pin(ray.put(1))
        safe_refs.pin(ray.put(2), ttl=5, label="own")
        safe_refs.pin(ray.put(3), ttl=float("inf"))
        first, second, third = safe_refs.leases(sizes=False)
    assert (first.label, second.label, third.label) == ("inner", "own", "inner")
    assert first.expires_in_s == pytest.approx(100, abs=20)
    assert second.expires_in_s == pytest.approx(5, abs=5)
    assert third.expires_in_s is None


def test_a_pickler_takes_the_terms_of_the_scope_in_which_it_dumps(cluster: str) -> None:
    """Not of the one in which it was made."""
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    with safe_refs.scope(ttl=100, label="scope"):
        pickler.dump(ray.put(1))
        (info,) = safe_refs.leases(sizes=False)
    assert info.label == "scope"
    assert info.expires_in_s == pytest.approx(100, abs=20)
    assert live() == []


def test_each_thread_has_scopes_of_its_own(cluster: str) -> None:
    """What another thread makes meanwhile is not ended."""
    made: list[bytes] = []
    with safe_refs.scope():
        thread = threading.Thread(target=lambda: made.append(safe_refs.dumps(ray.put("other thread"))))
        thread.start()
        thread.join()
    assert ray.get(safe_refs.loads(made[0]), timeout=20) == "other thread"
    assert safe_refs.release(made) == 1


def test_scopes_work_in_asyncio_tasks(cluster: str) -> None:
    """Tasks with scopes of their own don't meddle with each other; one started inside belongs to the scope while that is open."""

    async def work(label: str) -> tuple[bytes, bytes]:
        async with safe_refs.scope(label=label) as scope:
            await asyncio.sleep(0.02)
            lost = safe_refs.dumps(ray.put(label))
            await asyncio.sleep(0.02)
            kept = scope.keep(safe_refs.dumps(ray.put(label)))
        return lost, kept

    async def main() -> None:
        done = await asyncio.gather(*(work(f"task {number}") for number in range(5)))
        for number, (lost, kept) in enumerate(done):
            assert ray.get(safe_refs.loads(kept), timeout=20) == f"task {number}"
            with pytest.raises(safe_refs.LeaseReleasedError):
                safe_refs.loads(lost)
        assert safe_refs.release(kept for _, kept in done) == 5
        made, go_on = asyncio.Event(), asyncio.Event()

        async def outlives() -> bytes:
            safe_refs.dumps(ray.put("inside"))
            made.set()
            await go_on.wait()
            return safe_refs.dumps(ray.put("later"))

        async with safe_refs.scope():
            task = asyncio.create_task(outlives())
            await made.wait()
            assert len(live()) == 1
        assert live() == []
        go_on.set()
        assert safe_refs.release(await task) == 1

    asyncio.run(main())


def test_a_scope_is_for_one_use_and_checks_its_terms(cluster: str) -> None:
    """Entering twice is a mistake, as is a ttl that can't be."""
    scope = safe_refs.scope()
    with scope:
        pass
    with pytest.raises(RuntimeError, match="once"), scope:
        pass
    with pytest.raises(ValueError, match="ttl"):
        safe_refs.scope(ttl=0)


def test_a_default_ttl_can_be_set_for_the_process(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None unless set; by `SAFE_REFS_TTL` or `init`; a call's own ttl wins, and infinity is none."""
    safe_refs.pin(ray.put(0)).release()
    plain = safe_refs.pin(ray.put(1))
    assert safe_refs.expires_in_s(plain) is None
    monkeypatch.setenv("SAFE_REFS_TTL", "50")
    by_default = safe_refs.dumps(ray.put(2))
    left = safe_refs.expires_in_s(by_default)
    assert left is not None
    assert 20 < left <= 50
    unlimited = safe_refs.pin(ray.put(3), ttl=float("inf"))
    assert safe_refs.expires_in_s(unlimited) is None
    assert safe_refs.release([plain, by_default, unlimited]) == 3
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.expires_in_s(plain)


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


def test_a_creator_killed_in_a_keepalive_lets_its_lease_run_out(registry: str, ray_cluster: str) -> None:
    """SIGKILL in the middle of a `keepalive` of 1 s: renewed until then, and gone at most ttl and sweep later."""
    ref = ray.put(b"x" * MB)
    handle = safe_refs.pin(ref, ttl=60)
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
        stays(lambda: (left := safe_refs.expires_in_s(handle)) is not None and left <= 1, 2)
    finally:
        child.kill()
        child.wait()
    killed = time.monotonic()
    wait_until(lambda: live() == [], 10)
    assert time.monotonic() - killed < 1 + 1 + 1  # ttl, sweep, and a second for a busy machine


def test_a_long_scope_forgets_what_has_ended(cluster: str) -> None:
    """A scope that a service keeps open for its whole life remembers its live leases only, whoever in the process ends them."""
    with safe_refs.scope() as scope:
        for number in range(20):
            safe_refs.release(safe_refs.dumps(ray.put(number)))
            safe_refs.loads(safe_refs.dumps(ray.put(number)), take=True)
        payload = safe_refs.dumps(ray.put("elsewhere"))
        thread = threading.Thread(target=safe_refs.release, args=(payload,))
        thread.start()
        thread.join()
        assert repr(scope) == "<scope with 0 lease(s)>"
        safe_refs.dumps(ray.put("kept"))
        assert repr(scope) == "<scope with 1 lease(s)>"
    assert live() == []


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

    def fail_at_times(*args: Any) -> None:
        if failures:
            failed.set()
            raise failures[0]
        renew(*args)

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

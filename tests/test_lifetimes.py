"""Scopes, keepalives, limits, listings and the ends of processes, on a real Ray."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import config
from tests.conftest import PRELUDE, Driver, as_actor, is_empty
from tests.test_registry import wait_until

MB = 2**20


@pytest.fixture
def registry(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry of this test's own, with whatever limits it likes."""
    name = f"lifetimes-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", name)
    yield name
    config._told.limits = None
    safe_refs.shutdown()


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
        go_on = asyncio.Event()

        async def outlives() -> bytes:
            safe_refs.dumps(ray.put("inside"))
            await go_on.wait()
            return safe_refs.dumps(ray.put("later"))

        async with safe_refs.scope():
            task = asyncio.create_task(outlives())
            await asyncio.sleep(0.05)
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
        time.sleep(3)  # that time passes is what is tested
        assert ray.get(safe_refs.loads(payload), timeout=20) == "alive"
    assert kept.error is None
    wait_until(lambda: live() == [], 5)
    with pytest.raises(safe_refs.LeaseExpiredError):
        safe_refs.loads(payload)


def test_keepalive_tells_of_a_lease_that_ended_under_way(cluster: str) -> None:
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
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, ray_cluster, str(handle)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "renewing\n"
        time.sleep(2)
        left = safe_refs.expires_in_s(handle)
        assert left is not None
        assert left <= 1
    finally:
        child.kill()
        child.wait()
    killed = time.monotonic()
    wait_until(lambda: live() == [], 10)
    assert time.monotonic() - killed < 1 + 1 + 1  # ttl, sweep, and a second for a busy machine


@pytest.mark.long
def test_a_driver_that_exits_takes_its_thousand_leases_along(registry: str, driver: Driver) -> None:
    """What a job's own processes own dies with the job: after a sweep all its leases are gone, with the reason."""
    mine = safe_refs.dumps(ray.put("mine"))
    payloads = driver(
        f"""
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "{registry}"
        payloads = [safe_refs.dumps(ray.put(number)).hex() for number in range(1000)]
        assert len(safe_refs.leases(limit=None, sizes=False)) == 1001
        print(json.dumps([payloads[0], payloads[-1]]))
        """
    )
    wait_until(lambda: len(live()) == 1, 15)
    for payload in payloads:
        with pytest.raises(safe_refs.OwnerGoneError, match="died with the process that owned them"):
            safe_refs.loads(bytes.fromhex(payload))
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.owner_gone == 1000
    assert ray.get(safe_refs.loads(mine), timeout=20) == "mine"
    safe_refs.release(mine)


def test_limits_in_bytes_count_each_object_once(registry: str) -> None:
    """`max_bytes` refuses what would pass it, with figures and holders; the same object again is free, and so is released room."""
    safe_refs.init(max_bytes=5 * MB)
    big = ray.put(b"b" * 3 * MB)
    held = [safe_refs.dumps(big, label="big") for _ in range(3)]
    with pytest.raises(safe_refs.RegistryFullError, match="max_bytes") as caught:
        safe_refs.dumps(ray.put(b"c" * 3 * MB))
    assert caught.value.used == pytest.approx(3 * MB, rel=0.01)
    assert caught.value.asked == pytest.approx(3 * MB, rel=0.01)
    assert caught.value.largest[0][0] == "big"
    assert safe_refs.release(held) == 3
    held = [safe_refs.dumps(ray.put(b"c" * 3 * MB))]
    assert safe_refs.release(held) == 1


def test_limits_for_each_job(registry: str, driver: Driver) -> None:
    """`max_leases_per_job` stops one job and leaves the others their room."""
    safe_refs.init(max_leases_per_job=2)
    held = [safe_refs.dumps(ray.put(number), label="mine") for number in range(2)]
    with pytest.raises(safe_refs.RegistryFullError, match="max_leases_per_job is 2, 2 are in use") as caught:
        safe_refs.pin(ray.put(3))
    assert caught.value.largest == (("mine", 2),)
    others = driver(
        f"""
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "{registry}"
        payload = safe_refs.dumps(ray.put(1))
        rows = safe_refs.leases(job=ray.get_runtime_context().get_job_id())
        print(json.dumps([len(rows), safe_refs.release(payload)]))
        """
    )
    assert others == [1, 1]
    assert safe_refs.release(held) == 2


def test_what_a_pending_task_makes_is_weighed_when_it_is_there(registry: str) -> None:
    """An object without a size yet counts nothing, and its bytes from the next sweep after it exists."""

    @ray.remote(num_cpus=0)
    def slow() -> bytes:
        time.sleep(0.5)
        return b"s" * 3 * MB

    safe_refs.init(max_bytes=4 * MB, sweep_s=0.2)
    ref = slow.remote()
    payload = safe_refs.dumps(ref)
    ray.get(ref, timeout=30)

    def full() -> bool:
        try:
            safe_refs.dumps(ray.put(b"t" * 2 * MB), ttl=1)
        except safe_refs.RegistryFullError:
            return True
        return False

    wait_until(full, 10)
    safe_refs.release(payload)


def test_leases_are_filtered_sorted_and_paged(registry: str) -> None:
    """By label, job, age and size; oldest, soonest, or largest first; a thousand at a time, however many there are."""
    sizes = [3, 1, 2]
    held = [safe_refs.dumps(ray.put(b"x" * number * 100_000), label=f"{number}", ttl=100 * number) for number in sizes]
    held.append(safe_refs.dumps([ray.put(b"y") for _ in range(5)], label="many"))
    assert [info.label for info in safe_refs.leases()] == ["3", "1", "2", "many"]
    assert [info.label for info in safe_refs.leases(sort="bytes")] == ["3", "2", "1", "many"]
    assert [info.label for info in safe_refs.leases(sort="expires")] == ["1", "2", "3", "many"]
    assert [info.label for info in safe_refs.leases(sort="references", limit=2)] == ["many", "3"]
    assert [info.label for info in safe_refs.leases(min_bytes=150_000)] == ["3", "2"]
    assert safe_refs.leases(min_age_s=3600) == []
    assert safe_refs.leases(job="ffffffff") == []
    with pytest.raises(ValueError, match="sort"):
        safe_refs.leases(sort="colour")  # type: ignore[arg-type] # the point
    held += safe_refs.dumps_many([ray.put(0) for _ in range(2100)], label="small")
    rows = safe_refs.leases(limit=None, sizes=False)
    assert len(rows) == 2104
    assert [row.number for row in rows] == sorted(row.number for row in rows)
    for sort in ("expires", "references", "bytes"):
        assert len({row.number for row in safe_refs.leases(sort=sort, limit=None)}) == 2104
    assert len(safe_refs.leases(label="small", limit=1500, sizes=False)) == 1500
    assert safe_refs.release(held) == 2104


def test_tombstones_are_forgotten_with_age(registry: str) -> None:
    """For as long as `tombstone_age_s` the registry knows how a lease ended; after that, only that it is not there."""
    safe_refs.init(tombstone_age_s=1.5, sweep_s=0.2)
    payload = safe_refs.dumps(ray.put(1))
    safe_refs.release(payload)
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(payload)

    def forgotten() -> bool:
        try:
            safe_refs.loads(payload)
        except safe_refs.LeaseNotFoundError:
            return True
        except safe_refs.LeaseReleasedError:
            return False
        raise AssertionError("it opened")

    wait_until(forgotten, 10)


def test_a_wrong_clock_elsewhere_does_not_matter(registry: str) -> None:
    """A ttl is counted by the registry's own clock, from when it took the lease: a maker's wrong clock changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() - 365 * 86400)
        payload = safe_refs.dumps(ray.put("v"), ttl=30)
    assert ray.get(safe_refs.loads(payload), timeout=20) == "v"
    left = safe_refs.expires_in_s(payload)
    assert left is not None
    assert 10 < left <= 30
    safe_refs.release(payload)


def test_a_lease_with_a_living_owner_outlives_other_deaths(registry: str) -> None:
    """A process that only resolved, killed, ends nothing."""

    class Reader:
        def read(self, payload: bytes) -> int:
            self.ref = safe_refs.loads(payload)
            return os.getpid()

    payload = safe_refs.dumps(ray.put(b"x" * MB))
    gc.collect()
    reader = as_actor(Reader).remote()
    os.kill(ray.get(reader.read.remote(payload), timeout=60), signal.SIGKILL)
    time.sleep(2.5)  # two sweeps: there is nothing to await for what must not happen
    assert ray.get(safe_refs.loads(payload), timeout=20) == b"x" * MB
    assert json.loads(json.dumps(safe_refs.release(payload))) == 1
    gc.collect()
    assert is_empty(3)

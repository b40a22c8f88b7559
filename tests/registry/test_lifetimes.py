"""What a registry counts, lists and forgets, and whose deaths end a lease."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray

import safe_refs
from tests.support.actors import Reader
from tests.support.cluster import as_actor
from tests.support.processes import Driver
from tests.support.store import is_empty
from tests.support.tasks import when_told
from tests.support.values import MB
from tests.support.waiting import stays, wait_until


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
    wait_until(lambda: len(safe_refs.leases(sizes=False)) == 1, 15)
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


def test_what_a_pending_task_makes_is_weighed_when_it_is_there(registry: str, tmp_path: Path) -> None:
    """An object without a size yet counts nothing, and its bytes from the next sweep after it exists."""
    safe_refs.init(max_bytes=4 * MB, sweep_s=0.2)
    told = tmp_path / "told"
    ref = when_told.remote(str(told), b"s" * 3 * MB)
    payload = safe_refs.dumps(ref)
    told.touch()
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


@pytest.mark.long
def test_a_lease_with_a_living_owner_outlives_other_deaths(registry: str) -> None:
    """A process that only resolved, killed, ends nothing."""
    payload = safe_refs.dumps(ray.put(b"x" * MB))
    gc.collect()
    reader = as_actor(Reader).remote()
    os.kill(ray.get(reader.load.remote([payload]), timeout=60), signal.SIGKILL)
    stays(lambda: len(safe_refs.leases(sizes=False)) == 1, 2.5)  # two sweeps
    assert ray.get(safe_refs.loads(payload), timeout=20) == b"x" * MB
    assert json.loads(json.dumps(safe_refs.release(payload))) == 1
    gc.collect()
    assert is_empty(3)

"""Whole journeys, as users make them: tasks, actors, files and other jobs, and the store is empty at the end.

All of it under `RAY_allow_out_of_band_object_ref_serialization=0` (see conftest), Ray's switch against what others do instead.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from safe_refs._ray import native, store
from tests.support.cluster import as_actor
from tests.support.processes import Driver, dies
from tests.support.store import holds, is_empty
from tests.support.values import MB
from tests.support.waiting import stays


@dataclasses.dataclass
class Part:
    name: str
    ref: Any


@ray.remote
def made_by_pickle() -> bytes:
    import safe_refs as pickle

    ref = ray.put(1)
    return pickle.dumps(ref)


@ray.remote
def made_by_cloudpickle() -> bytes:
    import safe_refs as cloudpickle

    ref = ray.put(1)
    return cloudpickle.dumps({"ref": ref, "call": lambda: ref})


@pytest.mark.parametrize("task", [made_by_pickle, made_by_cloudpickle], ids=["pickle", "ray.cloudpickle"])
def test_the_manuals_scripts_work_with_safe_refs_in_their_place(cluster: str, task: Any) -> None:
    """A task puts a value, pickles its reference and ends; the driver gets the value, releases, and the store is empty within 2 s."""
    assert os.environ["RAY_allow_out_of_band_object_ref_serialization"] == "0"  # noqa: SIM112 # the name is Ray's
    payload = ray.get(task.remote(), timeout=60)
    loaded: Any = pickle.loads(payload)
    ref: Any = loaded["ref"] if isinstance(loaded, dict) else loaded
    assert ray.get(ref, timeout=20) == 1
    if isinstance(loaded, dict):
        assert loaded["call"]() is ref
    assert safe_refs.release(payload) == 1
    del loaded, ref
    gc.collect()
    assert is_empty(within_s=2)


def test_rays_own_picklers_are_indeed_forbidden_here(cluster: str) -> None:
    """The switch is on in these tests: `ray.cloudpickle` refuses what `safe_refs` does."""
    with pytest.raises(ray.exceptions.OufOfBandObjectRefSerializationException):
        ray.cloudpickle.dumps([ray.put(1)])  # type: ignore[no-untyped-call] # Ray leaves it untyped


@pytest.mark.parametrize("rounds", [150, pytest.param(500, marks=pytest.mark.long)])
def test_rounds_leave_store_spill_and_counts_at_their_baseline(cluster: str, rounds: int) -> None:
    """Task, `dumps`, `loads`, `release`, 1 MB each, over and over: nothing grows, `dumps` never raises Ray's count."""

    @ray.remote
    def make(number: int) -> bytes:
        return number.to_bytes(4, "big") * (MB // 4)

    counts = native.core_worker().get_all_reference_counts
    before = store.wait_for_store(0, 1)  # what other tests left may still be on its way out
    peak = 0
    deadline = time.monotonic() + 120
    for number in range(rounds):
        ref = make.remote(number)
        ray.wait([ref], timeout=60)
        counted = counts()[ref.hex().encode()]
        payload = safe_refs.dumps({"number": number, "ref": ref})
        now = counts()[ref.hex().encode()]
        assert now["local"] == counted["local"]
        # Ray takes the finished call off its own books just after it has handed over the answer.
        while now["submitted"] != counted["submitted"] and time.monotonic() < deadline:
            now = counts()[ref.hex().encode()]
        assert now == counted
        del ref
        loaded = safe_refs.loads(payload)
        assert ray.get(loaded["ref"], timeout=60)[:4] == number.to_bytes(4, "big")
        assert safe_refs.release(payload) == 1
        del loaded
        if number % 50 == 49:
            peak = max(peak, store.store_usage().used_bytes)
    gc.collect()
    after = store.wait_for_store(before.used_bytes, 5)
    assert after.used_bytes <= before.used_bytes
    assert after.spilled_bytes == before.spilled_bytes
    assert peak < 100 * MB


def test_payloads_in_a_file_are_read_by_plain_pickle_in_another_job(
    cluster: str, driver: Driver, tmp_path: Path
) -> None:
    """16 references in a dict of dataclasses, dumped three times into one file: another driver reads all with `pickle.load`."""
    parts = {str(n): Part(f"part {n}", ray.put(np.full(20_000, n))) for n in range(16)}
    path = tmp_path / "parts.pickle"
    with path.open("wb") as file:
        for _ in range(3):
            safe_refs.dump(parts, file)
    del parts
    gc.collect()
    used = store.store_usage().used_bytes
    read = driver(
        """
        sums = []
        with open(args[0], "rb") as file:
            for _ in range(3):
                parts = pickle.load(file)
                sums.append([int(ray.get(part.ref, timeout=20).sum()) for part in parts.values()])
                assert parts["3"].name == "part 3"
        del parts
        print(json.dumps(sums))
        """,
        str(path),
    )
    assert read == [[20_000 * n for n in range(16)]] * 3
    payloads = []
    with path.open("rb") as file:
        for _ in range(3):
            payloads.append(next(iter(safe_refs.load(file, resolve=False).values())).ref)
    released = [safe_refs.release(payload) for payload in payloads]
    assert released == [1, 1, 1]
    assert used >= 16 * 160_000
    assert is_empty(within_s=2)


def test_a_payload_travels_from_task_to_caller_to_task(cluster: str) -> None:
    """Made in one task, carried by a caller that never resolves it, resolved in another."""

    @ray.remote
    def make() -> bytes:
        return safe_refs.dumps([ray.put("nested journey")])

    @ray.remote
    def call() -> bytes:
        return ray.get(make.remote())

    @ray.remote
    def read(payload: bytes) -> Any:
        return ray.get(safe_refs.loads(payload)[0], timeout=20)

    payload = ray.get(call.remote(), timeout=60)
    assert ray.get(read.remote(payload), timeout=60) == "nested journey"
    assert safe_refs.release(payload) == 1


@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.long) for how in ("exits", "dropped"))]
)
def test_a_payload_passed_through_an_actor_that_dies_opens_for_the_last_reader(cluster: str, how: str) -> None:
    """An actor that loads, reads and forwards a payload, and is gone before the last reader comes, takes nothing along."""

    class Forwarder:
        def forward(self, payload: bytes) -> tuple[bytes, Any, int]:
            self.ref = safe_refs.loads(payload)
            return payload, ray.get(self.ref, timeout=20), os.getpid()

        def leave(self) -> None:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves it untyped

    payload = safe_refs.dumps(ray.put(b"f" * MB))
    gc.collect()
    forwarder = as_actor(Forwarder).remote()
    forwarded, seen, pid = ray.get(forwarder.forward.remote(payload), timeout=60)
    assert seen == b"f" * MB
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    elif how == "exits":
        forwarder.leave.remote()
    del forwarder
    assert dies(pid, 30)
    stays(lambda: holds(MB), 3)  # an object that Ray has lost track of is gone by then
    assert ray.get(safe_refs.loads(forwarded), timeout=20) == b"f" * MB
    assert safe_refs.release(payload) == 1


def test_the_same_token_loaded_twice_and_released_twice(cluster: str) -> None:
    """Each load gives the value, the first release ends the lease, the second does nothing, a load after that says so at once."""
    payload = safe_refs.dumps(ray.put("twice"))
    assert [ray.get(safe_refs.loads(payload), timeout=20) for _ in range(2)] == ["twice", "twice"]
    assert [safe_refs.release(payload) for _ in range(2)] == [1, 0]
    started = time.monotonic()
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(payload)
    assert time.monotonic() - started < 2


def test_the_object_survives_everything_its_owner_did_not_die_of(cluster: str) -> None:
    """The task that pinned and the one that resolved are long over, their workers idle: the lease still gives the value."""

    @ray.remote
    def pin(refs: list[Any]) -> bytes:
        return safe_refs.dumps({"kept": refs[0]})

    @ray.remote
    def read(payload: bytes) -> int:
        return len(ray.get(safe_refs.loads(payload)["kept"], timeout=20))

    ref = ray.put(b"o" * MB)
    payload = ray.get(pin.remote([ref]), timeout=60)
    del ref
    gc.collect()
    assert ray.get([read.remote(payload) for _ in range(3)], timeout=60) == [MB] * 3
    assert safe_refs.release(payload) == 1

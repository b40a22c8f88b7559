"""Many at once: `dumps_many`, `loads_many`, threads that share calls, and many references in one payload."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import counts
from safe_refs.registry.calls import Call, Registry
from tests.support.actors import borrower
from tests.support.anchoring import anchored
from tests.support.shards import Start, figures, is_whole, kill
from tests.support.store import holds, is_empty
from tests.support.values import VALUE_BYTES, opens, reads, value
from tests.support.waiting import stays, wait_until

MANY = 700  # references; above 600 a box around them was once the quicker way


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the registry was called, by method; calls to several shards at once count once."""
    counted: Counter[str] = Counter()
    ask = Registry.ask

    def count(registry: Registry, calls: Mapping[int, Call[Any]], *args: Any, **options: Any) -> Any:
        counted.update({call.method for call in calls.values()})
        return ask(registry, calls, *args, **options)

    monkeypatch.setattr(Registry, "ask", count)
    return counted


def test_each_object_gets_its_own_payload_by_one_call(cluster: str, calls: Counter[str]) -> None:
    """What `dumps` would return for each; plain objects among them are plain pickles; a generator will do."""
    refs = [ray.put(number) for number in range(20)]
    safe_refs.init()
    calls.clear()
    payloads = safe_refs.dumps_many(({"number": n, "ref": ref} for n, ref in enumerate(refs)), label="many")
    assert calls["pin"] == 1
    assert [row.label for row in safe_refs.leases()] == ["many"] * 20
    assert len({safe_refs.inspect(payload).lease_id for payload in payloads}) == 20
    assert ray.get(pickle.loads(payloads[7])["ref"], timeout=20) == 7
    mixed = safe_refs.dumps_many([1, refs[0], lambda: 2])
    assert mixed[0] == safe_refs.dumps(1)
    calls.clear()
    loaded = safe_refs.loads_many([*payloads, mixed[0], mixed[2]])
    assert calls["resolve"] == 1
    assert [each["number"] for each in loaded[:20]] == list(range(20))
    assert ray.get([each["ref"] for each in loaded[:20]], timeout=20) == list(range(20))
    assert (loaded[20], loaded[21]()) == (1, 2)
    handles = safe_refs.loads_many([mixed[1]], resolve=False)
    assert handles[0].get() == 0
    calls.clear()
    assert safe_refs.release(payloads + mixed[1:2]) == 21
    assert calls["release"] == 1


def test_nothing_at_all_is_fine(cluster: str) -> None:
    """No objects, no payloads, no calls."""
    assert safe_refs.dumps_many([]) == []
    assert safe_refs.loads_many([]) == []
    assert safe_refs.release([]) == 0


def test_more_than_a_thousand(cluster: str) -> None:
    """They go in several calls."""
    ref = ray.put("shared")
    payloads = safe_refs.dumps_many([[number, ref] for number in range(2_300)])
    loaded = safe_refs.loads_many(payloads)
    assert [each[0] for each in loaded] == list(range(2_300))
    assert {each[1] for each in loaded} == {ref}
    del loaded
    assert safe_refs.release(payloads) == 2_300


def test_one_that_fails_leaves_none_behind(cluster: str) -> None:
    """An object that can't be pickled, or a limit that is passed half-way: nothing of all is held."""
    ref = ray.put(1)
    with pytest.raises(TypeError):
        safe_refs.dumps_many([ref, threading.Lock()])
    safe_refs.init(max_leases=5)
    try:
        with pytest.raises(safe_refs.RegistryFullError):
            safe_refs.dumps_many([ref] * 8)
        wait_until(lambda: safe_refs.leases() == [])
    finally:
        safe_refs.shutdown()


@pytest.mark.parametrize("many", [False, True])
def test_what_failed_keeps_no_references(cluster: str, many: bool) -> None:
    """Not even until the next garbage collection, in this process or in the registry."""
    safe_refs.init(max_leases=1)
    payload = safe_refs.dumps(ray.put(0))
    gc.collect()
    gc.disable()
    try:
        ref = ray.put(bytes(500_000))
        with pytest.raises(safe_refs.RegistryFullError) as caught:
            safe_refs.dumps_many([ref, ref]) if many else safe_refs.dumps(ref)
        del caught
        id_ = ref.binary()
        del ref
        wait_until(lambda: not counts.counted([id_]), 20)
    finally:
        gc.enable()
        safe_refs.release(payload)
        safe_refs.shutdown()


def test_one_that_has_ended_says_so(cluster: str) -> None:
    """`loads_many` raises what `loads` raises, and spends no use then; `take` ends them all."""
    refs = [ray.put(number) for number in range(4)]
    gone, counted, *others = safe_refs.dumps_many(refs, uses=2)
    safe_refs.release(gone)
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads_many([counted, gone, *others])
    assert ray.get(safe_refs.loads_many([counted, counted]), timeout=20) == [1, 1]
    with pytest.raises(safe_refs.LeaseUsedUpError):
        safe_refs.loads_many([counted])
    assert ray.get(safe_refs.loads_many(others, take=True), timeout=20) == [2, 3]
    with pytest.raises(safe_refs.LeaseError):
        safe_refs.loads_many(others)
    assert safe_refs.leases() == []


@pytest.mark.parametrize("topology", [(1, 1), pytest.param((3, 2), marks=pytest.mark.long)])
def test_threads_share_calls(start: Start, calls: Counter[str], topology: tuple[int, int]) -> None:
    """Sixteen threads dump, load and release at once: all is right, and there are far fewer calls than requests."""
    start(*topology)
    refs = [ray.put(number) for number in range(16)]

    def work(number: int) -> int:
        payloads = [safe_refs.dumps({"n": number, "ref": refs[number]}) for _ in range(20)]
        for payload in payloads:
            loaded = safe_refs.loads(payload)
            assert (loaded["n"], loaded["ref"]) == (number, refs[number])
        return sum(safe_refs.release(payload) for payload in payloads)

    calls.clear()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [20] * 16
    assert safe_refs.leases() == []
    assert calls["pin"] < 160
    assert calls["resolve"] < 160
    assert calls["release"] < 160


def test_threads_get_their_own_errors(cluster: str) -> None:
    """Of requests that went together, those that fail fail alone."""
    safe_refs.init(max_leases=8)
    try:
        ref = ray.put(1)

        def work(_: int) -> str:
            try:
                safe_refs.dumps(ref)
            except safe_refs.RegistryFullError:
                return "full"
            return "held"

        with ThreadPoolExecutor(16) as pool:
            found = Counter(pool.map(work, range(16)))
        assert found == {"held": 8, "full": 8}
        assert len(safe_refs.leases()) == 8
    finally:
        safe_refs.shutdown()


@pytest.mark.long
def test_with_a_replica_killed_all_goes_on(start: Start) -> None:
    """Many at once, and threads together, while one of two shards is killed."""
    name = start(2, 2)
    refs = [ray.put(number) for number in range(50)]
    before = safe_refs.dumps_many(refs)
    kill(name, 1)
    during = safe_refs.dumps_many(refs)
    assert ray.get(safe_refs.loads_many(before + during), timeout=60) == [*range(50), *range(50)]
    with ThreadPoolExecutor(8) as pool:
        after = list(pool.map(safe_refs.dumps, refs))
        assert ray.get(list(pool.map(safe_refs.loads, after)), timeout=60) == list(range(50))
    wait_until(lambda: is_whole(name), 60)
    assert [figures(name, shard).live_leases for shard in (0, 1)] == [150, 150]
    assert safe_refs.release(before + during + after) == 150


@pytest.mark.parametrize("count", [599, MANY])
def test_many_references_come_and_go(cluster: str, count: int) -> None:
    """In a payload, as handles, and by slot; they are held when nobody else has them, and go with the release."""
    payload = safe_refs.dumps([ray.put(number) for number in range(count)])
    handles = safe_refs.pin([ray.put(number) for number in range(count)])
    gc.collect()
    # Ray would free what nobody holds within that time. Only to read it would show that, and keep it alive.
    stays(lambda: (found := safe_refs.stats()) is not None and found.live_references == 2 * count, 1)
    assert ray.get(safe_refs.loads(payload), timeout=30) == list(range(count))
    assert handles[count - 1].get() == count - 1
    assert safe_refs.release([payload, handles[0]]) == 2
    assert is_empty(10)


@pytest.mark.long
def test_many_borrowed_references_outlive_the_borrower(cluster: str) -> None:
    """As few do."""
    actor = borrower()
    pid = ray.get(actor.set_up.remote({}), timeout=60)
    ray.get(actor.keep.remote([ray.put(value(number)) for number in range(MANY)]), timeout=60)
    both = ray.get(actor.__ray_call__.remote(lambda self: safe_refs.dumps(self.refs)), timeout=60)
    os.kill(pid, signal.SIGKILL)
    stays(lambda: holds(MANY * VALUE_BYTES), 3)
    assert [reads(ref) for ref in safe_refs.loads(both)] == list(range(MANY))
    safe_refs.release(both)


@pytest.mark.long
def test_many_resolved_references_outlive_the_registry(cluster: str) -> None:
    """A second after they were resolved, the registry may be killed."""
    numbers = list(range(MANY))
    payload = safe_refs.dumps([ray.put(value(number)) for number in numbers])
    actor = borrower()

    def load(self: Any, payload: bytes) -> None:
        self.refs = safe_refs.loads(payload)

    ray.get(actor.__ray_call__.remote(load, payload), timeout=60)
    wait_until(anchored, 30)
    kill("default", 0)
    stays(lambda: holds(MANY * VALUE_BYTES), 3)
    assert ray.get(actor.read.remote(), timeout=120) == numbers
    assert opens(payload) == "LeaseLostError"
    safe_refs.shutdown()

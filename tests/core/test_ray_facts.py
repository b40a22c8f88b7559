"""Each thing that we use of Ray beyond its public API does what we think, in the Ray at hand."""

from __future__ import annotations

import copyreg
import gc
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from safe_refs import slots
from safe_refs._ray import actors, classes, control, counts, exits, native, objects, serializing, store, workers
from safe_refs._ray import cluster as ray_cluster
from tests.support.actors import Owner
from tests.support.cluster import as_actor
from tests.support.processes import dies, is_stopped
from tests.support.store import at_rest
from tests.support.tasks import when_told
from tests.support.waiting import comes, wait_until


def test_a_connection_names_cluster_and_job(cluster: str) -> None:
    """28 bytes that are the same in every process of the cluster, and the job's id."""

    @ray.remote(num_cpus=0)
    def there() -> Any:
        return workers.connection()

    mine = workers.connection()
    assert len(mine.cluster) == 28
    assert mine.job == ray.get_runtime_context().get_job_id()
    assert ray.get(there.remote(), timeout=60) == mine


def test_the_head_node_is_found(cluster: str) -> None:
    """On a cluster of one node, that one."""
    assert ray_cluster.nodes() == [ray.nodes()[0]["NodeID"]]  # type: ignore[no-untyped-call] # Ray leaves this one untyped


def test_the_control_store_keeps_counts(cluster: str) -> None:
    """Each start is one more, of that name only."""
    name = f"fact-{os.getpid()}-{time.time()}"
    assert [control.count_up(name) for _ in range(3)] == [1, 2, 3]
    assert control.count_up(name + "-other") == 1
    control.kv_put(name, b"mine", overwrite=False)
    assert control.kv_get(name) == b"3"
    control.kv_delete(name)
    assert control.kv_get(name) is None


def test_owners_can_be_distinguished_and_their_death_noticed(cluster: str) -> None:
    """References of one owner have one address, of two have two; a dead owner is left out of the answer, a living one isn't."""
    owner = as_actor(Owner).remote()
    (first, second), pid = ray.get([owner.give.remote(1, 2), owner.pid.remote()], timeout=60)
    mine = ray.put(3)
    assert workers.owner_of(first) == workers.owner_of(second) != workers.owner_of(mine)
    assert objects.owner_answers(first, 5)
    assert objects.owner_answers(mine, 5)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not objects.owner_answers(first, 5))
    assert objects.owner_answers(mine, 5)


def test_usual_references_have_no_transport_and_an_owner(cluster: str) -> None:
    """Put, returned by a task, pending, or passed on. A bare id of another process's object has no owner here."""

    @ray.remote(num_cpus=0)
    def passed_on(refs: list[Any], bare: bytes) -> list[Any]:
        made = pickle.loads(bare)
        assert workers.ownerless([*refs, made]) is made
        return [*refs, ray.put(2)]

    transport, put = objects.transport_of(), ray.put(1)
    returned = passed_on.remote([put], pickle.dumps(ray.put(3)))
    refs = [put, returned, *ray.get(returned, timeout=60)]
    assert not any(transport(ref) for ref in refs)
    assert workers.ownerless(refs) is None


def test_an_owner_that_does_not_respond_is_no_answer_rather_than_a_death(cluster: str) -> None:
    """A stopped owner makes the question run into its timeout, which is an error of its own."""
    owner = as_actor(Owner).remote()
    (ref,), pid = ray.get([owner.give.remote(1), owner.pid.remote()], timeout=60)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(pid), 30)
        with pytest.raises(TimeoutError):
            objects.owner_answers(ref, 0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert objects.owner_answers(ref, 5)


def test_sizes_are_those_of_the_values(cluster: str, tmp_path: Path) -> None:
    """Bytes of what exists already; what is still being made is left out."""
    told = tmp_path / "told"
    big, small, pending = ray.put(b"x" * 500_000), ray.put(1), when_told.remote(str(told))
    sizes = objects.sizes([big, small, pending], 5)
    assert 500_000 <= sizes[big] < 501_000
    assert sizes[small] < 100
    assert pending not in sizes
    told.touch()
    ray.get(pending, timeout=20)


def test_counted_references_are_seen(cluster: str) -> None:
    """A reference counts as long as somebody in the process has it."""
    ref = ray.put(1)
    id_ = ref.hex()
    assert counts.counted([bytes.fromhex(id_)])
    del ref
    gc.collect()
    assert not counts.counted([bytes.fromhex(id_)])


def test_store_usage_is_what_is_in_the_store(cluster: str) -> None:
    """Bytes go up by what is put, and down again."""
    before = at_rest()
    ref = ray.put(b"x" * 2_000_000)
    during = store.store_usage()
    assert 2_000_000 <= during.used_bytes - before.used_bytes < 2_001_000
    assert during.objects == before.objects + 1
    del ref
    gc.collect()
    assert store.wait_for_store(before.used_bytes, 5).used_bytes == before.used_bytes


def test_copyreg_is_asked_by_pickle_and_never_by_rays_own_pickler(cluster: str) -> None:
    """The reducer for references is seen by the C pickler, and not on Ray's in-band path."""
    slots.register()
    calls = []
    ours = copyreg.dispatch_table[ray.ObjectRef]

    def spy(ref: Any) -> Any:
        calls.append(ref)
        return ours(ref)

    @ray.remote(num_cpus=0)
    def first(refs: list[Any]) -> Any:
        return ray.get(refs[0])

    ref = ray.put("in band")
    copyreg.pickle(ray.ObjectRef, spy)
    try:
        assert ray.get(first.remote([ref]), timeout=60) == "in band"
        assert calls == []
        pickle.dumps(ref)
        assert calls == [ref]
    finally:
        copyreg.pickle(ray.ObjectRef, ours)
    calls.clear()


class Keeper:
    """Keeps references; and takes a count to zero in a call of its own, as a borrower does."""

    def keep(self, refs: list[Any], seconds: float = 0.0) -> None:
        self.refs = refs
        time.sleep(seconds)  # the caller wants a call that is under way for so long

    def give(self) -> list[Any]:
        refs, self.refs = self.refs, []
        return refs

    def count(self) -> Any:
        gc.collect()
        counts = native.core_worker().get_all_reference_counts()
        return [counts.get(ref.hex().encode()) for ref in self.refs]

    def touch(self) -> list[counts.Touch]:
        return counts.touch_zero(self.refs)

    def touch_while_in_flight(self, other: Any) -> list[counts.Touch]:
        waiting = other.keep.remote(self.refs, 1.0)
        told = counts.touch_zero(self.refs)
        ray.get(waiting, timeout=30)
        return told

    def pass_on(self, other: Any) -> None:
        ray.get(other.keep.remote(self.refs), timeout=30)

    def read(self) -> int:
        value: int = ray.get(self.refs[0], timeout=10)
        return value


def test_a_touch_of_zero_tells_the_owner_and_changes_no_count(cluster: str) -> None:
    """The owner knows a borrower to which it gave the reference, and forgets it when it touches zero."""
    borrower, relay = as_actor(Keeper).remote(), as_actor(Keeper).remote()
    ray.get(borrower.keep.remote([ray.put(5)]), timeout=60)
    ray.get(borrower.pass_on.remote(relay), timeout=60)
    before = ray.get(borrower.count.remote(), timeout=60)
    assert ray.get(borrower.touch.remote(), timeout=60) == [counts.Touch.REPORTED]
    ray.get(borrower.pass_on.remote(relay), timeout=60)
    assert ray.get(borrower.touch.remote(), timeout=60) == [counts.Touch.UNKNOWN]
    assert ray.get(borrower.count.remote(), timeout=60) == before == [{"local": 1, "submitted": 0}]


@pytest.mark.long
def test_a_reference_in_flight_cannot_be_touched(cluster: str) -> None:
    """Until the call that carries it is answered."""
    borrower, other = as_actor(Keeper).remote(), as_actor(Keeper).remote()
    ray.get([borrower.keep.remote([ray.put(6)]), other.keep.remote([])], timeout=60)
    assert ray.get(borrower.touch_while_in_flight.remote(other), timeout=60) == [counts.Touch.BUSY]
    assert ray.get(borrower.read.remote(), timeout=60) == 6


@pytest.mark.long
def test_a_process_knows_its_own_address(cluster: str) -> None:
    """It contains what an owner's address does, so that objects that a process borrows can be told from its own."""
    mine = ray.put(1)
    keeper = as_actor(Keeper).remote()
    ray.get(keeper.keep.remote([ray.put(2)]), timeout=60)
    [theirs] = ray.get(keeper.give.remote(), timeout=60)
    other = as_actor(Keeper).remote()
    made = ray.get(other.__ray_call__.remote(lambda _: [ray.put(3)]), timeout=60)
    assert workers.borrowed([mine, theirs, *made]) == made
    assert not workers.is_surely_dead(workers.own_address())


def test_a_weak_handle_made_strong_by_somebody_else_holds_nothing(cluster: str) -> None:
    """Ray makes such a handle in any process, and the creator never learns who has it: only in a process that it knows it counts."""

    class Named:
        def pid(self) -> int:
            return os.getpid()

        def give_strong(self, other: Any) -> None:
            core = native.core_worker()
            me = ray.get_runtime_context().current_actor
            assert actors.is_weak(me)
            assert actors.holding(me) is None
            state, _ = core.serialize_actor_handle(me._actor_id)
            strong = core.deserialize_and_register_actor_handle(state, ray.ObjectRef.nil(), False)
            assert not actors.is_weak(strong)
            ray.get(other.keep.remote([strong]), timeout=60)

    other, named = as_actor(Keeper).remote(), as_actor(Named).remote()
    pid = ray.get(named.pid.remote(), timeout=60)
    ray.get(named.give_strong.remote(other), timeout=60)
    del named
    gc.collect()
    assert dies(pid)


def test_an_actor_is_asked_to_end_before_it_does(cluster: str, tmp_path: Path) -> None:
    """Once its last handle is dropped the control store says so, while a call of its own is still open."""
    path = tmp_path / "told"

    class Ending:
        def begin(self, other: Any) -> None:
            import threading

            begun = threading.Event()

            def watch() -> None:
                waiting = other.keep.remote([], 3.0)
                begun.set()
                comes(lambda: exits.has_called_exit() or exits.is_marked_dead())
                path.write_text("told")
                del waiting

            threading.Thread(target=watch, daemon=True).start()
            begun.wait(20)

    other, ending = as_actor(Keeper).remote(), as_actor(Ending).remote()
    ray.get(other.keep.remote([]), timeout=60)
    ray.get(ending.begin.remote(other), timeout=60)
    del ending
    gc.collect()
    wait_until(path.exists, 15)


class Looks:
    """Notes what Ray's state is while it is pickled, and while it is opened."""

    def __reduce__(self) -> Any:
        return looked, (
            [bool(vars(serializing.local).get(mark)) for mark in serializing.MARKS],
            serializing.is_innermost(),
        )


def looked(*pickled: Any) -> Any:
    lock: Any = ray._private.worker.global_worker.function_actor_manager.lock
    opened = [bool(vars(serializing.local).get(mark)) for mark in serializing.MARKS]
    with serializing.put_aside():
        aside = [any(map(vars(serializing.local).get, serializing.MARKS)), lock._is_owned()]
    return [*pickled, opened, lock._is_owned(), aside]


def test_rays_own_serialization_shows_in_its_thread(cluster: str) -> None:
    """In-band while it pickles; the object's reference, and a lock, while it opens; none of that while it is put aside."""
    slots.register()
    assert not serializing.is_innermost()
    seen: Any = ray.get(ray.put(Looks()))
    assert seen == [[True, False], True, [False, True], True, [False, False]]
    assert not any(map(vars(serializing.local).get, serializing.MARKS))


class TimeLimitError(Exception):
    """What a job runner raises."""


class Interrupted:
    """A value in whose opening a signal handler raises, as it were."""

    def __reduce__(self) -> Any:
        return interrupt, ()


def interrupt() -> None:
    """Raise it."""
    raise TimeLimitError


def test_what_a_signal_handler_raises_while_ray_opens_an_answer_is_raised(cluster: str) -> None:
    """Ray takes it for a value that can't be opened (the control); a job runner waits for its own exception."""
    ref = ray.put(Interrupted())
    with pytest.raises(ray.exceptions.RaySystemError):
        ray.get(ref, timeout=20)
    with pytest.raises(TimeLimitError):
        classes.opened(lambda timeout_s: ray.get(ref, timeout=timeout_s), 20)

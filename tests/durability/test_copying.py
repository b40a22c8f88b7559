"""How copies are made: what is copied, what is refused, who may give up, and what then stays."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from safe_refs import OwnerGoneError, RegistryUnavailableError, UnsupportedReferenceError, _settings, aio, assembly
from safe_refs._ray import environments, workers
from safe_refs._ray.native import core_worker
from safe_refs.durability.client import Copies
from safe_refs.durability.wire import WING, CopyRequest
from safe_refs.registry.records import Terms
from safe_refs.registry.requests import Plan
from tests.support.actors import Owner
from tests.support.cluster import as_actor
from tests.support.copies import copy_owner, copying, owned
from tests.support.processes import Driver
from tests.support.store import is_empty
from tests.support.tasks import when_told
from tests.support.values import MB, got
from tests.support.waiting import wait_until


@pytest.mark.usefixtures("cluster")
def test_pending_failed_and_cancelled_tasks(tmp_path: Path) -> None:
    """A pending object is copied when it is there; a failed task's error, and a cancellation, are what the copy gives."""
    gate = tmp_path / "gate"

    @ray.remote(num_cpus=0, max_retries=0)
    def fails() -> None:
        raise KeyError("the task's own")

    @ray.remote(num_cpus=0, max_retries=0)
    def times_out() -> None:
        raise ray.exceptions.GetTimeoutError("the task's own, too")

    waiting, failed = when_told.remote(str(gate), "late"), fails.remote()
    cancelled = when_told.remote(str(tmp_path / "never"))
    with pytest.raises(RegistryUnavailableError, match=r"not durable after 0\.5 s"):
        safe_refs.pin(waiting).make_durable(timeout=0.5)
    ray.cancel(cancelled)
    gate.touch()
    payload = safe_refs.dumps([waiting, failed, cancelled, times_out.remote()], durable=True)
    del waiting, failed, cancelled
    one, two, three, four = safe_refs.loads(payload)
    with pytest.raises(ray.exceptions.GetTimeoutError, match="the task's own, too"):
        got(four)
    assert got(one) == "late"
    with pytest.raises(KeyError, match="the task's own"):
        got(two)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        got(three)
    del one, two, three, four
    assert safe_refs.shutdown() == 2


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_copied_is_refused_and_nothing_stays() -> None:
    """An actor that dies with its creator, in the payload or in an object of it; not waiting for copies."""

    class Actor:
        def hello(self) -> str:
            return "hello"

    actor = as_actor(Actor).remote()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps([ray.put(1), actor], durable=True)
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.pin(actor, durable=True)
    with safe_refs.pin(actor) as handle, pytest.raises(UnsupportedReferenceError, match="detached"):
        handle.make_durable()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps(ray.put({"actor": actor}), durable=True)
    with pytest.raises(ValueError, match="wait=False"):
        safe_refs.dumps(ray.put(1), durable=True, wait=False)
    detached = as_actor(Actor).options(lifetime="detached", name="mortal", namespace="safe_refs-tests").remote()
    payload = safe_refs.dumps([detached, ray.put([detached])], durable=True)
    first, second = safe_refs.loads(payload)
    assert got(first.hello.remote()) == "hello"
    assert got(got(second)[0].hello.remote()) == "hello"
    safe_refs.release(payload)
    ray.kill(detached)


@pytest.mark.usefixtures("cluster")
def test_who_is_cancelled_waits_no_more_and_blocks_nobody(tmp_path: Path) -> None:
    """Many that wait for copies leave the loop's threads to others; a cancelled one leaves nothing held."""
    gate = str(tmp_path / "gate")

    async def main(ref: Any) -> float:
        waiting = [asyncio.ensure_future(aio.dumps([ref], durable=True)) for _ in range(50)]
        assert not (await asyncio.wait(waiting, timeout=1.0))[0]
        other = await aio.dumps([ray.put(1)])
        begun = time.monotonic()
        assert await aio.release(other) == 1
        took = time.monotonic() - begun
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return took

    ref = when_told.remote(gate, "late")
    begun = time.monotonic()
    assert asyncio.run(main(ref)) < 5
    assert time.monotonic() - begun < 30
    wait_until(lambda: not safe_refs.leases(sizes=False), 30)
    Path(gate).touch()


@pytest.mark.usefixtures("cluster")
def test_what_was_given_up_or_refused_keeps_nothing() -> None:
    """Neither the original, nor what had been copied by then, and no task that hangs; others go on meanwhile."""

    class Sleeper:
        def __reduce__(self) -> Any:
            return time.sleep, (600,)

    class Actor:
        pass

    # With a reference inside, or nobody would unpickle them.
    inside = ray.put(0)
    held: list[Any] = [ray.put(np.ones(10 * MB, dtype=np.uint8)), *(ray.put([inside, Sleeper()]) for _ in range(8))]
    handle = safe_refs.pin(held)[0]
    with pytest.raises(RegistryUnavailableError, match="not durable"):
        handle.make_durable(timeout=2)
    other = safe_refs.dumps(ray.put("goes on"), durable=True)
    assert got(safe_refs.loads(other)) == "goes on"
    assert safe_refs.release([handle, other]) == 2
    del held, inside
    actor = as_actor(Actor).remote()
    with pytest.raises(UnsupportedReferenceError):
        safe_refs.dumps([ray.put(np.ones(10 * MB, dtype=np.uint8)), ray.put([actor])], durable=True)
    del actor
    gc.collect()
    assert is_empty(30)
    mortal: Any = as_actor(Actor).options(name="mortal-actor", namespace="safe_refs-tests").remote()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps(ray.get_actor("mortal-actor", namespace="safe_refs-tests"), durable=True)
    handle = safe_refs.pin(mortal)
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        handle.make_durable()
    handle.release()
    soon = safe_refs.pin(ray.put("soon"), wait=False)
    soon.make_durable()
    assert soon.get() == "soon"
    soon.release()


def begin(ref: Any, borrowed: Sequence[Any] = ()) -> tuple[Plan, Copies]:
    """What `dumps` does first: have the copy owner begin with what is about to be pinned."""
    here = assembly.client()
    plan = Plan(os.urandom(16), [ref], Terms(), here.origin(), borrowed, durable=True)
    here.copies.before_pin("default", plan)
    return plan, here.copies


@pytest.mark.usefixtures("cluster")
def test_the_copying_begins_beside_the_pin_and_comes_to_nothing_without_it() -> None:
    """The maker sends the request to a running copy owner itself; a copy whose pin never comes, or comes late, isn't kept."""
    safe_refs.release(safe_refs.dumps(ray.put("first"), durable=True))
    ref = ray.put(np.ones(10 * MB, dtype=np.uint8))
    plan, copies = begin(ref)
    request = CopyRequest(*plan.extras[WING])
    assert request == CopyRequest(environments.surroundings(), None, [0])
    (completion,) = plan.notes[WING].completions
    assert got(completion) == b""
    assert copying() == 0
    wait_until(lambda: owned() == 0, 20)
    here, deadline = assembly.client(), _settings.deadline(30)
    copies.after_pin("default", plan, here.sender.pin("default", plan, deadline), deadline)
    assert plan.notes == {}
    (row,) = safe_refs.leases()
    assert row.durable
    assert here.sender.release("default", [plan.lease], deadline) == 1
    del plan, completion

    owner = as_actor(Owner).remote()
    (ref,) = got(owner.give.remote(1))
    plan, copies = begin(ref, [ref])
    assert plan.extras == {}, "what may have to be anchored is in no call"
    assert plan.notes[WING].completions == {}
    copies.after_pin("default", plan, None, deadline)
    assert plan.notes == {}, "the pin has failed"


@pytest.mark.usefixtures("cluster")
def test_many_are_copied_when_their_shards_have_them() -> None:
    """Their requests travel with the pins: else most would be copied before their pins arrive, in vain."""
    safe_refs.release(safe_refs.dumps(ray.put("first"), durable=True))
    here, refs = assembly.client(), [ray.put(number) for number in range(3)]
    plans = [Plan(os.urandom(16), [ref], Terms(ttl=5.0), here.origin(), durable=True) for ref in refs]
    here.copies.before_pins("default", plans)
    assert [CopyRequest(*plan.extras[WING]).sent_to for plan in plans] == [()] * 3
    assert [plan.terms.ttl for plan in plans] == [_settings.current().durable_timeout_s] * 3
    assert [plan.notes[WING].ttl for plan in plans] == [5.0] * 3
    many = safe_refs.dumps_many(refs, durable=True)
    assert [got(ref) for ref in safe_refs.loads_many(many)] == [0, 1, 2]
    assert safe_refs.release(many) == 3


@pytest.mark.usefixtures("cluster")
def test_a_reference_whose_owner_is_dead_is_reported(driver: Driver) -> None:
    """`OwnerGoneError` from `dumps`, before there is a payload; or the copy is good, if the store had the object still."""
    owner = as_actor(Owner).remote()
    (ref,) = ray.get(owner.give.remote(np.ones(MB, dtype=np.uint8)), timeout=60)
    ray.kill(owner)
    wait_until(lambda: workers.is_surely_dead(workers.owner_of(ref)), 30)
    with suppress(OwnerGoneError, safe_refs.LeaseLostError):
        saved = safe_refs.dumps(ref, durable=True)
        assert got(safe_refs.loads(saved, take=True)).sum() == MB
    wait_until(lambda: _is_lost(ref), 30)
    with pytest.raises((OwnerGoneError, safe_refs.LeaseLostError)):
        safe_refs.dumps(ref, durable=True)


def _is_lost(ref: Any) -> bool:
    try:
        got(ref)
    except ray.exceptions.ObjectLostError:
        return True
    return False


def values_kept(owner: Any) -> int:
    """How many results of tasks the process of an actor keeps in its own memory."""
    return int(ray.get(owner.__ray_call__.remote(lambda _: core_worker().get_memory_store_size()), timeout=60))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "size", [pytest.param(1_000, id="in the process"), pytest.param(200_000, id="in the store", marks=pytest.mark.long)]
)
def test_the_copy_owner_keeps_nothing_of_copies_that_nobody_has(size: int) -> None:
    """The registry drops a copy's last reference, of which Ray frees no value by itself: the copy owner does, after a hundred."""
    name = os.environ["SAFE_REFS_REGISTRY"]
    for _ in range(6):
        safe_refs.release(safe_refs.dumps_many([ray.put(bytes(size)) for _ in range(50)], durable=True))
    live = safe_refs.dumps(ray.put(bytes(size)), durable=True)
    assert values_kept(copy_owner(name)) <= 200, "it counts them before there are many"
    wait_until(lambda: owned(name) == 1, 20)
    assert values_kept(copy_owner(name)) <= 5
    assert got(safe_refs.loads(live, take=True)) == bytes(size)


@pytest.mark.usefixtures("cluster")
def test_many_references_and_shared_ones() -> None:
    """A few hundred in one payload, some of them twice over: each is copied once."""
    shared = ray.put("shared")
    refs = [ray.put([number, shared]) for number in range(200)]
    payload = safe_refs.dumps([refs, shared], durable=True)
    del refs, shared
    gc.collect()
    loaded, again = safe_refs.loads(payload)
    values = ray.get(loaded, timeout=60)
    assert [number for number, _ in values] == list(range(200))
    assert {ref for _, ref in values} == {again}
    assert got(again) == "shared"
    del loaded, again, values
    safe_refs.release(payload)

"""Handles of actors go out and come back like references: the actor lives exactly as long as a lease or a live handle of it."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseReleasedError, OwnerGoneError, SafeRef
from tests.support.actors import counter
from tests.support.processes import Driver, dies, goes_on
from tests.support.shards import Start, kill, wait_until_whole
from tests.support.values import error_of
from tests.support.waiting import wait_until


@pytest.mark.usefixtures("cluster")
def test_an_actor_lives_as_long_as_its_lease() -> None:
    """The maker drops its handle: the actor lives, with its state, until `release`, and then ends."""
    actor, pid = counter()
    assert ray.get(actor.add.remote(), timeout=60) == 1
    payload = safe_refs.dumps({"actor": actor})
    del actor
    gc.collect()
    assert goes_on(pid)
    loaded = safe_refs.loads(payload)["actor"]
    assert ray.get(loaded.add.remote(), timeout=60) == 2
    del loaded
    assert goes_on(pid)
    assert safe_refs.release(payload) == 1
    assert dies(pid)
    with pytest.raises(LeaseReleasedError):
        safe_refs.loads(payload)


@pytest.mark.usefixtures("cluster")
def test_plain_pickle_lets_an_actor_die() -> None:
    """The control: without a lease nothing keeps it."""
    import pickle

    actor, pid = counter()
    data = pickle.dumps(actor)
    del actor
    gc.collect()
    assert dies(pid)
    assert data


@pytest.mark.usefixtures("cluster")
def test_a_handle_that_was_resolved_outlives_the_release() -> None:
    """As with objects: `release` takes nothing from who has resolved before."""
    actor, pid = counter()
    payload = safe_refs.dumps(actor)
    del actor
    loaded = safe_refs.loads(payload, take=True)
    assert goes_on(pid)
    assert ray.get(loaded.add.remote(), timeout=60) == 1
    del loaded
    assert dies(pid)


@pytest.mark.long
def test_an_actor_goes_to_another_job(cluster: str, driver: Driver) -> None:
    """Another driver opens the payload, calls the actor and has it for as long as it likes."""
    assert cluster
    actor, pid = counter()
    payload = safe_refs.dumps([actor])
    del actor
    done = driver(
        """
        actor, = safe_refs.loads(bytes.fromhex(args[0]), take=True)
        print(ray.get([actor.add.remote(), actor.add.remote(), actor.pid.remote()], timeout=60))
        """,
        payload.hex(),
    )
    assert done == [1, 2, pid]
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
def test_one_actor_is_one_slot_beside_objects() -> None:
    """The same handle twice is one reference, and comes back as one object; objects beside it are untouched."""
    actor, pid = counter()
    ref = ray.put("value")
    payload = safe_refs.dumps([actor, ref, {"again": actor}])
    assert safe_refs.inspect(payload).kinds == "ao"
    first, other, again = safe_refs.loads(payload)
    assert first is again["again"]
    assert first == actor
    assert ray.get(other, timeout=20) == "value"
    safe_refs.release(payload)
    del actor, first, again, ref, other
    assert dies(pid)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_named_and_detached_actors() -> None:
    """A named actor lives by its lease, by whatever handle of its creator's; a detached one by itself, released or not."""
    named, pid = counter(name="counter-of-a-lease")
    weak = ray.get_actor("counter-of-a-lease")
    payload = safe_refs.dumps([weak, named])
    assert safe_refs.inspect(payload).kinds == "a"
    del named, weak
    gc.collect()
    assert goes_on(pid)
    for handle in safe_refs.loads(payload):
        assert ray.get(handle.pid.remote(), timeout=60) == pid
    del handle
    safe_refs.release(payload)
    assert dies(pid)

    detached, pid = counter(name="detached-counter", lifetime="detached", namespace="safe_refs-tests")
    payload = safe_refs.dumps(detached)
    del detached
    loaded = safe_refs.loads(payload)
    safe_refs.release(payload)
    assert ray.get(loaded.pid.remote(), timeout=60) == pid
    assert goes_on(pid)
    ray.kill(loaded)
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
def test_a_safe_ref_of_an_actor_resolves_to_its_handle() -> None:
    """Also by its text; `get` and `await` give the handle, as there is no value behind it."""
    actor, pid = counter()
    handle = safe_refs.pin(actor)
    del actor
    again: SafeRef[Any] = SafeRef.parse(str(handle))
    assert again == handle
    assert again.kind == "a"

    async def awaited() -> Any:
        return await again

    for found in (handle.resolve(), again.get(), asyncio.run(awaited())):
        assert ray.get(found.pid.remote(), timeout=60) == pid
    del found
    gc.collect()
    assert handle.release() == 1
    assert dies(pid)


def test_an_actor_whose_maker_ended_is_gone(cluster: str, driver: Driver) -> None:
    """An actor that isn't detached dies with the job that made it: whoever loads it later is told so, and its lease ends."""
    assert cluster
    payload = driver(
        """
        class Counter:
            def pid(self):
                return 1
        actor = ray.remote(num_cpus=0)(Counter).remote()
        ray.get(actor.pid.remote(), timeout=60)
        print(json.dumps(safe_refs.dumps(actor).hex()))
        """
    )
    wait_until(lambda: error_of(bytes.fromhex(payload)) is OwnerGoneError, 30)
    wait_until(lambda: safe_refs.leases() == [], 30)


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.long)])
def test_an_actor_whose_job_has_just_ended_is_gone_also_before_the_registry_knows(
    start: Start, driver: Driver, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    """Ray can't open such a handle any more: who loads it is told why. Who loads something else in the same call gets it.

    Also if that can be had once only; and a replica that comes back gets all else.
    """
    name = start(replicas, replicas)
    safe_refs.init(sweep_s=3600)
    payloads = driver(
        """
        class Counter:
            def pid(self):
                return 1
        actor = ray.remote(num_cpus=0)(Counter).remote()
        ray.get(actor.pid.remote(), timeout=60)
        print(json.dumps([each.hex() for each in safe_refs.dumps_many([actor] * 22)]))
        """
    )
    lone, many, *taken = (bytes.fromhex(payload) for payload in payloads)
    mine = safe_refs.dumps_many([ray.put("mine")] * 21)
    wait_until(lambda: error_of(lone) is OwnerGoneError, 30)
    live = safe_refs.stats()
    assert live is not None
    assert live.live_leases == 43, "the registry doesn't know yet"
    with pytest.raises(OwnerGoneError):
        safe_refs.loads_many([mine[0], many])
    with ThreadPoolExecutor(8) as pool:  # of which some share a call
        asked = [pool.submit(safe_refs.loads, payload) for _ in range(20) for payload in (mine[0], many)]
    assert [ray.get(each.result(), timeout=30) for each in asked[::2]] == ["mine"] * 20
    assert {type(each.exception()) for each in asked[1::2]} == {OwnerGoneError}
    if replicas > 1:
        kill(name, 1)
        wait_until_whole(name)
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(safe_refs.loads, payload, take=True)
            for pair in zip(mine[1:], taken, strict=True)
            for payload in pair
        ]
    assert [ray.get(each.result(), timeout=30) for each in asked[::2]] == ["mine"] * 20
    assert {type(each.exception()) for each in asked[1::2]} == {OwnerGoneError}
    safe_refs.release([lone, many, *mine, *taken])

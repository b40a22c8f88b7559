"""Handles of actors go out and come back like references: the actor lives exactly as long as a lease or a live handle of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseReleasedError, OwnerGoneError, SafeRef, config
from tests.conftest import Driver, as_actor
from tests.shards import Start, figures, kill, start, wait_until_whole

__all__ = ["start"]  # a fixture

DIES_S = 20.0


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


class Passer:
    """Borrows what it is given, and pins it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> int:
        self.kept = refs
        return os.getpid()

    def dumps(self) -> bytes:
        return safe_refs.dumps(self.kept)

    def leave(self) -> None:
        ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped


def counter(**options: Any) -> tuple[Any, int]:
    """A new actor, and its process."""
    actor = as_actor(Counter).options(**options).remote()
    return actor, ray.get(actor.pid.remote(), timeout=60)


def lives(pid: int) -> bool:
    """Whether a process of this machine is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = DIES_S) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def dies(pid: int) -> bool:
    return wait_until(lambda: not lives(pid))


def stays(pid: int) -> bool:
    """Whether a process is still there when Ray has had its time to end it (control: `dies` in the same tests)."""
    return not wait_until(lambda: not lives(pid), 1.5)


@pytest.mark.usefixtures("cluster")
def test_an_actor_lives_as_long_as_its_lease() -> None:
    """The maker drops its handle: the actor lives, with its state, until `release`, and then ends."""
    actor, pid = counter()
    assert ray.get(actor.add.remote(), timeout=60) == 1
    payload = safe_refs.dumps({"actor": actor})
    del actor
    gc.collect()
    assert stays(pid)
    loaded = safe_refs.loads(payload)["actor"]
    assert ray.get(loaded.add.remote(), timeout=60) == 2
    del loaded
    assert stays(pid)
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
    assert stays(pid)
    assert ray.get(loaded.add.remote(), timeout=60) == 1
    del loaded
    assert dies(pid)


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


@pytest.mark.usefixtures("cluster")
def test_named_and_detached_actors() -> None:
    """A named actor lives by its lease, as long as its maker's handle was a real one; a detached one by itself, released or not."""
    named, pid = counter(name="counter-of-a-lease")
    weak = ray.get_actor("counter-of-a-lease")
    payload = safe_refs.dumps([weak, named])
    assert safe_refs.inspect(payload).kinds == "aa"
    del named, weak
    gc.collect()
    assert stays(pid)
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
    assert stays(pid)
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
    assert wait_until(lambda: _is_gone(bytes.fromhex(payload)), 30)
    assert wait_until(lambda: safe_refs.leases() == [], 30)


def _is_gone(payload: bytes) -> bool:
    try:
        safe_refs.loads(payload)
    except OwnerGoneError:
        return True
    return False


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_actor_whose_job_has_just_ended_is_gone_also_before_the_registry_knows(
    start: Start, driver: Driver, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    """Ray can't open such a handle any more: who loads it is told why. Who loads something else in the same call gets it.

    Also if that can be had once only; and a replica that comes back gets all else.
    """
    name = start(replicas, replicas)
    monkeypatch.setattr(config._told, "limits", None)
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
    assert wait_until(lambda: _is_gone(lone), 30)
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


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("end", ["exit_actor", pytest.param("dropped", marks=pytest.mark.long)])
def test_a_borrowers_lease_of_an_actor_outlives_an_orderly_end(end: str) -> None:
    """Who pins an actor that another process created may end, as long as it ends in order."""
    actor, pid = counter()
    borrower = as_actor(Passer).remote()
    borrowers_pid = ray.get(borrower.keep.remote([actor]), timeout=60)
    payload = ray.get(borrower.dumps.remote(), timeout=60)
    del actor
    gc.collect()
    if end == "exit_actor":
        borrower.leave.remote()
    del borrower
    gc.collect()
    assert dies(borrowers_pid)
    assert stays(pid)
    (loaded,) = safe_refs.loads(payload)
    assert ray.get(loaded.pid.remote(), timeout=60) == pid
    del loaded
    safe_refs.release(payload)
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
def test_a_borrowers_lease_of_an_actor_hangs_on_it_and_is_lost_if_it_is_killed() -> None:
    """A process can not tell by itself whom it passed a handle to: the lease says so, and its loss, too."""
    actor, pid = counter()
    borrower = as_actor(Passer).remote()
    borrowers_pid = ray.get(borrower.keep.remote([actor]), timeout=60)
    payload = ray.get(borrower.dumps.remote(), timeout=60)
    (row,) = safe_refs.leases(sizes=False)
    assert row.hangs_on is not None
    assert str(borrowers_pid) in row.hangs_on
    del actor
    gc.collect()
    ray.kill(borrower)
    assert dies(pid)

    assert wait_until(lambda: _is_lost(payload), 60)


def unsettled() -> int:
    figures = safe_refs.stats()
    return 0 if figures is None else figures.unsettled


def crash_registry(shard: int = 0) -> None:
    """SIGKILL a shard's process; Ray starts it anew."""
    registry: Any = ray.get_actor("registry:default" + (f":{shard}" if shard else ""), namespace="safe_refs")
    os.kill(ray.get(registry.where.remote(), timeout=30)[1], signal.SIGKILL)


@pytest.mark.usefixtures("cluster")
def test_a_handle_that_was_resolved_outlives_the_registry() -> None:
    """The registry crashes a moment after a reader has loaded: the reader's handle is good, with nobody else having one."""
    actor, pid = counter()
    payload = safe_refs.dumps([actor])
    reader = as_actor(Reader).remote()
    assert ray.get(reader.load.remote(payload), timeout=60) == pid
    del actor
    gc.collect()
    assert wait_until(lambda: unsettled() == 0, 30)
    crash_registry()
    assert stays(pid)
    assert ray.get(reader.call.remote(), timeout=60) == pid
    ray.kill(reader)
    assert dies(pid)
    assert wait_until(lambda: safe_refs.stats() is not None, 30)


@pytest.mark.long
def test_an_actor_outlives_both_replicas_crashing_one_after_the_other(start: Start) -> None:
    """Each gets the lease back from the other, and the actor's creator learns of it."""
    name = start(2, 2)
    actor, pid = counter()
    payload = safe_refs.dumps(actor)
    del actor
    gc.collect()
    for shard in (0, 1):
        kill(name, shard)
        wait_until_whole(name)
        assert wait_until(lambda: figures(name, 0).unsettled == figures(name, 1).unsettled == 0, 60)
        assert stays(pid)
    assert ray.get(safe_refs.loads(payload).pid.remote(), timeout=60) == pid
    assert safe_refs.release(payload) == 1
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
def test_a_borrowers_lease_is_lost_with_it_also_where_the_creator_still_has_a_handle() -> None:
    """The registry doesn't take it that the actor lives for a sign that the actor's creator knows of the lease."""
    actor, _ = counter()
    borrower = as_actor(Passer).remote()
    ray.get(borrower.keep.remote([actor]), timeout=60)
    payload = ray.get(borrower.dumps.remote(), timeout=60)
    ray.kill(borrower)

    assert wait_until(lambda: _is_lost(payload), 60)
    del actor


def _is_lost(payload: bytes) -> bool:
    """Whether loading says that the lease hung on a process that is dead."""
    try:
        safe_refs.loads(payload)
    except safe_refs.LeaseLostError as error:
        return "hung on" in str(error)
    return False


class Reader:
    """Loads a payload, and keeps what is in it."""

    def load(self, payload: bytes) -> int:
        (self.handle,) = safe_refs.loads(payload)
        return self.call()

    def call(self) -> int:
        found: int = ray.get(self.handle.pid.remote(), timeout=30)
        return found

"""Owners learn who holds their objects: pins by borrowers, and references that were resolved, outlive who they came through.

Each killing has its control: the same without anchoring loses the object. That is Ray's, and a Ray that no longer does it would make
all of this needless; the control says so then.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray.workers import node_and_process
from tests.support import settings
from tests.support.actors import AsyncBorrower, Borrower, Reader, borrower
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.shards import Start, kill
from tests.support.store import holds, is_empty
from tests.support.values import VALUE_BYTES, opens, reads, value
from tests.support.waiting import comes, stays, wait_until

AFTER_S = 10.0
PROMPT_S = 5.0
WAYS = ("dropped", "exit_actor", "ray.kill", "SIGTERM", "SIGKILL")
IN_ORDER = {"dropped", "exit_actor", "SIGTERM"}


def end(actor: Any, pid: int, way: str) -> None:
    """End an actor; a dropped handle is the caller's to drop."""
    if way == "exit_actor":
        actor.end.remote()
    elif way == "ray.kill":
        ray.kill(actor)
    elif way != "dropped":
        os.kill(pid, getattr(signal, way))


def seconds_until_lost(payload: bytes) -> float:
    def lost() -> bool:
        try:
            safe_refs.loads(payload)
        except safe_refs.LeaseLostError as error:
            return "depended on" in str(error)
        return False

    began = time.monotonic()
    comes(lost, PROMPT_S)
    return time.monotonic() - began


@pytest.fixture
def unanchored(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A registry that doesn't anchor, for controls: what a process needs in its environment to use it."""
    environment = {"SAFE_REFS_REGISTRY": "unanchored", "SAFE_REFS_ANCHORING": "0"}
    with monkeypatch.context() as patch:
        for key, text in environment.items():
            patch.setenv(key, text)
        safe_refs.init()
    settings.forget()  # what the environment said then was passed on to the tasks
    yield environment
    safe_refs.shutdown("unanchored", timeout=30)


@pytest.mark.long
@pytest.mark.ray_marks(64)
@pytest.mark.parametrize("kind", ["quiet", "busy", "control"])
def test_a_borrowers_payload_outlives_it_however_it_ends(cluster: str, unanchored: dict[str, str], kind: str) -> None:
    """A process got a reference in one call, pins it in a later one, and ends; 10 s later its payload opens everywhere.

    With busy threads: where it ended in order; where it was killed it is `LeaseLostError` within 5 s. The control: never.
    """
    reader = as_actor(Reader).remote()
    actors = {way: borrower() for way in WAYS}
    environment = unanchored if kind == "control" else {}
    pids = {way: ray.get(actor.set_up.remote(environment), timeout=60) for way, actor in actors.items()}
    payloads: dict[str, bytes] = {}
    prompt: dict[str, float] = {}
    for number, (way, actor) in enumerate(actors.items()):
        ray.get(actor.keep.remote([ray.put(value(number))]), timeout=60)
        if kind == "busy":
            ray.get(actor.be_busy.remote(), timeout=60)
        payloads[way] = ray.get(actor.dumps.remote(), timeout=60)
    del actor
    if kind == "busy":
        wait_until(lambda: len([row for row in safe_refs.leases() if row.depends_on]) == len(WAYS))
    for way in WAYS:
        end(actors[way], pids[way], way)
        del actors[way]
        gc.collect()
        if kind == "busy" and way not in IN_ORDER:
            prompt[way] = seconds_until_lost(payloads[way])
    outlive = {"quiet": len(WAYS), "busy": len(IN_ORDER), "control": 0}[kind]
    stays(lambda: holds(outlive * VALUE_BYTES), AFTER_S)
    for number, (way, payload) in enumerate(payloads.items()):
        found = (opens(payload), ray.get(reader.opens.remote(payload), timeout=60))
        opened, lost = (number, number), ("LeaseLostError", "LeaseLostError")
        if kind == "control":
            assert all(isinstance(each, str) for each in found), (way, found)
        elif kind == "quiet" or way in IN_ORDER:
            assert found == opened, way
        else:
            # `ray.kill` first marks an actor as dead, and kills it a moment later, which may be enough to hand over.
            assert found == lost or (way == "ray.kill" and found == opened), way
            assert found != lost or prompt[way] < PROMPT_S, way
    safe_refs.release(payloads.values())


def test_threads_that_read_all_the_time_see_no_error(cluster: str) -> None:
    """What a process with threads pins is left alone: its threads read on, and the lease depends on it until that is over."""
    actor = borrower()
    ray.get(actor.keep.remote([ray.put(value(7))]), timeout=60)
    ray.get(actor.be_busy.remote(), timeout=60)
    payloads = [ray.get(actor.dumps.remote(), timeout=60) for _ in range(20)]
    reads, errors = ray.get(actor.seen_by_threads.remote(), timeout=60)
    assert (reads > 0, errors) == (True, [])
    pid = ray.get(actor.set_up.remote({}), timeout=60)
    assert {row.depends_on for row in safe_refs.leases()} == {f"pid {pid} on node {node_and_process()[0][:8]}"}
    actor.end.remote()
    wait_until(lambda: not any(row.depends_on for row in safe_refs.leases()), 60)
    assert opens(payloads[0]) == 7
    safe_refs.release(payloads)


@pytest.mark.parametrize("way", [pytest.param("dropped", marks=pytest.mark.long), "exit_actor"])
def test_actors_with_concurrency_hand_over_when_they_end(cluster: str, way: str) -> None:
    """A threaded actor and an asyncio actor end in order, and what they pinned lives on."""
    threaded, coroutines = borrower(max_concurrency=3), as_actor(AsyncBorrower).remote()
    payloads = []
    for number, actor in ((1, threaded), (2, coroutines)):
        ray.get(actor.keep.remote([ray.put(value(number))]), timeout=60)
    payloads = [ray.get(threaded.dumps.remote(), timeout=60), ray.get(coroutines.dumps.remote({}), timeout=60)]
    assert all(row.depends_on for row in safe_refs.leases())
    if way == "exit_actor":
        threaded.end.remote()
        coroutines.end.remote()
    del threaded, coroutines, actor
    gc.collect()
    stays(lambda: holds(2 * VALUE_BYTES), 4)
    assert [opens(payload) for payload in payloads] == [1, 2]
    safe_refs.release(payloads)


@pytest.mark.long
@pytest.mark.ray_marks(16)
def test_live_references_outlive_the_registry_that_they_came_through(cluster: str, unanchored: dict[str, str]) -> None:
    """One replica, killed once owners know who resolved: all their references still read; then they go, and the store is empty.

    Without anchoring they are dead.
    """
    numbers = list(range(20))
    kinds: dict[str, dict[str, str]] = {"default": {}, "unanchored": unanchored}
    payloads: dict[str, list[bytes]] = {}
    consumers: dict[str, list[Any]] = {}
    for name, environment in kinds.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAFE_REFS_REGISTRY", name)
            payloads[name] = [safe_refs.dumps(ray.put(value(number))) for number in numbers]
        consumers[name] = [borrower() for _ in range(3)]
        ray.get([consumer.set_up.remote(environment) for consumer in consumers[name]], timeout=60)
        ray.get([consumer.load.remote(payloads[name]) for consumer in consumers[name]], timeout=60)
    gc.collect()
    wait_until(anchored)
    for name in kinds:
        kill(name, 0)
    stays(lambda: holds(len(numbers) * VALUE_BYTES), 2)
    assert ray.get([one.read.remote() for one in consumers["default"]], timeout=120) == [numbers] * 3
    assert isinstance(ray.get(consumers["unanchored"][0].read_first.remote(), timeout=60), str)
    assert opens(payloads["default"][0]) == "LeaseLostError"
    del consumers
    gc.collect()
    assert is_empty(10)


@pytest.mark.long
def test_what_dumps_has_returned_outlives_who_is_killed_at_once(cluster: str) -> None:
    """Owners have heard when `dumps` returns, also when it was called again and again, or with many references."""

    def each_and_all(self: Borrower) -> list[bytes]:
        return [*(safe_refs.dumps(ref) for ref in self.refs), safe_refs.dumps(self.refs)]

    for _ in range(3):
        actor = borrower()
        pid = ray.get(actor.set_up.remote({}), timeout=60)
        ray.get(actor.keep.remote([ray.put(value(number)) for number in range(10)]), timeout=60)
        *each, both = ray.get(actor.__ray_call__.remote(each_and_all), timeout=60)
        os.kill(pid, signal.SIGKILL)
        stays(lambda: holds(10 * VALUE_BYTES), 2.5)
        assert [opens(payload) for payload in each] == list(range(10))
        assert [reads(ref) for ref in safe_refs.loads(both)] == list(range(10))
        safe_refs.release([*each, both])


@pytest.mark.long
def test_what_is_loaded_and_passed_on_at_once_is_anchored(start: Start) -> None:
    """A forwarder loads, dumps, and is killed, all within a moment: at that time no owner knows it.

    Among three shards, the new lease is mostly on another than the old one.
    """
    registry = start(3, 1)
    forwarders = [borrower() for _ in range(4)]
    environment = {"SAFE_REFS_REGISTRY": registry}
    pids = ray.get([forwarder.set_up.remote(environment) for forwarder in forwarders], timeout=60)
    first = [safe_refs.dumps(ray.put(value(number))) for number in range(4)]
    gc.collect()
    second = ray.get(
        [forwarder.load_and_dumps.remote(payload) for forwarder, payload in zip(forwarders, first, strict=True)],
        timeout=60,
    )
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    safe_refs.release(first)
    stays(lambda: holds(4 * VALUE_BYTES), 5)
    assert [opens(payload) for payload in second] == [0, 1, 2, 3]
    safe_refs.release(second)


def test_a_ray_without_the_calls_reports_what_depends_on_whom(cluster: str, unanchored: dict[str, str]) -> None:
    """Where anchoring is impossible, or turned off, pins by borrowers are listed as depending on them, and all else is as always."""
    actor = borrower()
    pid = ray.get(actor.set_up.remote(unanchored), timeout=60)
    ray.get(actor.keep.remote([ray.put(value(3))]), timeout=60)
    payload = ray.get(actor.dumps.remote(), timeout=60)
    rows = safe_refs.leases(registry="unanchored")
    assert [row.depends_on for row in rows] == [f"pid {pid} on node {node_and_process()[0][:8]}"]
    assert opens(payload) == 3
    assert safe_refs.release(payload) == 1


def test_what_its_owner_pins_never_depends_on_it(cluster: str) -> None:
    """No relay is asked, and no lease is unanchored, until somebody resolves."""
    payload = safe_refs.dumps([ray.put(1), ray.put(2)])
    assert [row.depends_on for row in safe_refs.leases()] == [None]
    assert anchored()
    safe_refs.release(payload)


@pytest.mark.long
def test_a_lease_of_own_and_borrowed_objects_outlives_its_maker(cluster: str) -> None:
    """Killed right after `dumps`: what it owned is gone, as Ray has it; what it borrowed is there, and the lease lives for that."""

    def both(self: Borrower) -> bytes:
        return safe_refs.dumps([ray.put(value(1)), self.refs[0]])

    actor = borrower()
    pid = ray.get(actor.set_up.remote({}), timeout=60)
    ray.get(actor.keep.remote([ray.put(value(2))]), timeout=60)
    payload = ray.get(actor.__ray_call__.remote(both), timeout=60)
    os.kill(pid, signal.SIGKILL)
    stays(lambda: holds(VALUE_BYTES), AFTER_S / 2)
    assert [reads(ref) for ref in safe_refs.loads(payload)] == ["OwnerDiedError", 2]
    wait_until(anchored, 30)
    safe_refs.release(payload)

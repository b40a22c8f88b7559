"""Calls that nobody should make: whatever other processes send our actors, these live, and so do everybody's leases."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.anchoring.delaying import SafeRefsExitDelay
from safe_refs.anchoring.relays import FOR_CLIENTS, Relays
from safe_refs.assembly import SafeRefsRegistry
from safe_refs.durability import owner
from safe_refs.registry.hooks import ShardPart
from safe_refs.registry.shard import actor_name
from tests.support import garbage
from tests.support.shards import Start
from tests.support.waiting import wait_until

IN_FLIGHT = 200
TTL_S = 1.0
LATE_S = 10.0  # on a busy machine; a clock that stands still is never on time


class Innocent:
    """Makes leases all the time, in a thread, and resolves them; those with a ttl expire."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.made = 0
        self.kept = safe_refs.dumps([ray.put("kept"), ray.put("too")])
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._ends.is_set():
                payload = safe_refs.dumps(ray.put(self.made), timeout=60)
                short = safe_refs.dumps(ray.put("short"), ttl=TTL_S, label="short", timeout=60)
                assert ray.get(safe_refs.loads(payload, timeout=60), timeout=60) == self.made
                assert safe_refs.release(payload, timeout=60) == 1
                self._expires(short)
                self.made += 1
        except BaseException as error:
            self.errors.append(error)

    def _expires(self, payload: bytes) -> None:
        deadline = time.monotonic() + TTL_S + LATE_S
        while any(row.label == "short" for row in safe_refs.leases(sizes=False, timeout=60)):
            assert time.monotonic() < deadline, "the clock stands still"
            time.sleep(0.1)
        with pytest.raises(safe_refs.LeaseExpiredError):
            safe_refs.loads(payload, timeout=60)

    def end(self) -> None:
        """Nothing has happened to its leases."""
        self._ends.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert not self.errors, self.errors
        assert self.made > 0
        assert [ray.get(ref, timeout=20) for ref in safe_refs.loads(self.kept)] == ["kept", "too"]
        assert safe_refs.release(self.kept) == 1


def outcome(call: Callable[[], Any]) -> str:
    """What came of a call: a refusal by name, or an answer."""
    try:
        call()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (TypeError, ValueError, safe_refs.SafeRefsError)):
            assert str(cause).isprintable(), str(cause)
            assert len(str(cause)) < 3000
            return "refused"
        return repr(error)[-2000:]
    except (TypeError, ValueError):
        return "refused"  # by Ray, in the caller
    return "answered"


def send(actors: dict[str, tuple[type, Any]], count: int, seed: int) -> Counter[str]:
    """Send so many calls to these actors, in turn; what came of them."""
    refs = [ray.put("of garbage"), ray.put(b"x" * 200_000)]
    calls = garbage.Calls(seed, refs)
    drawn = {name: (calls.of(class_), handle) for name, (class_, handle) in actors.items()}
    seen: Counter[str] = Counter()
    waiting: deque[Any] = deque()

    def take() -> None:
        reply = waiting.popleft()
        seen[outcome(lambda: ray.get(reply, timeout=60))] += 1

    for number in range(count):
        draws, handle = drawn[list(drawn)[number % len(drawn)]]
        name, args = next(draws)
        if number % 500 == 0:  # they end when nobody needs them, and a call that was refused needs nobody
            ray.get([actors["relay"][1].hello.remote(), actors["exit delay"][1].wait.remote(0.0)], timeout=60)
        try:
            reply = getattr(handle, name).remote(*args)
        except Exception:
            seen["refused"] += 1  # Ray can't send it
            continue
        waiting.append(reply)
        if len(waiting) > IN_FLIGHT:
            take()
    while waiting:
        take()
    return seen


def actors_of(registry: str, shards: int = 1) -> dict[str, tuple[type, Any]]:
    """All actors that a registry has or uses, each with its class."""
    handles: dict[str, tuple[type, Any]] = {}
    for number in range(shards):
        name = actor_name(registry, number)
        handles[name] = (SafeRefsRegistry, ray.get_actor(name, namespace="safe_refs"))
        handles[f"copies {number}"] = (owner.SafeRefsCopyOwner, owner.start(registry, number)._handle)
    handles["relay"] = (type_of("SafeRefsRelay"), relay())
    handles["exit delay"] = (SafeRefsExitDelay, exit_delay())
    return handles


def relay() -> Any:
    """The spare one: a garbage loan keeps nobody's reference. One that is just ending makes way for another."""
    found: list[Any] = []

    def stays() -> bool:
        found[:] = [Relays().handle(FOR_CLIENTS[1])]
        try:
            return bool(ray.get(found[0].hello.remote(), timeout=30))
        except ray.exceptions.RayActorError:
            return False

    wait_until(stays, 60)
    return found[0]


def exit_delay() -> Any:
    from safe_refs._ray import cluster

    return cluster.start_actor("exit_delay", SafeRefsExitDelay, place=0)


def type_of(name: str) -> type:
    return garbage.classes()[name]


def processes(actors: dict[str, tuple[type, Any]]) -> dict[str, int]:
    """The process of each shard."""
    return {
        name: ray.get(handle.where.remote(), timeout=60)[1]
        for name, (class_, handle) in actors.items()
        if class_ is SafeRefsRegistry
    }


def check(registry: str, count: int, seed: int, shards: int = 1) -> None:
    safe_refs.init()
    innocent = Innocent()
    actors = actors_of(registry, shards)
    before = processes(actors)
    seen = send(actors, count, seed)
    assert set(seen) <= {"refused", "answered"}, seen
    assert seen["refused"] > count / 2
    assert processes(actors) == before, "a shard has died"
    innocent.end()
    for row in safe_refs.leases():
        row.release()  # what garbage has pinned: real references, in a call that was right by chance


def test_some_thousand_garbage_calls_hurt_nobody(registry: str) -> None:
    """Calls of every method of every actor, each wrong somewhere, are refused by name; others' leases are as they should be."""
    check(registry, 1000, seed=1)


@pytest.mark.long
def test_garbage_to_the_shards_of_a_registry_with_replicas_hurts_nobody(start: Start) -> None:
    """Also where shards take one another's word: records, identities, and who is missing what."""
    check(start(2, 2), 10_000, seed=2, shards=2)


@pytest.mark.slow
def test_a_hundred_thousand_garbage_calls_hurt_nobody(registry: str) -> None:
    """The same, for long enough that most fields were wrong in most ways."""
    check(registry, 100_000, seed=3)


def test_every_actor_of_ours_is_sent_garbage() -> None:
    """What has methods for others is an actor that these tests know, or a part of a shard."""
    actors = {name for name, class_ in garbage.classes().items() if not issubclass(class_, ShardPart)}
    assert actors == {"Shard", "SafeRefsRelay", "SafeRefsExitDelay", "SafeRefsCopyOwner"}


def test_methods_of_an_actor_that_are_nobody_elses_cannot_be_called(registry: str) -> None:
    """Ray offers all functions of an actor's class to everybody: those of ours that are for the actor itself are none to it."""
    safe_refs.init()
    shard: Any = ray.get_actor(actor_name(registry), namespace="safe_refs")
    relay = Relays().handle(FOR_CLIENTS[1])
    for handle, name in ((shard, "lose"), (shard, "start"), (shard, "_pin"), (relay, "_tick"), (relay, "_keep_time")):
        with pytest.raises(AttributeError):
            getattr(handle, name)
    for name in ("Anchoring.closing", "Durability.ended", "Clock._keep_time", "Anchoring.__init__", "no method", "."):
        with pytest.raises(ValueError, match="no part of this shard has a method"):
            ray.get(shard.part.remote(name, 1.0), timeout=60)
    wait_until(lambda: safe_refs.stats() is not None)

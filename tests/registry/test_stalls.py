"""Ray's control service doesn't answer for a while: it restarts, or its machine is overloaded. Here it is stopped.

What a user may rely on: each call ends within its timeout and a little, with what was asked for or `RegistryUnavailableError`; and it
works again when the control service does. Source of the situation: Ray pull requests 27526 and 27674, issue 30086.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio
from safe_refs.registry import known
from tests.support.actors import Owner, Process
from tests.support.cluster import as_actor
from tests.support.shards import Start
from tests.support.stalls import LITTLE_S, TIMEOUT_S, Call, every_call, stalled, timed
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", str(TIMEOUT_S))


class Newcomer(Process):
    """A process that has not asked a registry yet."""

    def every_call(self, payload: bytes, doomed: bytes) -> list[Call]:
        return every_call(payload, doomed)

    def each_in_turn(self, payload: bytes) -> list[Call]:
        """What tasks and actors do most: also with references that they have borrowed."""
        return [
            timed("loads", lambda: safe_refs.loads(payload, timeout=TIMEOUT_S)),
            timed("dumps", lambda: safe_refs.dumps(ray.put(1), ttl=60)),
            timed("dumps of a borrowed reference", lambda: safe_refs.dumps(self.refs, ttl=60)),
            timed("shutdown", lambda: safe_refs.shutdown("another", timeout=TIMEOUT_S)),
        ]

    def loads(self, payload: bytes) -> Call:
        return timed("loads", lambda: safe_refs.loads(payload, timeout=TIMEOUT_S))

    def dumps(self, _: bytes, timeout: float) -> Call:
        return timed("dumps", lambda: safe_refs.release(safe_refs.dumps(ray.put(1), ttl=60, timeout=timeout)))

    def awaited(self, payload: bytes, timeout: float) -> Call:
        return timed("loads", lambda: asyncio.run(aio.loads(payload, timeout=timeout)))


class Stranger(Process):
    """An actor whose class no other process knows."""

    def ping(self) -> str:
        return "pong"


def newcomer() -> Any:
    """One that has been called once."""
    made = as_actor(Newcomer).remote()
    names = ("SAFE_REFS_REGISTRY", "SAFE_REFS_TIMEOUT")
    ray.get(made.set_up.remote({name: os.environ[name] for name in names}), timeout=60)
    return made


def held(what: object) -> bytes:
    """Put into a lease while all is well, with as much time as the registry's start may take."""
    return safe_refs.dumps(what, ttl=600, timeout=60)


def check(calls: list[Call]) -> None:
    assert [call for call in calls if not call.is_fine] == []


def works_again(payload: bytes, value: object) -> None:
    """The registry is found again, by a process that has not asked it."""
    known.drop(known.current().connection)  # type: ignore[union-attr] # it has
    wait_until(lambda: timed("loads", lambda: safe_refs.loads(payload)).said == "ok")
    assert ray.get(safe_refs.loads(payload), timeout=20) == value
    safe_refs.release(payload)


def test_whoever_has_asked_the_registry_before_needs_no_control_service(registry: str) -> None:
    """Every call, with its timeout of 2 s: nearly all have what they asked for, and none waits for longer."""
    payload, doomed = (held(ray.put("v")) for _ in range(2))
    with stalled():
        calls = every_call(payload, doomed)
    check(calls)
    said = {call.name: call.said for call in calls}
    assert {name for name, outcome in said.items() if outcome != "ok"} <= {
        "init"
    }  # which looks whether the registry has grown
    works_again(payload, "v")


@pytest.mark.long
def test_first_contact_ends_in_time(registry: str) -> None:
    """A process that asks for the first time gets the error that says why, and asks with success when the control service is back."""
    actor = newcomer()
    payload, doomed = (held(ray.put("v")) for _ in range(2))
    with stalled():
        calls = ray.get(actor.every_call.remote(payload, doomed), timeout=60)
    check(calls)
    wait_until(lambda: ray.get(actor.loads.remote(payload), timeout=60).said == "ok")
    works_again(payload, "v")


@pytest.mark.long
def test_a_registry_can_not_be_started_meanwhile(registry: str) -> None:
    """The first `dumps` of all ends in time, and nothing is held; the next one, later, starts the registry."""
    ref = ray.put("v")
    with stalled():
        check([timed("dumps", lambda: safe_refs.dumps(ref, ttl=60, wait=True))])
    payload = safe_refs.dumps(ref, ttl=60)
    assert len(safe_refs.leases()) == 1
    works_again(payload, "v")


@pytest.mark.long
def test_a_handle_of_an_unknown_class_ends_in_time(registry: str) -> None:
    """Who opens an actor's handle needs the actor's class: it is waited for as long as the caller allows, and holds up nobody."""
    owner, reader = as_actor(Owner).remote(), newcomer()
    service = as_actor(Stranger).remote()
    assert ray.get(service.ping.remote(), timeout=60) == "pong"
    plain, holds = held(ray.put("v")), held([service])
    assert ray.get(reader.loads.remote(plain), timeout=60).said == "ok"
    assert owner
    with stalled():
        check([ray.get(reader.loads.remote(holds), timeout=60)])
        again = ray.get(reader.loads.remote(plain), timeout=60)
        assert again.said == "ok"
        assert again.took_s < LITTLE_S
    wait_until(lambda: ray.get(reader.loads.remote(holds), timeout=60).said == "ok")
    safe_refs.release([plain, holds])


def test_what_one_client_asks_holds_up_no_other(registry: str) -> None:
    """A shard gets handles of actors whose classes it has never seen, and answers all others meanwhile."""
    payload = held(ray.put("v"))
    services = [as_actor(type(f"Stranger{number}", (Stranger,), {})).remote() for number in range(3)]
    assert ray.get([each.ping.remote() for each in services], timeout=60) == ["pong"] * 3
    with stalled():
        for service in services:
            check([timed("dumps", lambda service=service: safe_refs.dumps([service], ttl=600, wait=True))])  # type: ignore[misc]
            call = timed("loads", lambda: safe_refs.loads(payload))
            assert call.said == "ok"
            assert call.took_s < LITTLE_S
    works_again(payload, "v")
    safe_refs.shutdown()


@pytest.mark.long
def test_borrowers_and_those_who_shut_down_end_in_time(registry: str) -> None:
    """Also with a relay to find, and a registry to look for; on first contact and later."""
    first, later = newcomer(), newcomer()
    refs = [ray.put("v")]
    ray.get([first.keep.remote(refs), later.keep.remote(refs)], timeout=60)
    payload = safe_refs.dumps(refs[0], ttl=600)
    assert {call.said for call in ray.get(later.each_in_turn.remote(payload), timeout=60)} == {"ok"}
    with stalled():
        check(ray.get(first.each_in_turn.remote(payload), timeout=60))
        calls = ray.get(later.each_in_turn.remote(payload), timeout=60)
    check(calls)
    assert [call.said for call in calls[:3]] == ["ok"] * 3
    assert {call.said for call in ray.get(first.each_in_turn.remote(payload), timeout=60)} == {"ok"}
    works_again(payload, "v")
    safe_refs.shutdown()


@pytest.mark.long
def test_with_replicas_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a registry with two replicas of each lease, every call in the same time."""
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", "60")
    start(2, 2)
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", str(TIMEOUT_S))
    payload, doomed = (held(ray.put("v")) for _ in range(2))
    with stalled():
        calls = every_call(payload, doomed)
    check(calls)
    assert {call.name for call in calls if call.said != "ok"} <= {"init"}
    works_again(payload, "v")


@pytest.mark.long
@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.004, 0.008])
def test_it_stops_in_the_middle(registry: str, after_s: float) -> None:
    """Some milliseconds after the first contact has begun, at whichever question that is then."""
    payload = safe_refs.dumps(ray.put("v"), ttl=600)
    known.drop(known.current().connection)  # type: ignore[union-attr] # it has
    found: list[Call] = []
    thread = threading.Thread(target=lambda: found.append(timed("loads", lambda: safe_refs.loads(payload, timeout=1))))
    thread.start()
    time.sleep(after_s)  # any moment is good
    with stalled():
        thread.join(10)
    check(found)
    assert len(found) == 1
    works_again(payload, "v")


@pytest.mark.parametrize("call", ["dumps", pytest.param("awaited", marks=pytest.mark.long)])
def test_a_first_call_has_its_whole_timeout(registry: str, call: str) -> None:
    """Also to find out which settings hold: a short stall does not end it."""
    owner, reader = as_actor(Owner).remote(), newcomer()
    payload = ray.get(owner.pinned.remote("v"), timeout=60)
    with stalled(5.0):
        assert ray.get(getattr(reader, call).remote(payload, 30.0), timeout=60).said == "ok"
    works_again(payload, "v")


@pytest.mark.long
def test_a_long_stall(registry: str) -> None:
    """For 25 s, as when the control service restarts: a first load with a timeout of 3 s ends within that and a little."""
    owner, reader = as_actor(Owner).remote(), newcomer()
    payload = ray.get(owner.pinned.remote("v"), timeout=60)
    with stalled(25.0) as over:
        call = ray.get(reader.loads.remote(payload), timeout=60)
        over.wait()
    check([call])
    wait_until(lambda: ray.get(reader.loads.remote(payload), timeout=60).said == "ok", 40)
    works_again(payload, "v")

"""A borrower's notes, with sessions built by hand: they go with the leases, and with the session."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

import pytest

from safe_refs._ray import actors, counts, exits, workers
from safe_refs.anchoring import exits as ends
from safe_refs.anchoring.borrower import Borrower
from safe_refs.anchoring.dependents import MANY
from safe_refs.config import Deadline
from safe_refs.envelope import LeaseAddress
from safe_refs.registry.records import Terms
from safe_refs.registry.requests import Plan
from tests.anchoring.by_hand import IDENTITY, ORIGIN, Ref, connected

DEADLINE = Deadline(1e12, 30.0)
ADDRESS = LeaseAddress("default", b"one", b"epoch678", 1, b"lease", soon=False)


@pytest.fixture(autouse=True)
def threads_at_work(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A process that isn't alone; its hooks are not registered, but listed."""
    hooks: list[Any] = []
    monkeypatch.setattr(workers, "is_alone", lambda: False)
    monkeypatch.setattr(workers, "is_actor", lambda: False)
    monkeypatch.setattr(counts, "can_anchor", lambda: True)
    monkeypatch.setattr(exits, "call_before_exit", hooks.append)
    monkeypatch.setattr(ends, "_all", type(ends._all)())
    return hooks


def plan(lease: bytes, *ids: bytes) -> Plan:
    refs = [Ref(id_) for id_ in ids]
    return Plan(lease, refs, Terms(), ORIGIN, refs)


def pin(borrower: Borrower, lease: bytes, *ids: bytes) -> None:
    wanted = plan(lease, *ids)
    borrower.before_pin("default", wanted)
    borrower.after_pin("default", wanted, IDENTITY, DEADLINE)


def test_a_released_lease_of_a_borrowed_object_is_forgotten() -> None:
    """A server with threads that pins one object again and again, and releases each payload, keeps nothing."""
    borrower = Borrower(connected())
    for number in range(3000):
        lease = number.to_bytes(16, "big")
        pin(borrower, lease, b"object")
        borrower.released("default", [lease])
    assert len(borrower._exit.dependents) == 0


def test_leases_that_others_end_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are many, in a thread of its own: the process that pins may be running a loop."""
    callers: list[threading.Thread] = []
    over = threading.Event()

    def unanchored(registry: str, leases: Any, deadline: Deadline) -> set[bytes]:
        callers.append(threading.current_thread())
        over.set()
        return set()

    borrower = Borrower(connected())
    monkeypatch.setattr(borrower._holders, "unanchored", unanchored)
    monkeypatch.setattr(ends, "is_current", lambda session: True)
    monkeypatch.setattr(counts, "still_counted", set)
    monkeypatch.setattr(actors, "known_actors", lambda ids: set())
    for number in range(MANY):
        pin(borrower, number.to_bytes(16, "big"), b"object")
    assert over.wait(10)
    callers[0].join(10)
    assert threading.main_thread() not in callers
    assert len(borrower._exit.dependents) == 0


def test_another_cluster_begins_with_nothing() -> None:
    """Ids of objects repeat: what was got a moment ago in the cluster before says nothing of this one's objects."""
    first, second = Borrower(connected(b"one")), Borrower(connected(b"two"))
    refs: list[Any] = [Ref(b"object")]
    first.resolved(ADDRESS, refs)
    assert first._reports.lately() == {b"object"}
    assert second._reports.lately() == set()
    assert second._reports.recent(b"object").source is None


def test_a_failed_pin_leaves_no_note() -> None:
    """Nothing depends on this process."""
    borrower = Borrower(connected())
    borrower.after_pin("default", plan(b"lease", b"object"), None, DEADLINE)
    assert len(borrower._exit.dependents) == 0


def test_turned_off_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SAFE_REFS_ANCHORING=0` where `dumps` is called."""
    monkeypatch.setenv("SAFE_REFS_ANCHORING", "0")
    borrower = Borrower(connected())
    pin(borrower, b"lease", b"object")
    assert len(borrower._exit.dependents) == 0


def test_a_process_registers_its_hooks_once_and_asks_all_live_sessions(
    threads_at_work: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is closed, or dropped, isn't asked."""
    monkeypatch.setattr(exits, "ends_cluster", lambda: False)  # whatever the tests' own process is
    monkeypatch.setattr(ends, "is_current", lambda session: session.connection.cluster == b"two")
    monkeypatch.setattr(counts, "still_counted", lambda ids: set())
    monkeypatch.setattr(actors, "known_actors", lambda ids: set())
    left, live, closed = Borrower(connected(b"one")), Borrower(connected(b"two")), Borrower(connected(b"two"))
    assert threads_at_work == [], "nothing depends on this process"
    for borrower in (left, live, closed):
        for lease in (b"one", b"two"):
            pin(borrower, lease, b"object")
    closed.close()
    for hook in dict.fromkeys(threads_at_work):
        hook()
    assert [len(each._exit.dependents) for each in (left, live, closed)] == [2, 0, 0]


def test_a_thread_that_ends_the_process_waits_for_another_that_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of an actor is in the middle of it when the actor itself comes to its end: there is nothing left to take, yet."""
    monkeypatch.setattr(exits, "ends_cluster", lambda: False)  # whatever the tests' own process is
    monkeypatch.setattr(workers, "connection", lambda: connected(b"two").connection)
    monkeypatch.setattr(counts, "still_counted", lambda ids: set(ids))
    monkeypatch.setattr(counts, "references", lambda ids: [Ref(id_) for id_ in ids])
    monkeypatch.setattr(actors, "known_actors", lambda ids: set())
    borrower = Borrower(connected(b"two"))
    pin(borrower, b"lease", b"object")
    is_in_it, go_on = threading.Event(), threading.Event()

    def anchor(refs: list[Any], leases: Any) -> None:
        is_in_it.set()
        go_on.wait(20)

    monkeypatch.setattr(borrower._exit, "_anchor", anchor)
    one, other = (threading.Thread(target=borrower._exit.before_exit, daemon=True) for _ in range(2))
    one.start()
    assert is_in_it.wait(5)
    other.start()
    other.join(0.3)
    assert other.is_alive()
    go_on.set()
    other.join(5)
    assert not other.is_alive()


def test_a_watch_anchors_before_it_waits_for_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor's end is delayed for a while only, and to wait for pins may take longer. What these add is anchored after it."""
    monkeypatch.setattr(exits, "ends_cluster", lambda: False)  # whatever the tests' own process is
    monkeypatch.setattr(workers, "connection", lambda: connected(b"two").connection)
    monkeypatch.setattr(counts, "still_counted", lambda ids: set(ids))
    monkeypatch.setattr(counts, "references", lambda ids: [Ref(id_) for id_ in ids])
    monkeypatch.setattr(actors, "known_actors", lambda ids: set())
    borrower, done = Borrower(connected(b"two")), list[Any]()
    pin(borrower, b"lease", b"object")

    def flush() -> None:
        done.append("flush")
        pin(borrower, b"late", b"another")

    class Watch:
        def tick(self, now: float) -> bool:
            return True

        def delay(self, seconds: float) -> None:
            done.append("delay")

        def end(self) -> None:
            done.append("end")

    monkeypatch.setattr(borrower._exit, "_anchor", lambda refs, leases: done.append({lease for _, lease in leases}))
    monkeypatch.setattr(exits, "_hooks", [flush, ends._before_exit])
    borrower._exit._watch(cast(Any, Watch()))
    assert done == ["delay", {b"lease"}, "flush", {b"late"}, "end"]


def test_a_forked_child_knows_no_session() -> None:
    """It anchors nothing of its parent's when it ends."""
    borrower = Borrower(connected())
    pin(borrower, b"lease", b"object")
    child = os.fork()
    if child == 0:
        ends._before_exit()
        os._exit(int(len(ends._all) > 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

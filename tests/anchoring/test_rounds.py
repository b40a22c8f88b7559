"""Rounds, turns and returns of a shard, with relays that answer, or do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from safe_refs._ray import objects
from safe_refs._ray.counts import Touch
from safe_refs.anchoring import relays, returning, touching
from safe_refs.anchoring.returning import Returner
from tests.anchoring.by_hand import OWNER, ByHand, Relays, within
from tests.support.waiting import wait_until

LEASE = b"lease" + bytes(11)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> ByHand:
    return ByHand(monkeypatch)


def run(by_hand: ByHand, condition: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the part's threads until a condition holds; turns are taken by the very thread that asks for one."""
    monkeypatch.setattr(by_hand.part._rounds, "_call", lambda method: (-1, getattr(by_hand.part, method)()))
    monkeypatch.setattr(objects, "get", lambda reply, timeout: reply[1])
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in by_hand.part.threads()]
    for thread in threads:
        thread.start()
    try:
        wait_until(condition)
    finally:
        by_hand.part.closing(5)
        for thread in threads:
            thread.join(10)
    assert not any(thread.is_alive() for thread in threads), "threads end when the shard closes"


def unanchored(by_hand: ByHand) -> float:
    return by_hand.part.figures()["unanchored"]


def test_a_round_anchors_what_is_due(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was handed out counts as reported."""
    by_hand.pin(LEASE, b"a", b"b", borrower=b"borrower")
    by_hand.resolve(LEASE)
    run(by_hand, lambda: unanchored(by_hand) == 0, monkeypatch)
    assert set(by_hand.touches.touched) == {b"a", b"b"}
    assert (by_hand.handed_out, by_hand.part.depends_on(LEASE)) == (0, b"")
    assert by_hand.resolve(LEASE) == 2


def test_an_owner_that_has_not_confirmed_a_loan_is_doubted(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been stopped meanwhile, and this shard has not asked it."""
    by_hand.pin(LEASE, b"a")
    by_hand.resolve(LEASE)
    by_hand.relays.unconfirmed_ids = {b"a"}
    run(by_hand, lambda: bool(by_hand.answering.doubted), monkeypatch)
    assert by_hand.answering.doubted == {OWNER}
    by_hand.relays.unconfirmed_ids = set()


def test_a_lease_is_lost_with_its_borrower(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owners don't know this shard, and the borrower is dead: the lease is lost, and nothing is kept of it."""
    monkeypatch.setattr("safe_refs.anchoring.unanchored.GRACE_S", 0.1)
    monkeypatch.setattr("safe_refs._ray.objects.owner_answers", lambda ref, timeout: True)
    by_hand.touches.of[b"a"] = Touch.UNKNOWN
    by_hand.pin(LEASE, b"a", borrower=b"borrower")
    by_hand.dead.add(b"borrower")
    run(by_hand, lambda: unanchored(by_hand) == 0, monkeypatch)
    assert str(by_hand.resolve(LEASE)).count("it depended on pid 1 on node node, which is dead") == 1
    assert by_hand.shard.stats().lost == 1


def test_a_round_that_fails_leaves_its_leases_due(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle (Ray was busy) doesn't leave a lease unanchored for good."""
    failures = [RuntimeError("the control store does not answer")] * 2

    def gone(*_: Any) -> set[bytes]:
        if failures:
            raise failures.pop()
        return set()

    monkeypatch.setattr(by_hand.part._rounds._outcomes, "_gone", gone)
    by_hand.pin(LEASE, b"a", borrower=b"borrower")
    run(by_hand, lambda: unanchored(by_hand) == 0, monkeypatch)
    assert failures == []


@pytest.mark.parametrize("silent", [{0}, {1}, {0, 1}])
def test_a_dead_relay_does_not_hold_up_calls(by_hand: ByHand, silent: set[int]) -> None:
    """It dies between two turns: the next turn waits a few hundredths of a second for it, and those after that not at all."""
    by_hand.pin(LEASE, b"a")
    by_hand.resolve(LEASE)
    by_hand.relays.silent = silent
    with within(0.2):
        by_hand.pin(b"b" * 16, b"a", borrower=b"borrower")
    by_hand.resolve(LEASE)
    with within(0.03):
        by_hand.pin(b"c" * 16, b"a", borrower=b"borrower")
    assert by_hand.touches.touched == [], "no count goes to zero unless both relays hold the references"
    assert by_hand.handed_out == 1


@pytest.mark.long
def test_the_spare_takes_over_without_a_turn(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds' own thread finds that a relay doesn't respond, before it asks for its turn."""
    monkeypatch.setattr(touching, "_ANSWERS_S", 0.1)
    turns: list[float] = []
    touch = by_hand.part._rounds.touch_batch

    def timed() -> Any:
        begun = time.monotonic()
        try:
            return touch()
        finally:
            turns.append(time.monotonic() - begun)

    monkeypatch.setattr(by_hand.part._rounds, "touch_batch", timed)
    by_hand.relays.silent = {0}
    by_hand.pin(LEASE, b"a", borrower=b"borrower")
    run(by_hand, lambda: unanchored(by_hand) == 0, monkeypatch)
    assert by_hand.part._rounds._touching.pair == (1, 3)
    assert len(turns) == 1
    assert turns[0] < 0.2


def test_a_slow_relay_gets_more_time_but_not_much(by_hand: ByHand) -> None:
    """It answers when it is asked whether it is there, and is late in each turn: a quarter of a second is the most."""
    touch = by_hand.part._rounds._touching
    answer = by_hand.relays.answer
    waits: list[float] = []

    def slow(number: int, reply: Any, timeout_s: float) -> Any:
        if isinstance(reply[1], tuple):  # of a hold
            waits.append(timeout_s)
            return None
        return answer(number, reply, timeout_s)

    by_hand.relays.answer = slow  # type: ignore[method-assign] # it is a fake, and this is another
    for _ in range(6):
        assert touch.find_pair()
        touch.touch(b"key", [], touch.pair)
        assert touch.is_doubtful
    assert waits[0] <= touching._TURN_S
    assert touching._LONGEST_TURN_S / 2 < max(waits) <= touching._LONGEST_TURN_S


def test_an_owner_that_does_not_ask_holds_up_its_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come back as unconfirmed, within half a second or so."""
    fakes = Relays()
    fakes.unconfirmed_ids = {b"slow"}
    returner = Returner(fakes)  # type: ignore[arg-type] # it stands for relays
    thread = threading.Thread(target=returner.run, daemon=True)
    thread.start()
    back = returner.begin(b"key", (0, 1), [b"slow", b"quick"])
    assert not returner.wait_until_back([b"slow"], 0.01)
    assert back.over.wait(2)
    assert set(back.unconfirmed) == {b"slow"}
    assert returner.wait_until_back([b"slow", b"quick"], 0.01)
    returner.close()
    thread.join(5)
    assert not thread.is_alive()
    assert returner.begin(b"late", (0, 1), [b"x"]).over.is_set(), "nobody waits for a thread that has ended"


def test_a_relay_drops_what_nobody_asks_for_also_while_it_waits_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call to end may wait behind others for long: the relay looks for the answer at each tick, and never waits for it."""
    monkeypatch.setattr(relays, "_TICK_S", 3600.0)
    monkeypatch.setattr(relays, "STAYS_S", -1.0)
    relay = relays.SafeRefsRelay(forgets_s=-1.0, compares_s=0.0)
    waited: list[float] = []

    def wait(replies: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        waited.append(timeout)
        return [], replies

    monkeypatch.setattr("ray.wait", wait)
    relay._ending = "the reply of its call to end"
    relay._held[b"key"] = (time.monotonic(), [])
    assert not relay._tick()
    assert relay._held == {}
    assert relay._ending is not None, "another call to end would keep the first from ending it"
    assert sum(waited) < 0.1


def test_returning_waits_no_longer_than_it_says() -> None:
    """The bound of a round's wait for its loan is beyond all that the returning thread may take for it."""
    assert 2 * returning._ANSWER_S + returning._CONFIRMED_S + 2 * returning._ANSWER_S < 10

"""What a shard keeps of references that it has passed on, with a shard built by hand: it goes with the leases."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from safe_refs._ray.counts import Touch
from safe_refs.anchoring import parting
from safe_refs.anchoring.rounds import part_size
from safe_refs.anchoring.unanchored import GATHERS_S
from safe_refs.registry.hooks import Began
from safe_refs.registry.wire import NotNow, ResolveCall, ResolveRow
from tests.anchoring.by_hand import IDENTITY, ORIGIN, OWNER, ByHand, Ref, within


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> ByHand:
    return ByHand(monkeypatch)


def figures(by_hand: ByHand) -> tuple[float, float]:
    """How many leases are unanchored; whether the shard is recovering."""
    found = by_hand.part.figures()
    return found["unanchored"], found["recovering"]


def ident(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.mark.parametrize("take", [True, False])
def test_payloads_that_are_loaded_and_ended_leave_nothing(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch, take: bool
) -> None:
    """Taken, or released right after: neither ids of objects nor leases stay, nor the objects, when their owner has answered."""
    monkeypatch.setattr(parting, "_STAYS_S", 0.0)
    by_hand.pin(b"stays" + bytes(11), b"held")
    for number in range(3000):
        by_hand.pin(ident(number), ident(number))
        assert by_hand.resolve(ident(number), take=take) == 1
        by_hand.release(ident(number))
        assert len(by_hand.part._parting) == 1
        by_hand.part._parting.let_go()
        assert len(by_hand.part._parting) == 0
        assert by_hand.handed_out <= 2 * 2 + 65
    assert figures(by_hand) == (0, 0)
    by_hand.release(b"stays" + bytes(11))
    assert by_hand.handed_out == 0


def test_what_was_handed_out_stays_until_its_owner_has_answered(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And readers of it are reported before another borrower's pin of the same object is answered. What nobody got goes at once."""
    monkeypatch.setattr(parting, "_STAYS_S", 0.0)
    monkeypatch.setattr(parting, "_AGAIN_S", 0.02)
    by_hand.pin(b"a" * 16, b"object")
    by_hand.pin(b"b" * 16, b"other")
    by_hand.resolve(b"a" * 16)
    by_hand.release(b"a" * 16, b"b" * 16)
    by_hand.answering.names = {OWNER}
    by_hand.part._parting.let_go()
    assert len(by_hand.part._parting) == by_hand.handed_out == 1
    by_hand.pin(b"c" * 16, b"object", borrower=b"borrower")
    assert by_hand.touches.touched == [b"object"]
    by_hand.answering.names = set()
    time.sleep(0.03)
    by_hand.part._parting.let_go()
    assert len(by_hand.part._parting) == 0


def test_nothing_is_reported_to_a_silent_owner(by_hand: ByHand) -> None:
    """The lease is tried again; others don't wait for it. When the owner answers, it is anchored."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.resolve(b"a" * 16)
    leases = {b"a" * 16: 1}
    by_hand.answering.names = {OWNER}
    assert by_hand.part._rounds._of_answering([cast(Any, Ref(b"object"))], leases) == ([], set())
    assert (by_hand.part._unanchored.waiting, figures(by_hand)[0]) == (0, 1)
    by_hand.answering.names = set()
    refs, owners = by_hand.part._rounds._of_answering([cast(Any, Ref(b"object"))], leases)
    assert (len(refs), owners) == (1, {OWNER})


def test_the_last_use_leaves_no_entry(by_hand: ByHand) -> None:
    """The lease is gone by the time the shard says that it was resolved."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.resolve(b"a" * 16, take=True)
    assert len(by_hand.part._unanchored) == 0


def test_a_borrowers_pin_has_owners_know_readers_first(by_hand: ByHand) -> None:
    """Also readers that took another lease of the same object, which is gone."""
    by_hand.pin(b"a" * 16, b"object", b"other")
    by_hand.pin(b"b" * 16, b"object")
    by_hand.resolve(b"a" * 16, take=True)
    by_hand.pin(b"c" * 16, b"object", borrower=b"borrower")
    assert by_hand.touches.touched == [b"object"]
    by_hand.pin(b"d" * 16, b"object", borrower=b"borrower")
    assert by_hand.touches.touched == [b"object"], "the owner knows them by now"


def test_an_owners_pin_needs_no_report(by_hand: ByHand) -> None:
    """The answer to it goes to the owner itself."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.resolve(b"a" * 16)
    by_hand.pin(b"b" * 16, b"object")
    assert by_hand.touches.touched == []


def test_an_entry_goes_with_its_lease(by_hand: ByHand) -> None:
    """Released, or replaced by copies, which their owner has brought itself."""
    by_hand.pin(b"a" * 16, b"object", borrower=b"borrower")
    by_hand.pin(b"b" * 16, b"object", borrower=b"borrower")
    assert by_hand.part.depends_on(b"a" * 16) == b"borrower"
    assert figures(by_hand) == (2, 0)
    by_hand.release(b"a" * 16)
    by_hand.shard.parts.replaced(b"b" * 16, ())
    assert figures(by_hand) == (0, 0)


def test_a_lease_from_another_shard_counts_as_recovering(by_hand: ByHand) -> None:
    """Until this shard's own round has found that the owners know it."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.shard.parts.pinned(b"a" * 16, Began(b"shard", from_shard=True))
    assert figures(by_hand) == (1, 1)


def test_a_lease_of_a_dead_borrower_is_doubtful(by_hand: ByHand) -> None:
    """Until the verdict: it may be lost, or the borrower may have reported in time."""
    by_hand.pin(b"a" * 16, b"object", borrower=b"borrower")
    assert by_hand.resolve(b"a" * 16) == 1
    by_hand.dead.add(b"borrower")
    assert by_hand.resolve(b"a" * 16) is NotNow.DOUBTFUL


def test_without_anchoring_leases_are_listed_and_nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes what is due, and nobody has to: no thread runs."""
    by_hand = ByHand(monkeypatch, anchors=False)
    for number in range(3000):
        by_hand.pin(ident(number), ident(number), borrower=b"borrower")
        by_hand.resolve(ident(number))
        assert by_hand.part.depends_on(ident(number)) == b"borrower"
        by_hand.release(ident(number))
    assert len(by_hand.part._unanchored._queue) <= 64
    assert (by_hand.handed_out, by_hand.part.threads(), by_hand.touches.touched) == (0, (), [])
    assert figures(by_hand) == (0, 0)


def test_what_is_asked_for_soon_is_due_at_once(by_hand: ByHand) -> None:
    """And what is not unanchored isn't asked for."""
    by_hand.pin(b"a" * 16, b"object", borrower=b"borrower")
    by_hand.pin(b"b" * 16, b"object")
    assert 0 < (by_hand.part._unanchored.next_in_s() or 0) <= GATHERS_S
    assert by_hand.part.anchor_now([b"a" * 16, b"b" * 16, b"c" * 16]) == [b"a" * 16]
    assert by_hand.part._unanchored.next_in_s() == 0


def test_a_pin_of_what_a_round_lends_has_it_touched_first(by_hand: ByHand) -> None:
    """The answer to the pin would carry who holds the object, the relays too, to who pins it. So the round's turn comes before it."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.pin(b"b" * 16, b"other")
    batch = by_hand.lend(b"object")
    by_hand.pin(b"c" * 16, b"other")
    assert by_hand.touches.touched == [], "that is another object"
    by_hand.pin(b"d" * 16, b"object")
    assert by_hand.touches.touched == [b"object"]
    by_hand.part.touch()
    assert by_hand.touches.touched == [b"object"], "once is enough"
    assert batch.touched == [Touch.REPORTED]


def test_what_was_not_lent_in_time_is_not_touched_later(by_hand: ByHand) -> None:
    """A relay may come to hold it after the pin's answer has gone: then the owner would not learn of the relay."""
    by_hand.pin(b"a" * 16, b"object")
    batch = by_hand.lend(b"object", is_over=False)
    with within(1):
        by_hand.pin(b"b" * 16, b"object")
    batch.is_lent = True
    batch.is_over.set()
    by_hand.part.touch()
    assert by_hand.touches.touched == []
    assert batch.touched == [Touch.BUSY]


def test_what_relays_may_have_dropped_is_not_touched(by_hand: ByHand) -> None:
    """The shard was stopped for long between the loan and its turn: with nobody else holding the object, the zero would end it."""
    by_hand.pin(b"a" * 16, b"object")
    batch = by_hand.lend(b"object")
    batch.begun_at -= 6
    by_hand.part.touch()
    assert (by_hand.touches.touched, batch.touched) == ([], [Touch.BUSY])


def test_a_round_is_touched_once_whoever_calls(by_hand: ByHand) -> None:
    """Any process can call `watch` and `touch`. Behind the round's own turn, the relays are giving back already."""
    by_hand.pin(b"a" * 16, b"object")
    by_hand.lend(b"object")
    by_hand.part.touch()
    by_hand.part.watch()
    by_hand.part.touch()
    assert by_hand.touches.touched == [b"object"]


def test_a_shard_that_is_far_behind_hands_out_nothing(by_hand: ByHand) -> None:
    """Who resolves is asked to come again a little later, whether for one lease or for many; `release` is not."""
    by_hand.pin(b"a" * 16, *map(ident, range(2_000)))
    by_hand.pin(b"b" * 16, b"object")
    assert by_hand.resolve(b"a" * 16) == 2_000
    row = ResolveRow(b"b" * 16, IDENTITY, None, False, ORIGIN, b"use")
    assert by_hand.shard.resolve(ResolveCall(0, [row])) is NotNow.BEHIND
    answers, _ = _answer(by_hand, ResolveCall(0, [row], False, True))
    assert answers == [1], "it has waited for long"
    by_hand.release(b"a" * 16)
    assert by_hand.resolve(b"b" * 16) == 1


def test_an_answer_about_several_leases_has_a_thousand_references_at_most(by_hand: ByHand) -> None:
    """The others are asked for again; a large one is answered if it comes first, and one reference of it counts as one."""
    sizes = [600, 500, 400, 100]
    for number, size in enumerate(sizes):
        by_hand.pin(ident(number), *(ident(1000 * (number + 1) + each) for each in range(size)))
    rows = [ResolveRow(ident(number), IDENTITY, None, False, ORIGIN, b"use") for number in range(len(sizes))]
    answers, refs = _answer(by_hand, ResolveCall(0, rows, True))
    assert (answers, len(refs)) == ([600, NotNow.IN_TURN, 400, NotNow.IN_TURN], 1000)
    by_hand.release(*map(ident, range(len(sizes))))
    by_hand.pin(b"l" * 16, *map(ident, range(20_000, 22_000)))
    one = ResolveRow(b"l" * 16, IDENTITY, 3, False, ORIGIN, b"use")
    answers, refs = _answer(by_hand, ResolveCall(0, [one, one, one._replace(slot=None)], True))
    assert (answers, len(refs)) == ([1, 1, NotNow.IN_TURN], 2)


def _answer(by_hand: ByHand, call: ResolveCall) -> tuple[list[Any], list[Any]]:
    answer = by_hand.shard.resolve(call)
    assert isinstance(answer, tuple)
    return answer


@pytest.mark.parametrize("references", [1, 256, 257, 300, 1000, 10_000])
def test_the_turns_of_a_round_are_nearly_equal(references: int) -> None:
    """A small rest would look like the end of all that there was to do, and the pace would not be measured."""
    size = part_size(references)
    assert size <= 256
    assert references <= 256 or (references % size or size) >= 128


@pytest.mark.parametrize("borrower", [b"", b"borrower"])
def test_a_shard_is_unsure_of_what_it_has_just_let_go_of(by_hand: ByHand, borrower: bytes) -> None:
    """Also a second time; not while another lease holds it, nor where it never was."""
    assert not by_hand.pin(b"a" * 16, b"object", borrower=borrower)
    assert not by_hand.pin(b"b" * 16, b"object", b"other", borrower=borrower)
    by_hand.release(b"a" * 16)
    assert not by_hand.pin(b"c" * 16, b"object", borrower=borrower)
    by_hand.release(b"b" * 16, b"c" * 16)
    assert by_hand.pin(b"d" * 16, b"object", borrower=borrower)
    assert by_hand.pin(b"e" * 16, b"new", b"other", borrower=borrower)
    assert by_hand.pin(b"f" * 16, b"object", borrower=borrower), (
        "the owner may take the shard for one that has nothing, still"
    )
    assert not by_hand.pin(b"g" * 16, b"new", borrower=borrower)


def test_a_shard_is_unsure_of_what_copies_have_replaced(by_hand: ByHand) -> None:
    by_hand.pin(b"a" * 16, b"object")
    held = by_hand.shard.table.live[b"a" * 16]
    former = held.items
    by_hand.shard.table.replace(b"a" * 16, [cast(Any, Ref(b"copy"))], held.owners, held.terms)
    by_hand.shard.parts.replaced(b"a" * 16, former)
    assert by_hand.pin(b"b" * 16, b"object")
    assert not by_hand.pin(b"c" * 16, b"copy")

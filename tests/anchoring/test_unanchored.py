"""Which leases are unanchored, and when they are due: with a clock of its own, and no Ray."""

from __future__ import annotations

import random

import pytest

from safe_refs._ray.counts import Touch
from safe_refs.anchoring.unanchored import GRACE_S, LONGEST_PAUSE_S, SILENT_S, Unanchored


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def unanchored(clock: list[float]) -> Unanchored:
    return Unanchored(lambda: clock[0])


def test_a_lease_is_due_after_a_moment_and_once(unanchored: Unanchored, clock: list[float]) -> None:
    """Many marks in a moment are one round."""
    for _ in range(3):
        unanchored.note(b"a")
    assert (list(unanchored.take()), b"a" in unanchored) == ([], True)
    clock[0] += unanchored.next_in_s() or 0
    assert [lease for lease, _ in unanchored.take()] == [b"a"]
    assert list(unanchored.take()) == []


def test_a_lease_whose_owners_know_the_shard_is_anchored(unanchored: Unanchored) -> None:
    """It no longer depends on the process that pinned it."""
    unanchored.note(b"a", b"maker", soon=True)
    [(lease, marks)] = unanchored.take()
    assert unanchored.depends_on(b"a") == b"maker"
    assert not unanchored.outcome(lease, marks, Touch.REPORTED)
    assert (len(unanchored), unanchored.depends_on(b"a")) == (0, b"")


def test_a_lease_resolved_during_a_round_has_another(unanchored: Unanchored, clock: list[float]) -> None:
    """Its owners may not know who resolved it meanwhile."""
    unanchored.note(b"a", soon=True)
    [(lease, marks)] = unanchored.take()
    unanchored.note(b"a")
    unanchored.outcome(lease, marks, Touch.REPORTED)
    clock[0] += 1
    assert [each for each, _ in unanchored.take()] == [b"a"]


def test_asking_for_a_lease_again_and_again_does_not_keep_it_from_being_anchored(
    unanchored: Unanchored, clock: list[float]
) -> None:
    """A process that ends asks every 10 ms, also while a round has the lease: it waits for that round, and for no other."""
    unanchored.note(b"a", b"maker")
    assert unanchored.hasten(b"a")
    [(lease, marks)] = unanchored.take()
    for _ in range(3):
        assert unanchored.hasten(b"a")
        clock[0] += 0.01
    unanchored.outcome(lease, marks, Touch.UNKNOWN)
    assert (unanchored.next_in_s() or 0) > 0.1
    assert unanchored.hasten(b"a"), "what the owner doesn't know yet is tried again at once"
    [(lease, marks)] = unanchored.take()
    assert unanchored.hasten(b"a")
    unanchored.outcome(lease, marks, Touch.REPORTED)
    assert not unanchored.hasten(b"a")


def test_an_unknown_one_is_tried_ever_more_seldom(unanchored: Unanchored, clock: list[float]) -> None:
    """Up to half a minute."""
    unanchored.note(b"a", b"maker", soon=True)
    pauses = []
    for _ in range(12):
        [(lease, marks)] = unanchored.take()
        assert not unanchored.outcome(lease, marks, Touch.UNKNOWN)
        pauses.append(unanchored.next_in_s() or 0)
        clock[0] += pauses[-1] + 0.001
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S)


def test_a_lease_is_lost_with_its_process_after_a_grace(unanchored: Unanchored, clock: list[float]) -> None:
    """What the process had reported may still be on its way."""
    unanchored.note(b"a", b"maker", soon=True)
    list(unanchored.take())
    unanchored.outcome(b"a", 1, Touch.UNKNOWN)
    assert unanchored.depended_on() == {b"maker"}
    unanchored.process_died(b"maker")
    assert unanchored.depended_on() == set()
    lost: list[float] = []
    began = clock[0]
    while not lost and clock[0] < began + 10:
        for lease, marks in unanchored.take():
            if unanchored.outcome(lease, marks, Touch.UNKNOWN):
                lost.append(clock[0] - began)
        clock[0] += 0.05
    assert GRACE_S < lost[0] < GRACE_S + 1
    assert len(unanchored) == 0


def test_an_owner_that_does_not_respond_puts_the_verdict_off(unanchored: Unanchored, clock: list[float]) -> None:
    """It may find what the dead process reported when it goes on."""
    unanchored.note(b"a", b"maker", soon=True)
    unanchored.process_died(b"maker")
    assert not unanchored.is_verdict_due(b"a")
    clock[0] += GRACE_S + 0.1
    assert unanchored.is_verdict_due(b"a")
    unanchored.put_off_verdict(b"a")
    assert not unanchored.is_verdict_due(b"a")
    assert not unanchored.outcome(b"a", 1, Touch.UNKNOWN)
    clock[0] += GRACE_S + 0.1
    assert unanchored.outcome(b"a", 1, Touch.UNKNOWN)


def test_an_owner_that_knew_the_shard_is_not_taken_for_one_that_never_did(
    unanchored: Unanchored, clock: list[float]
) -> None:
    """It has known the shard before, and is slow to learn that the shard has the reference back: nothing depends on the maker."""
    unanchored.note(b"a", b"maker", from_shard=True, soon=True)
    unanchored.process_died(b"maker")
    clock[0] += GRACE_S + 0.1
    assert not unanchored.outcome(b"a", 1, Touch.REPORTED, confirmed=False)
    assert unanchored.depends_on(b"a") == b""
    assert unanchored.from_shards() == 1
    clock[0] += 1
    assert [lease for lease, _ in unanchored.take()] == [b"a"]
    assert not unanchored.outcome(b"a", 1, Touch.UNKNOWN)
    assert not unanchored.outcome(b"a", 1, Touch.REPORTED)
    assert len(unanchored) == 0


def test_a_lease_that_was_reported_after_all_is_not_lost(unanchored: Unanchored) -> None:
    """Its process had dropped its own references in order."""
    unanchored.note(b"a", b"maker", soon=True)
    unanchored.process_died(b"maker")
    for lease, marks in unanchored.take():
        assert not unanchored.outcome(lease, marks, Touch.REPORTED)
    assert len(unanchored) == 0


def test_what_nobody_takes_leaves_nothing_behind(unanchored: Unanchored) -> None:
    """Without anchoring nobody takes what is due: the heap must not keep a hundred thousand leases that have ended."""
    for number in range(100_000):
        unanchored.note(number.to_bytes(4, "big"), b"maker")
        unanchored.forget(number.to_bytes(4, "big"))
    assert (len(unanchored), len(unanchored._queue)) == (0, 0) or len(unanchored._queue) <= 64


def test_the_heap_is_bounded_whatever_happens(unanchored: Unanchored, clock: list[float]) -> None:
    """And a lease that is unanchored is always due some time, unless a round has it."""
    chance = random.Random(7)  # noqa: S311 # only a seed's draws can be drawn again
    in_round: dict[bytes, int] = {}
    for _ in range(20_000):
        lease = bytes([chance.randrange(50)])
        step = chance.randrange(6)
        if step <= 1:
            unanchored.note(lease, chance.choice([b"", b"maker"]), soon=chance.random() < 0.3)
        elif step == 2:
            unanchored.forget(lease)
        elif step == 3:
            in_round.update(unanchored.take())
        elif step == 4 and in_round:
            taken, marks = in_round.popitem()
            unanchored.outcome(taken, marks, chance.choice(list(Touch)), confirmed=chance.random() < 0.8)
        else:
            clock[0] += chance.random()
        assert len(unanchored._queue) <= 2 * len(unanchored) + 64
    for taken, marks in in_round.items():
        unanchored.outcome(taken, marks, Touch.BUSY)
    clock[0] += 100
    left = len(unanchored)
    assert len(dict(unanchored.take())) == left


def test_references_wait_until_their_first_round_ends(unanchored: Unanchored, clock: list[float]) -> None:
    """That is what readers may have to wait for, and what `stats` shows: not what is tried again and again."""
    unanchored.note(b"a", size=3)
    clock[0] += 1
    unanchored.note(b"b", size=4)
    assert (unanchored.waiting, unanchored.behind_s()) == (7, 1.0)
    clock[0] += 1
    found = dict(unanchored.take())
    assert unanchored.waiting == 7, "a round has them"
    unanchored.outcome(b"a", found[b"a"], Touch.REPORTED)
    assert (unanchored.waiting, unanchored.behind_s()) == (4, 1.0)
    unanchored.outcome(b"b", found[b"b"], Touch.UNKNOWN)
    assert (unanchored.waiting, unanchored.behind_s()) == (0, 0.0)
    unanchored.note(b"b", size=4)
    unanchored.note(b"b", size=4)
    assert unanchored.waiting == 4, "it was passed on again"
    unanchored.forget(b"b")
    assert (unanchored.waiting, unanchored.behind_s(), len(unanchored)) == (0, 0.0, 0)


def test_of_a_lease_only_what_was_passed_on_is_wanted(unanchored: Unanchored, clock: list[float]) -> None:
    """Each object until a round has anchored it that began after it was passed on; the whole lease, if a process passed on all."""
    unanchored.note(b"a", size=1000, parts=[b"1", b"2"])
    unanchored.note(b"a", size=1000, parts=[b"2", b"3"])
    assert unanchored.waiting == 3
    clock[0] += 1
    [(lease, marks)] = unanchored.take()
    unanchored.note(b"a", size=1000, parts=[b"3", b"4"])
    assert unanchored.wanted(lease, marks) == {b"1", b"2"}, "3 has been passed on since"
    unanchored.outcome(lease, marks, Touch.REPORTED, confirmed=False)
    clock[0] += 1
    [(lease, marks)] = unanchored.take()
    assert unanchored.wanted(lease, marks) == {b"1", b"2", b"3", b"4"}, "nothing was confirmed"
    unanchored.note(b"a", size=1000, parts=[b"1"])
    unanchored.outcome(lease, marks, Touch.REPORTED)
    assert unanchored.waiting == 1
    clock[0] += 1
    [(lease, marks)] = unanchored.take()
    assert unanchored.wanted(lease, marks) == {b"1"}
    unanchored.note(b"a", b"maker", size=1000)
    assert (unanchored.wanted(lease, marks), unanchored.waiting) == (None, 1000)
    unanchored.note(b"a", size=1000, parts=[b"1"])
    assert unanchored.wanted(lease, marks) is None
    unanchored.forget(b"a")
    assert (unanchored.waiting, len(unanchored)) == (0, 0)


def test_what_is_passed_on_again_waits_again(unanchored: Unanchored, clock: list[float]) -> None:
    """Also while the lease is due for other reasons: an owner doesn't know the shard yet, or nothing was confirmed."""
    unanchored.note(b"a", size=1000, parts=[b"1"], soon=True)
    [(lease, marks)] = unanchored.take()
    unanchored.outcome(lease, marks, Touch.REPORTED, confirmed=False)
    assert unanchored.waiting == 0
    unanchored.note(b"a", size=1000)
    assert unanchored.waiting == 1000
    clock[0] += 1
    [(lease, marks)] = unanchored.take()
    unanchored.note(b"a", size=1000)
    unanchored.outcome(lease, marks, Touch.UNKNOWN)
    assert (unanchored.waiting, unanchored.tries(b"a")) == (1000, 0)
    clock[0] += 1
    assert [each for each, _ in unanchored.take()] == [b"a"]


def test_a_round_says_nothing_of_a_process_that_pinned_since(unanchored: Unanchored, clock: list[float]) -> None:
    """The lease was taken meanwhile, and given back by a borrower: it depends on that one until the next round."""
    unanchored.note(b"a", soon=True)
    [(lease, marks)] = unanchored.take()
    unanchored.forget(b"a")
    unanchored.note(b"a", b"borrower")
    unanchored.outcome(lease, marks, Touch.REPORTED)
    assert unanchored.depends_on(b"a") == b"borrower"
    clock[0] += 1
    [(lease, marks)] = unanchored.take()
    unanchored.outcome(lease, marks, Touch.REPORTED)
    assert b"a" not in unanchored


def test_no_object_is_forgotten_before_a_round_has_anchored_it(unanchored: Unanchored, clock: list[float]) -> None:
    """Whatever happens in whatever order: what was passed on is wanted by the next round, and what `waiting` counts comes to zero."""
    chance = random.Random(11)  # noqa: S311 # only a seed's draws can be drawn again
    # What is to be anchored, by lease, and the step at which it was passed on last.
    passed: dict[bytes, dict[bytes, int]] = {}
    rounds: dict[bytes, tuple[int, int]] = {}  # the marks of leases in a round, and the step at which it began
    for step in range(30_000):
        lease, what = bytes([chance.randrange(8)]), chance.randrange(8)
        if what <= 2:
            some = [bytes([chance.randrange(20)]) for _ in range(chance.randrange(1, 4))]
            unanchored.note(lease, size=20, parts=some, soon=chance.random() < 0.3)
            passed.setdefault(lease, {}).update(dict.fromkeys(some, step))
        elif what == 3 and chance.random() < 0.1:
            unanchored.forget(lease)
            passed.pop(lease, None)
        elif what == 4:
            for taken, marks in unanchored.take():
                rounds[taken] = (marks, step)
                wanted = unanchored.wanted(taken, marks)
                assert wanted is None or set(wanted) == set(passed[taken])
        elif what == 5 and rounds:
            taken, (marks, begun) = rounds.popitem()
            known, confirmed = chance.choice(list(Touch)), chance.random() < 0.8
            unanchored.outcome(taken, marks, known, confirmed=confirmed)
            if known is Touch.REPORTED and confirmed and taken in passed:
                passed[taken] = {id_: at for id_, at in passed[taken].items() if at > begun}
                if not passed[taken]:
                    del passed[taken]
        else:
            clock[0] += chance.random()
        assert {each for each in passed if each not in unanchored} == set()
        assert unanchored.waiting >= 0
    for number in range(8):
        unanchored.forget(bytes([number]))
    assert (unanchored.waiting, unanchored.behind_s()) == (0, 0.0)


@pytest.mark.parametrize(("known", "longest_s"), [(Touch.BUSY, SILENT_S), (Touch.UNKNOWN, LONGEST_PAUSE_S)])
def test_an_owner_may_be_silent_for_days(known: Touch, longest_s: float) -> None:
    """The pauses grow up to their bound, and stay there."""
    now = [100.0]
    unanchored = Unanchored(lambda: now[0])
    unanchored.note(b"lease")
    for _ in range(3_000):
        now[0] += LONGEST_PAUSE_S
        [(lease, marks)] = list(unanchored.take())
        unanchored.meets_silence(lease)
        unanchored.outcome(lease, marks, known)
    assert unanchored.next_in_s() == longest_s

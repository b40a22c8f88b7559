"""What a shard keeps of leases whose owners don't know all yet: the bookkeeping, with a clock of its own, without Ray."""

from __future__ import annotations

import pytest
from safe_refs.registry.settling import Unsettled

from safe_refs._ray import Told
from safe_refs.registry import settling


class TestUnsettled:
    """The bookkeeping, with a clock of its own."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [100.0]

    @pytest.fixture
    def unsettled(self, clock: list[float]) -> Unsettled:
        return Unsettled(lambda: clock[0])

    def test_a_lease_is_due_after_a_moment_and_once(self, unsettled: Unsettled, clock: list[float]) -> None:
        """Many marks in a moment are one round."""
        for _ in range(3):
            unsettled.note(b"a")
        assert (list(unsettled.take()), unsettled.has(b"a")) == ([], True)
        clock[0] += unsettled.next_in_s() or 0
        assert [lease for lease, _ in unsettled.take()] == [b"a"]
        assert list(unsettled.take()) == []

    def test_a_lease_that_was_told_is_settled(self, unsettled: Unsettled) -> None:
        """And no longer hangs."""
        unsettled.note(b"a", b"maker", soon=True)
        [(lease, marks)] = unsettled.take()
        assert unsettled.hangs_on(b"a") == b"maker"
        assert not unsettled.outcome(lease, marks, Told.YES)
        assert (len(unsettled), unsettled.hangs_on(b"a")) == (0, b"")

    def test_a_lease_resolved_during_a_round_has_another(self, unsettled: Unsettled, clock: list[float]) -> None:
        """Who resolved it then may not be known."""
        unsettled.note(b"a", soon=True)
        [(lease, marks)] = unsettled.take()
        unsettled.note(b"a")
        unsettled.outcome(lease, marks, Told.YES)
        clock[0] += 1
        assert [each for each, _ in unsettled.take()] == [b"a"]

    def test_an_unknown_one_is_tried_ever_more_seldom(self, unsettled: Unsettled, clock: list[float]) -> None:
        """Up to half a minute."""
        unsettled.note(b"a", b"maker", soon=True)
        pauses = []
        for _ in range(12):
            [(lease, marks)] = unsettled.take()
            assert not unsettled.outcome(lease, marks, Told.UNKNOWN)
            pauses.append(unsettled.next_in_s() or 0)
            clock[0] += pauses[-1] + 0.001
        assert pauses == sorted(pauses)
        assert pauses[-1] == pytest.approx(30)

    def test_a_lease_is_lost_with_its_process_after_a_grace(self, unsettled: Unsettled, clock: list[float]) -> None:
        """What the process had reported may still be under way."""
        unsettled.note(b"a", b"maker", soon=True)
        list(unsettled.take())
        unsettled.outcome(b"a", 1, Told.UNKNOWN)
        assert unsettled.hung_on() == {b"maker"}
        unsettled.doom(b"maker")
        assert unsettled.hung_on() == set()
        lost: list[float] = []
        began = clock[0]
        while not lost and clock[0] < began + 10:
            for lease, marks in unsettled.take():
                if unsettled.outcome(lease, marks, Told.UNKNOWN):
                    lost.append(clock[0] - began)
            clock[0] += 0.05
        assert settling._GRACE_S < lost[0] < settling._GRACE_S + 1
        assert len(unsettled) == 0

    def test_an_owner_that_does_not_answer_puts_the_verdict_off(self, unsettled: Unsettled, clock: list[float]) -> None:
        """It may find what the dead process told it when it goes on."""
        unsettled.note(b"a", b"maker", soon=True)
        unsettled.doom(b"maker")
        assert not unsettled.is_verdict_due(b"a")
        clock[0] += settling._GRACE_S + 0.1
        assert unsettled.is_verdict_due(b"a")
        unsettled.put_off_verdict(b"a")
        assert not unsettled.is_verdict_due(b"a")
        assert not unsettled.outcome(b"a", 1, Told.UNKNOWN)
        clock[0] += settling._GRACE_S + 0.1
        assert unsettled.outcome(b"a", 1, Told.UNKNOWN)

    def test_an_owner_that_knew_the_shard_is_not_taken_for_one_that_never_did(
        self, unsettled: Unsettled, clock: list[float]
    ) -> None:
        """It has heard of the shard before, and is slow to hear that it has the reference back: nothing hangs on the maker."""
        unsettled.note(b"a", b"maker", copied=True, soon=True)
        unsettled.doom(b"maker")
        clock[0] += settling._GRACE_S + 0.1
        assert not unsettled.outcome(b"a", 1, Told.YES, heard=False)
        assert unsettled.hangs_on(b"a") == b""
        assert unsettled.copies() == 1
        clock[0] += 1
        assert [lease for lease, _ in unsettled.take()] == [b"a"]
        assert not unsettled.outcome(b"a", 1, Told.UNKNOWN)
        assert not unsettled.outcome(b"a", 1, Told.YES)
        assert len(unsettled) == 0

    def test_a_lease_that_was_told_after_all_is_not_lost(self, unsettled: Unsettled) -> None:
        """Its process had dropped its own references in order."""
        unsettled.note(b"a", b"maker", soon=True)
        unsettled.doom(b"maker")
        for lease, marks in unsettled.take():
            assert not unsettled.outcome(lease, marks, Told.YES)
        assert len(unsettled) == 0

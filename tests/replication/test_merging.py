"""What the answers of several holders mean together, without Ray: each machine of `merging`, a question at a time."""

from __future__ import annotations

from typing import Any

import pytest

from safe_refs.errors import (
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    RegistryFullError,
    SafeRefsError,
)
from safe_refs.registry.records import Identity, Renewal
from safe_refs.registry.wire import Granted, NotNow, Overdue, Silence
from safe_refs.replication.merging import (
    Ask,
    Inquiry,
    Pinning,
    Releasing,
    Repair,
    granted_by_all,
    replies_of,
    rows_of,
)
from safe_refs.replication.topology import Topology
from tests.support.rules import A, B, C

TWO = Topology(1, shards=2, replicas=2)
THREE = Topology(1, shards=3, replicas=3)
GROWING = Topology(2, shards=3, replicas=1, before=1)

NOT_FOUND = LeaseNotFoundError.of("01010101", "default")
LOST = LeaseLostError.of("01010101", "default", 1, 2)
ENDED = LeaseReleasedError.of("01010101", "default", 1.0, "somebody")
EXPIRED = LeaseExpiredError.of("01010101", "default", 1.0, 5.0)
OVERDUE = Overdue(EXPIRED)
FULL = RegistryFullError("full")
THIRD = Renewal(3, 60.0, 60.0)
OLD, NEW = Identity(b"epoch..1", 1), Identity(b"epoch..2", 2)


def ask(*replies: Any, topology: Topology = TWO) -> Any:
    """The verdict on a look at all holders."""
    inquiry, first = Inquiry(False).begin(A, topology)
    assert first == Ask(topology.everywhere(A), counts=len(topology.everywhere(A)) == 1)
    return inquiry.take(dict(zip(first.shards, replies, strict=True)))[1]


def ask_in_turn(inquiry: Inquiry, *replies: Any, topology: Topology = TWO) -> tuple[Inquiry, Any, list[int]]:
    """One holder after the other: the inquiry, the verdict, and who was asked."""
    asked: list[int] = []
    waiting = list(replies)
    inquiry, step = inquiry.begin(A, topology)
    while isinstance(step, Ask):
        assert step.counts
        asked += step.shards
        inquiry, step = inquiry.take({step.shards[0]: waiting.pop(0)})
    assert not waiting
    return inquiry, step, asked


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        (("x", "x"), "x"),
        (("x", ENDED), ENDED),  # an end beats the lease that another still has
        ((NOT_FOUND, "x"), "x"),
        ((Silence.DEAD, "x"), "x"),
        ((Silence.LATE, "x"), "x"),
        ((NotNow.RECOVERING, "x"), "x"),
        ((NotNow.DOUBTFUL, "x"), "x"),
        ((NotNow.STALE, "x"), NotNow.STALE),
        ((NotNow.STALE, ENDED), NotNow.STALE),
        ((NOT_FOUND, NOT_FOUND), NOT_FOUND),
        ((NOT_FOUND, LOST), LOST),  # "lost" says more
        ((NOT_FOUND, Silence.ABSENT), NOT_FOUND),
        ((NOT_FOUND, Silence.DEAD), NotNow.RECOVERING),  # who can't answer now may have it
        ((NOT_FOUND, NotNow.RECOVERING), NotNow.RECOVERING),
        ((LOST, NotNow.DOUBTFUL), NotNow.RECOVERING),
        ((NOT_FOUND, Silence.LATE), Silence.LATE),
        ((Silence.DEAD, Silence.LATE), Silence.LATE),
        ((Silence.ABSENT, Silence.ABSENT), Silence.ABSENT),
        ((ENDED, Silence.LATE), ENDED),
        (("x", OVERDUE), "x"),  # renewed there in time
        (("x", EXPIRED), EXPIRED),  # released since
        ((OVERDUE, ENDED), ENDED),
        ((OVERDUE, OVERDUE), EXPIRED),
        ((OVERDUE, Silence.LATE), EXPIRED),
        ((OVERDUE, NotNow.DOUBTFUL), NotNow.RECOVERING),  # it may have renewed it
        ((OVERDUE, Silence.DEAD), NotNow.RECOVERING),  # it may have told the other by now
        ((OVERDUE, LOST), NotNow.RECOVERING),
    ],
)
def test_all_at_once(replies: tuple[Any, ...], verdict: Any) -> None:
    """A lease that any holder gives is there, unless one knows that it has ended; it is not there if all know that."""
    for answers in (replies, replies[::-1]):
        found = ask(*answers)
        assert found is verdict or (found == "x" and verdict == "x")


def test_one_holder_is_asked_once_and_counts() -> None:
    """Nobody else has to agree."""
    assert ask("x", topology=Topology(1)) == "x"
    assert ask(NOT_FOUND, topology=Topology(1)) is NOT_FOUND
    assert ask(Granted(ENDED), topology=Topology(1)) is ENDED


def test_a_lease_that_counts_its_uses_is_asked_for_in_turn_and_stays_so() -> None:
    """One holder says so, whoever it is: then the deciding one is asked first, also in the next round."""
    inquiry, _ = Inquiry(False).begin(A, TWO)
    inquiry, step = inquiry.take({0: NotNow.IN_TURN, 1: NOT_FOUND})
    first, second = TWO.holders(A)
    assert step == Ask((first,), counts=True)
    inquiry, step = inquiry.take({first: Silence.DEAD})
    assert step == Ask((second,), counts=True)
    inquiry, step = inquiry.take({second: NotNow.RECOVERING})
    assert step is NotNow.RECOVERING
    _, step, asked = ask_in_turn(inquiry, "x", "x")
    assert (step, asked) == ("x", [first, second])


@pytest.mark.parametrize(
    ("replies", "verdict", "count"),
    [
        (("x", "x"), "x", 2),
        ((ENDED,), ENDED, 1),  # the first decides
        (("x", ENDED), ENDED, 2),  # at most once: every living holder has to grant it
        (("x", Granted(ENDED)), "x", 2),  # ended by this very use, of which the second has heard already
        ((Granted(ENDED), Silence.DEAD), ENDED, 2),
        (("x", Silence.DEAD), "x", 2),
        (("x", NotNow.RECOVERING), "x", 2),
        (("x", NOT_FOUND), "x", 2),
        ((NotNow.DOUBTFUL, "x"), "x", 2),
        ((Silence.LATE,), Silence.LATE, 1),  # it may have been granted: asking others would spend more
        ((NotNow.STALE,), NotNow.STALE, 1),
        ((NOT_FOUND, LOST), LOST, 2),
        ((NOT_FOUND, Silence.DEAD), NotNow.RECOVERING, 2),
        ((OVERDUE, "x"), NotNow.RECOVERING, 2),  # until they agree
        (("x", OVERDUE), NotNow.RECOVERING, 2),
        ((OVERDUE, OVERDUE), EXPIRED, 2),
    ],
)
def test_one_after_the_other(replies: tuple[Any, ...], verdict: Any, count: int) -> None:
    """The deciding holder first; an end, silence and an old topology stop it."""
    _, found, asked = ask_in_turn(Inquiry(True), *replies)
    assert found is verdict or found == verdict == "x"
    assert asked == list(TWO.holders(A))[:count]


@pytest.mark.parametrize("gone", [Silence.DEAD, LOST, NOT_FOUND])
def test_who_can_not_say_more_of_a_lease_that_is_overdue_elsewhere_is_waited_for_once(gone: Any) -> None:
    """It may have passed a renewal on before it died; after one more round that is known."""
    inquiry, first = Inquiry(False).begin(A, TWO)
    inquiry, step = inquiry.take({0: OVERDUE, 1: gone})
    assert step is NotNow.RECOVERING
    inquiry, _ = inquiry.begin(A, TWO)
    assert inquiry.take({0: OVERDUE, 1: gone})[1] is EXPIRED
    assert inquiry.take({0: "x", 1: gone})[1] == "x"
    assert first == Ask((0, 1), counts=False) or first == Ask((1, 0), counts=False)


def test_what_one_holder_grants_while_the_lease_is_overdue_at_another_is_asked_for_again() -> None:
    """All are asked again, with the same use, until they agree: then it is granted, or its time is over for all."""
    inquiry, found, asked = ask_in_turn(Inquiry(True), OVERDUE, "x")
    assert (found, asked) == (NotNow.RECOVERING, list(TWO.holders(A)))
    assert ask_in_turn(inquiry, "x", "x")[1] == "x"
    assert ask_in_turn(inquiry, Granted(ENDED), Granted(ENDED))[1] == "x"  # it was the last use
    assert ask_in_turn(inquiry, OVERDUE, OVERDUE)[1] is EXPIRED
    assert ask_in_turn(inquiry, ENDED)[1] is ENDED


def test_a_renewal_of_a_lease_that_is_overdue_at_a_holder_is_carried_out_at_all_before_it_counts() -> None:
    """By what the one that renewed it has decided, in the next round, too."""
    inquiry, found, _ = ask_in_turn(Inquiry(True), THIRD, OVERDUE)
    assert found is NotNow.RECOVERING
    first, second = TWO.holders(A)
    inquiry, step = inquiry.begin(A, TWO)
    assert step == Ask((first,), counts=True, decided=THIRD)
    inquiry, step = inquiry.take({first: THIRD})
    assert step == Ask((second,), counts=True, decided=THIRD)
    assert inquiry.take({second: THIRD})[1] == THIRD


def test_who_has_granted_it_is_not_asked_again() -> None:
    """The topology has changed after the first grant: the use is not to count twice, nor the grant to be forgotten."""
    inquiry, found, asked = ask_in_turn(Inquiry(True), "x", NotNow.STALE)
    assert (found, asked) == (NotNow.STALE, list(TWO.holders(A)))
    _, found, asked = ask_in_turn(inquiry, "y", topology=TWO._replace(version=2))
    assert (found, asked) == ("x", [TWO.holders(A)[1]])


def test_a_renewal_goes_from_the_first_holder_to_the_others() -> None:
    """The deciding one counts it and says what it makes of the time, and the others go by that; in the next round, too."""
    first, second, third = THREE.holders(A)
    inquiry, step = Inquiry(True).begin(A, THREE)
    assert step == Ask((first,), counts=True, decided=None)
    inquiry, step = inquiry.take({first: THIRD})
    assert step == Ask((second,), counts=True, decided=THIRD)
    inquiry, step = inquiry.take({second: NotNow.STALE})
    inquiry, step = inquiry.begin(A, THREE)
    assert step == Ask((second,), counts=True, decided=THIRD)
    inquiry, step = inquiry.take({second: THIRD})
    inquiry, step = inquiry.take({third: THIRD})
    assert step == THIRD


def test_while_a_registry_grows_not_found_is_asked_for_once_more() -> None:
    """The lease may have been on its way from the one to the other, when each was asked."""
    moved = next(lease for lease in (A, B, C) if GROWING.holders(lease) != (0,))
    inquiry, first = Inquiry(False).begin(moved, GROWING)
    assert len(first.shards) == 2
    inquiry, step = inquiry.take(dict.fromkeys(first.shards, NOT_FOUND))
    assert step is NotNow.RECOVERING
    inquiry, again = inquiry.begin(moved, GROWING)
    assert again == first
    _, step = inquiry.take(dict.fromkeys(first.shards, NOT_FOUND))
    assert step is NOT_FOUND


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        ((OLD, OLD), OLD),
        ((OLD, NEW), NEW),  # the payload names the newest start
        ((NEW, OLD), NEW),
        ((OLD, Silence.DEAD), Repair((0,), (1,))),
        ((Silence.DEAD, OLD), Repair((1,), (0,))),
        ((Silence.DEAD, Silence.DEAD), NotNow.RECOVERING),
        ((OLD, NotNow.STALE), NotNow.STALE),
        ((OLD, NotNow.CLOSING), NotNow.CLOSING),
        ((NotNow.CLOSING, NotNow.STALE), NotNow.STALE),
        ((OLD, FULL), FULL),
        ((OLD, Silence.LATE), Silence.LATE),
    ],
)
def test_a_pin_is_held_by_all_that_live(replies: tuple[Any, ...], verdict: Any) -> None:
    """It returns when all holders have it, or all but the dead; any refusal, and any silence, is the whole pin's."""
    sent = {shard: each.to_bytes() if isinstance(each, Identity) else each for shard, each in enumerate(replies)}
    assert Pinning().take((0, 1), sent)[1] == verdict


def test_a_pin_is_repaired_by_one_that_holds_it_or_begins_anew() -> None:
    """Whoever passes the lease on to the dead has to live; if none of them does, all are asked again."""
    pinning, verdict = Pinning().take((0, 1, 2), {0: OLD.to_bytes(), 1: NEW.to_bytes(), 2: Silence.DEAD})
    assert verdict == Repair((0, 1), (2,))
    assert pinning.repaired({0: Silence.DEAD, 1: True})[1] == NEW
    pinning, verdict = pinning.repaired({0: Silence.DEAD, 1: Silence.DEAD})
    assert verdict is NotNow.RECOVERING
    assert pinning.missing((0, 1, 2)) == (0, 1, 2)


def test_a_pin_asks_only_who_does_not_hold_it_yet_unless_the_registry_closes() -> None:
    """An old topology is no reason to pin twice; a registry that is being shut down takes what it holds along."""
    pinning, _ = Pinning().take((0, 1), {0: OLD.to_bytes(), 1: NotNow.STALE})
    assert pinning.missing((0, 1)) == (1,)
    assert pinning.take((0, 1), {1: OLD.to_bytes()})[1] == OLD
    pinning, _ = pinning.take((0, 1), {1: NotNow.CLOSING})
    assert pinning.missing((0, 1)) == (0, 1)


def test_an_end_reaches_all_but_the_dead_and_those_if_nobody_else_knows_it() -> None:
    """The others pass it on to the dead; where there are none, it is asked for until one is back."""
    releasing = Releasing().begin([A, B], Topology(1, shards=2, replicas=2))
    both = dict(releasing.waiting or ())
    assert both == {0: (A, B), 1: (A, B)} or both == {1: (A, B), 0: (A, B)}
    assert releasing.take({0: [1, 0], 1: Silence.DEAD}) == (Releasing(()), {A}, True)
    alone = Releasing(((0, (A,)), (1, (A, B))))
    left, ended, verdict = alone.take({0: [1], 1: Silence.DEAD})
    assert (left, ended, verdict) == (Releasing(((1, (B,)),)), {A}, NotNow.RECOVERING)
    assert left.begin([A, B], TWO) == left
    assert left.take({1: [1]}) == (Releasing(()), {B}, True)
    assert alone.take({0: Silence.ABSENT, 1: Silence.ABSENT})[2] is True
    assert alone.take({0: [1], 1: Silence.LATE})[1:] == ({A}, Silence.LATE)


def test_an_end_counts_though_another_shard_says_that_the_registry_has_grown() -> None:
    """The old holder ends a lease; the new one has heard that the growth is over, and has the lease's end as news already."""
    moved = next(lease for lease in (A, B, C) if GROWING.holders(lease) != (0,))
    (new,) = GROWING.holders(moved)
    releasing = Releasing().begin([moved], GROWING)
    releasing, ended, verdict = releasing.take({0: [1], new: NotNow.STALE})
    assert (ended, verdict) == ({moved}, NotNow.STALE)
    releasing = releasing.begin([moved], Topology(3, shards=3))
    assert releasing.take({new: [0]})[1:] == (set(), True)


def test_requests_that_go_together_are_separated_again() -> None:
    """One call to each shard, each with its own rows; what a whole shard can't say now is said of each row."""
    rows = rows_of([(0, 1), (1, 2), (), (0,)])
    assert rows == {0: [0, 3], 1: [0, 1], 2: [1]}
    replies: dict[int, Any] = {0: ["a", "d"], 1: Silence.DEAD, 2: ["b"]}
    assert replies_of(rows, replies, 4) == [
        {0: "a", 1: Silence.DEAD},
        {1: Silence.DEAD, 2: "b"},
        {},
        {0: "d"},
    ]


@pytest.mark.parametrize("other", [None, ENDED, NOT_FOUND, Granted(ENDED), NotNow.IN_TURN, Silence.DEAD])
def test_what_holders_give_all_at_once_counts_if_all_of_them_do(other: SafeRefsError | None) -> None:
    """An empty answer is one; anything else is for the lease to be asked about by itself."""
    assert granted_by_all({0: ["x"], 1: ["x"]}) == ["x"]
    assert granted_by_all({0: [], 1: []}) == []
    assert granted_by_all({0: ["x"], 1: other}) is None
    assert granted_by_all({}) is None

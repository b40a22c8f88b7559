"""A use that is given back, where several shards hold its lease: what they tell each other, and in which order they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from safe_refs.config import Deadline
from safe_refs.errors import RegistryUnavailableError
from safe_refs.registry import unspent
from safe_refs.registry.calls import Call, NoRegistryError, Registry
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Terms
from safe_refs.registry.requests import Plan, Unspent
from safe_refs.registry.wire import GiveBackRow, NotNow, Silence
from safe_refs.replication.merging import Returning
from safe_refs.replication.records import end_record_of, merge_end, merge_record, record_of
from safe_refs.replication.rules import Rules
from safe_refs.replication.topology import Topology
from safe_refs.replication.verbs import ReplicatedVerbs
from tests.support.rules import ME, STARTED, A, B, Clock, make_table, pin

TWO = Topology(1, shards=2, replicas=2)
LATER = Deadline(1e18, 30.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use(table: LeaseTable[str], name: bytes, *, take: bool = False) -> None:
    table.resolve(A, STARTED, slot=None, take=take, origin=ME, use=name)


def back(table: LeaseTable[str], name: bytes, *, take: bool = False) -> bool | None:
    return unspent.give_back(table, GiveBackRow(A, name, take, 1, ME, b""), ["x"], [b"o"])


def send(one: LeaseTable[str], other: LeaseTable[str]) -> None:
    """One shard tells the other what it knows of the lease."""
    if (record := record_of(one, A)) is not None:
        merge_record(other, record)
    elif (end := end_record_of(one, A)) is not None:
        merge_end(other, end)


@pytest.mark.parametrize("take", [True, False])
def test_an_end_by_a_use_that_was_given_back_does_not_beat_the_lease(clock: Clock, take: bool) -> None:
    """Whichever comes first: the shard that has been told that it was given back, or the news that it has ended."""
    one, other = make_table(clock), make_table(clock)
    for table in (one, other):
        pin(table, A, "x", uses=1)
    use(one, b"use", take=take)
    late = end_record_of(one, A)
    assert late is not None
    assert back(other, b"use", take=take) is False  # it lives there
    assert not merge_end(other, late)
    assert other.items_of(A) == ("x",)
    send(other, one)  # which is news for the other: it lives again there
    assert one.items_of(A) == ("x",)
    assert record_of(one, A) == record_of(other, A)


def test_who_was_told_of_an_end_can_let_the_lease_live_again(clock: Clock) -> None:
    """A shard that never held the lease knows all of it but the references, which the reader brings."""
    one, other = make_table(clock), make_table(clock)
    pin(one, A, "x", ttl=60.0, label="mine")
    clock.now += 4
    use(one, b"use", take=True)
    send(one, other)
    assert back(other, b"use", take=True) is True
    assert (other.live[A].terms, other.live[A].origin) == (Terms(ttl=60.0, label="mine"), ME)
    assert other.expires_in_s(A, STARTED) == 56.0
    send(other, one)
    assert record_of(one, A) == record_of(other, A)
    assert (one.stats().released, other.stats().released, other.stats().pinned) == (0, 0, 1)


def test_two_takes_that_two_shards_granted_have_both_to_be_given_back(clock: Clock) -> None:
    """Each granted one while the other was down."""
    one, other = make_table(clock), make_table(clock)
    for table, name in ((one, b"1"), (other, b"2")):
        pin(table, A, "x")
        use(table, name, take=True)
    send(other, one)
    assert back(one, b"1", take=True) is False
    assert back(one, b"2", take=True) is True


@pytest.mark.parametrize("first", ["release", "give back"])
def test_a_release_in_between_is_final_on_all(clock: Clock, first: str) -> None:
    """Whether the shard that let the lease live again learns of it before or after."""
    one, other = make_table(clock), make_table(clock)
    for table in (one, other):
        pin(table, A, "x")
        use(table, b"use", take=True)
    assert other.release(A, ME) == 0
    if first == "give back":
        assert back(one, b"use", take=True) is True
    send(other, one)
    assert back(one, b"use", take=True) is None
    assert not list(one.items())


def test_it_is_news_for_all_that_may_hold_the_lease(clock: Clock) -> None:
    """Also for a shard that says that the lease has ended, as it has not heard yet."""
    tables = [make_table(clock), make_table(clock)]
    one, other = (Rules(shard, TWO, table, False, clock) for shard, table in enumerate(tables))
    for table in tables:
        pin(table, A, "x")
        use(table, b"use", take=True)
    stale = one.records([A])
    assert back(tables[1], b"use", take=True) is True
    assert other.received(stale) == []
    assert other.take_news(0, 10) == [A]
    assert one.received(other.records([A])) == [A]
    assert tables[0].items_of(A) == ("x",)


def returning(*rounds: Mapping[int, Any], topology: Topology = TWO) -> tuple[Any, list[tuple[int, ...]]]:
    """The verdict, and who was asked."""
    asked: list[tuple[int, ...]] = []
    step: Any
    machine, step = Returning().begin(A, topology)
    for replies in rounds:
        asked.append(step.shards)
        machine, step = machine.take({shard: replies[shard] for shard in step.shards})
    return step, asked


def test_the_deciding_holder_is_asked_last() -> None:
    """So that whoever asks it next finds that the others know, too."""
    three = Topology(1, shards=3, replicas=3)
    first, *others = three.holders(A)
    verdict, asked = returning(dict.fromkeys(range(3), False), dict.fromkeys(range(3), True), topology=three)
    assert asked == [tuple(others), (first,)]
    assert verdict is True


@pytest.mark.parametrize(
    ("other", "deciding", "verdict"),
    [
        (Silence.DEAD, True, True),
        (Silence.LATE, False, True),
        (False, Silence.DEAD, True),
        (True, NotNow.RECOVERING, True),
        (Silence.DEAD, NotNow.RECOVERING, NotNow.RECOVERING),
        (Silence.DEAD, Silence.LATE, Silence.LATE),
        (Silence.ABSENT, Silence.ABSENT, Silence.ABSENT),
        (True, NotNow.STALE, NotNow.STALE),
    ],
)
def test_one_holder_that_knows_is_enough(other: Any, deciding: Any, verdict: Any) -> None:
    """The others learn it from that one. If none can take it now, it is asked again."""
    first, second = TWO.holders(A)
    assert returning({second: other}, {first: deciding})[0] == verdict
    assert returning({second: NotNow.STALE})[0] == NotNow.STALE


class Answering:
    """A registry whose shards answer as the test says, one after the other round."""

    name = "any"

    def __init__(self, *rounds: Mapping[int, Any]) -> None:
        self.rounds = list(rounds)
        self.asked: list[dict[int, list[bytes]]] = []

    def ask(self, calls: Mapping[int, Call[Any]], deadline: Deadline) -> dict[int, Any]:
        assert deadline.at <= LATER.at
        given: dict[int, Any] = {shard: call.args[0] for shard, call in calls.items()}
        self.asked.append({shard: [row.lease for row in each.rows] for shard, each in given.items()})
        answers = self.rounds.pop(0)
        return {shard: answers[shard] for shard in calls}

    def no_answer(self, deadline: Deadline) -> RegistryUnavailableError:
        return RegistryUnavailableError("late")


def test_several_go_together() -> None:
    """Two calls to each shard at most; those that live again are noted, whatever the others answer."""
    uses = [Unspent(Plan(lease, ["x"], Terms(), ME), b"use", True) for lease in (A, B)]
    registry = Answering({0: [True, False], 1: [True, False]}, {0: [True, False], 1: [True, False]})
    lives: set[bytes] = set()
    assert ReplicatedVerbs(cast("Registry", registry), TWO).give_back_once(uses, lives, LATER) is True
    assert registry.asked == [{1: [A, B]}, {0: [A, B]}]  # as shard 0 decides both
    assert lives == {A}
    lives.clear()
    with pytest.raises(RegistryUnavailableError, match="late"):
        asking(Silence.LATE, uses, lives)
    with pytest.raises(NoRegistryError):
        asking(Silence.ABSENT, uses, lives)
    assert not lives


def asking(answer: Silence, uses: list[Unspent], lives: set[bytes]) -> None:
    registry = Answering({0: answer, 1: answer}, {0: answer, 1: answer})
    ReplicatedVerbs(cast("Registry", registry), TWO).give_back_once(uses, lives, LATER)

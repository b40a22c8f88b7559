"""Leases that one shard sends to another, and how they merge, without Ray. The clock is the test's."""

from __future__ import annotations

import pytest

from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Terms
from safe_refs.replication.records import (
    EndRecord,
    Record,
    end_record_of,
    granted,
    merge_end,
    merge_record,
    record_of,
)
from tests.support.rules import ME, STARTED, A, B, C, Clock, make_table, pin


@pytest.fixture
def clock() -> Clock:
    return Clock()


def record(table: LeaseTable[str], lease: bytes = A) -> Record:
    found = record_of(table, lease)
    assert found is not None
    return found


def end_record(table: LeaseTable[str], lease: bytes = A) -> EndRecord:
    found = end_record_of(table, lease)
    assert found is not None
    return found


def use(table: LeaseTable[str], lease: bytes, name: bytes, *, take: bool = False) -> None:
    table.resolve(lease, STARTED, slot=None, take=take, origin=ME, use=name)


def test_a_lease_arrives_as_it_was(clock: Clock) -> None:
    """With its age, the time that is left, its renewals and its uses; and once more changes nothing."""
    one, other = make_table(clock), make_table(clock)
    pin(one, A, "x", ttl=10.0, uses=3)
    clock.now += 4
    one.renew(A, STARTED, 20.0)
    use(one, A, b"1")
    clock.now += 1
    for _ in range(2):
        assert merge_record(other, record(one))
        assert record(other) == record(one)
    assert other.expires_in_s(A, STARTED) == 19.0
    assert other.stats().live_leases == 1


def test_an_end_beats_a_live_lease_whatever_comes_first(clock: Clock) -> None:
    """A record that comes after the end, or from a shard that has not heard of it, brings nothing back."""
    one, other = make_table(clock), make_table(clock)
    pin(one, A, "x")
    late = record(one)
    merge_record(other, late)
    one.release(A, ME)
    clock.now += 3
    assert merge_end(other, end_record(one))
    assert not merge_end(other, end_record(one))
    assert not merge_record(other, late)
    assert end_record(other) == end_record(one)
    assert (end_record_of(one, B), record_of(one, A)) == (None, None)


def test_a_renewal_that_came_in_time_elsewhere_counts_though_the_time_is_over_here(clock: Clock) -> None:
    """Nobody has swept yet, and the record says that the lease lives on."""
    one, other = make_table(clock), make_table(clock)
    for table in (one, other):
        pin(table, A, "x", ttl=5.0)
    clock.now += 4
    one.renew(A, STARTED, 10.0)
    clock.now += 2
    assert merge_record(other, record(one))
    assert other.expires_in_s(A, STARTED) == 8.0


@pytest.mark.parametrize("renewed", [True, False])
def test_copies_from_elsewhere_take_the_place_of_what_was_here(clock: Clock, renewed: bool) -> None:
    """A lease that became durable elsewhere has the other's copies here; but not one whose time is over."""
    one, other = make_table(clock), make_table(clock)
    for table in (one, other):
        pin(table, A, "x", ttl=5.0)
    clock.now += 4
    if renewed:
        one.renew(A, STARTED, 10.0)
    one.replace(A, ["copy"], [b"copy owner"], one.live[A].terms._replace(durable="{}"))
    sent = record(one)
    clock.now += 2
    assert merge_record(other, sent)
    assert other.items_of(A) == (("copy",) if renewed else ())
    if renewed:
        assert other.live[A].terms.durable == "{}"


def test_an_end_remembers_the_use_that_it_came_by(clock: Clock) -> None:
    """Here and on other replicas that receive it, so that nobody is refused what was granted to himself."""
    one, other = make_table(clock), make_table(clock)
    for lease, take in ((A, True), (B, False)):
        pin(one, lease, "x", uses=1)
        use(one, lease, b"mine", take=take)
        merge_end(other, end_record(one, lease))
        for table in (one, other):
            assert [granted(table, lease, each) for each in (b"mine", b"another's", b"")] == [True, False, False]
    one.release(C, ME)
    assert not granted(one, C, b"")


@pytest.mark.parametrize(("ttl", "other", "longest"), [(10.0, 20.0, 20.0), (20.0, 10.0, 20.0), (None, 10.0, None)])
def test_two_renewals_of_one_number_merge_to_the_longer(
    clock: Clock, ttl: float | None, other: float | None, longest: float | None
) -> None:
    """Each replica may count one while the other is down; whatever is merged first, both end with the same time."""
    tables = [make_table(clock), make_table(clock)]
    for table, wanted in zip(tables, (ttl, other), strict=True):
        pin(table, A, "x", ttl=5.0)
        assert table.renew(A, STARTED, wanted).number == 1
    for table, peer in (tables, tables[::-1]):
        assert merge_record(table, record(peer))
        assert merge_record(table, record(peer))
    assert [table.expires_in_s(A, STARTED) for table in tables] == [longest, longest]


def test_a_renewal_and_a_keepalives_of_one_number_merge_to_the_longer(clock: Clock) -> None:
    """Each replica may count one while the other is down. The ttl in the terms may be the same: what they gave decides."""
    tables = [make_table(clock), make_table(clock)]
    for table in tables:
        pin(table, A, "x", ttl=60.0)
    clock.now += 30
    assert tables[0].renew(A, STARTED, 60.0).number == 1
    assert tables[1].renew(A, STARTED, 90.0, lengthens=True).number == 1
    for table, peer in (tables, tables[::-1], tables):
        assert merge_record(table, record(peer))
    assert [table.expires_in_s(A, STARTED) for table in tables] == [90.0, 90.0]
    assert [table.live[A].terms.ttl for table in tables] == [60.0, 60.0]


def test_an_end_remembers_the_uses_before_the_last_one(clock: Clock) -> None:
    """One that was granted by the first shard is granted by the second, even if it hears first that another was the last."""
    first, second = make_table(clock), make_table(clock)
    for table in (first, second):
        pin(table, A, "x", uses=2)
    for name in (b"mine", b"another's"):
        use(first, A, name)
    merge_end(second, end_record(first))
    assert [granted(second, A, name) for name in (b"mine", b"another's", b"a third")] == [True, True, False]


def test_uses_that_two_shards_granted_in_all_too_many_are_good_for_nothing_more(clock: Clock) -> None:
    """Each granted some while the other was down: what one of them granted is not confirmed by the other."""
    first, second = make_table(clock), make_table(clock)
    for table, names in ((first, (b"1", b"2")), (second, (b"3",))):
        pin(table, A, "x", uses=2)
        for name in names:
            use(table, A, name)
    merge_end(second, end_record(first))
    assert not any(granted(second, A, name) for name in (b"1", b"2", b"3"))
    assert all(granted(first, A, name) for name in (b"1", b"2"))


def test_uses_that_two_shards_granted_add_up_to_the_end(clock: Clock) -> None:
    """One use on each, of two in all: whoever merges the other's record ends the lease."""
    first, second = make_table(clock), make_table(clock)
    for table, name in ((first, b"1"), (second, b"2")):
        pin(table, A, "x", uses=2)
        use(table, A, name)
    assert merge_record(second, record(first))
    assert end_record(second).how == "used_up"
    assert all(granted(second, A, name) for name in (b"1", b"2"))
    assert end_record(second).terms == Terms(uses=2)

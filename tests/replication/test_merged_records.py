"""Records merge: whatever shards have done apart, all that merge the same records agree, in whatever order those come.

Hypothesis has three shards do things with one lease while they can't hear each other. Each then says what it knows; fresh shards
merge that in different orders, some of it twice.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_refs.errors import SafeRefsError
from safe_refs.registry import unspent
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.wire import GiveBackRow
from safe_refs.replication.records import (
    EndRecord,
    Record,
    end_record_of,
    merge_end,
    merge_record,
    record_of,
)
from tests.support.rules import ME, STARTED, A, Clock, make_table, pin

TTL_S = 5.0
DEEDS = st.one_of(
    st.tuples(st.just("renew"), st.sampled_from([1.0, 7.0, 20.0, None])),
    st.tuples(st.just("lengthen"), st.sampled_from([7.0, 20.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 6.0])),
    st.tuples(st.sampled_from(["use", "take", "back"]), st.sampled_from([b"1", b"2"])),
    st.tuples(st.just("release"), st.none()),
)
SHARDS = st.lists(st.lists(DEEDS, max_size=4), min_size=2, max_size=3)


def table_of(clock: Clock) -> LeaseTable[str]:
    return make_table(clock, alone=False)


def do(table: LeaseTable[str], clock: Clock, what: str, how: Any) -> None:
    """One thing that happens at one shard; what it refuses, it refuses."""
    with suppress(SafeRefsError):
        if what == "renew":
            table.renew(A, STARTED, how)
        elif what == "lengthen":
            table.renew(A, STARTED, how, lengthens=True)
        elif what == "wait":
            clock.now += how
            table.expire()
        elif what == "release":
            table.release(A, ME)
        elif what == "back":
            unspent.give_back(table, GiveBackRow(A, how, True, 1, ME, b""), ["x"], [b"o"])
        else:
            table.resolve(A, STARTED, slot=None, take=what == "take", origin=ME, use=how)


def knows(table: LeaseTable[str]) -> Record | EndRecord:
    found = record_of(table, A) or end_record_of(table, A)
    assert found is not None
    return found


def merge(table: LeaseTable[str], said: Record | EndRecord) -> None:
    if isinstance(said, Record):
        merge_record(table, said)
    else:
        merge_end(table, said)


def state(table: LeaseTable[str]) -> tuple[Any, ...]:
    """What shards have to agree about."""
    held = table.live.get(A)
    if held is None:
        return ("ended",)
    # Not when it expires: of two equal renewals, which each counted at its own time, each keeps its own.
    return "live", held.used, held.returned, held.time


def apart(clock: Clock, shards: list[list[tuple[str, Any]]]) -> list[Record | EndRecord]:
    """What each shard says in the end, after it was alone with a lease that all had; of all of them the time is the same."""
    found, begun, latest = [], clock.now, clock.now
    for deeds in shards:
        clock.now = begun
        table = table_of(clock)
        pin(table, A, "x", ttl=TTL_S, uses=2)
        for what, how in deeds:
            do(table, clock, what, how)
        latest = max(latest, clock.now)
        found.append(table)
    clock.now = latest
    return [knows(table) for table in found]


@settings(max_examples=300, deadline=None)
@given(SHARDS)
def test_records_merge_in_any_order_and_any_number_of_times(shards: list[list[tuple[str, Any]]]) -> None:
    """All that have merged the same records twice agree; and a third time changes nothing."""
    clock = Clock()
    said = apart(clock, shards)
    states = set()
    for order in permutations(said):
        table = table_of(clock)
        for each in (*order, *order):
            merge(table, each)
        states.add(state(table))
        for each in order:
            merge(table, each)
        assert state(table) in states
    assert len(states) == 1


@settings(max_examples=300, deadline=None)
@given(SHARDS)
def test_what_a_shard_passes_on_is_as_good_as_what_it_was_told(shards: list[list[tuple[str, Any]]]) -> None:
    """Whoever hears all of it from one that has merged it agrees with that one."""
    clock = Clock()
    table, other = table_of(clock), table_of(clock)
    said = apart(clock, shards)
    for each in (*said, *said):
        merge(table, each)
    merge(other, knows(table))
    assert state(other) == state(table)


@settings(max_examples=300, deadline=None)
@given(st.lists(DEEDS, max_size=4).filter(lambda deeds: all(what != "release" for what, _ in deeds)))
def test_an_end_by_time_does_not_beat_a_later_renewal(deeds: list[tuple[str, Any]]) -> None:
    """Whatever else one shard did before its time was over: it agrees that the lease lives, unless it was used up or taken."""
    clock = Clock()
    ended, renewed = table_of(clock), table_of(clock)
    for table in (ended, renewed):
        pin(table, A, "x", ttl=TTL_S, uses=2)
    for _ in range(9):
        renewed.renew(A, STARTED, 1000.0)
    for what, how in deeds:
        if what not in ("renew", "lengthen"):
            do(ended, clock, what, how)
    clock.now += TTL_S
    ended.expire()
    before = end_record_of(ended, A)
    assert before is not None
    late = before.revocable
    is_spent = late is None or bool(late.takes) or len(late.used) >= 2
    sent = record_of(renewed, A)
    assert sent is not None
    assert merge_record(ended, sent) == (not is_spent)
    merge(renewed, before)
    assert (A in ended.live, A in renewed.live) == (not is_spent, not is_spent)


@pytest.mark.parametrize("first", ["record", "end"])
def test_the_figures_do_not_count_an_end_that_was_void(first: str) -> None:
    """A lease that lives again, as it was renewed elsewhere, has not expired, and did not begin twice."""
    clock = Clock()
    ended, renewed = table_of(clock), table_of(clock)
    for table in (ended, renewed):
        pin(table, A, "x", ttl=TTL_S)
    renewed.renew(A, STARTED, 1000.0)
    clock.now += TTL_S
    ended.expire()
    assert ended.stats().expired == 1
    sent, end = knows(renewed), knows(ended)
    for said, table in ((sent, ended), (end, renewed))[:: 1 if first == "record" else -1]:
        merge(table, said)
    for table in (ended, renewed):
        figures = table.stats()
        assert (figures.live_leases, figures.pinned, figures.expired, figures.tombstones) == (1, 1, 0, 0)
        assert table.expires_in_s(A, STARTED) == 995.0


def test_a_release_of_what_had_expired_is_final() -> None:
    """Also where another shard had renewed it: that one ends it when it hears of it, and it never lives again here."""
    clock = Clock()
    ended, renewed = table_of(clock), table_of(clock)
    for table in (ended, renewed):
        pin(table, A, "x", ttl=TTL_S)
    renewed.renew(A, STARTED, 1000.0)
    clock.now += TTL_S
    ended.expire()
    assert ended.release(A, ME) == 0
    assert not merge_record(ended, knows(renewed))  # type: ignore[arg-type] # it is live
    merge(renewed, knows(ended))
    assert (A in ended.live, A in renewed.live) == (False, False)

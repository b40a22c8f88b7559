"""Live leases that are chosen by what is known of them, and ended, without Ray. The clock is the test's."""

from __future__ import annotations

import pickle

import pytest

from safe_refs.errors import LeaseReleasedError
from safe_refs.registry import steps, unspent
from safe_refs.registry.hooks import Parts
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.listing import page
from safe_refs.registry.records import Query, Terms
from safe_refs.registry.wire import GiveBackRow, ReleaseWhereCall
from tests.support.rules import ME, STARTED, A, B, Clock, make_table, pin, resolve


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> LeaseTable[str]:
    return make_table(clock)


def released(table: LeaseTable[str], query: Query, *, dry_run: bool = False) -> list[str]:
    """End what a query chooses, in pages; the short ids of what that ended, in order."""
    found: list[str] = []
    while True:
        marks, after = steps.release_where(table, Parts(), ReleaseWhereCall(0, query, ME, dry_run))
        found += [mark[:4].hex() for mark in marks]
        if after is None:
            return found
        query = query._replace(after=after)


def test_leases_can_be_ended_by_what_is_known_of_them(table: LeaseTable[str], clock: Clock) -> None:
    """By label, job and age, all together, a page at a time; a dry run ends none of them. Who asks later learns who ended them."""
    other = ME._replace(job="02000000")
    for number in range(7):
        terms = Terms(label="old" if number < 4 else "new", ttl=3.0 if number == 2 else None)
        table.pin(bytes([number]) * 16, ["x"], [b"o"], terms, other if number == 1 else ME)
        clock.now += 1
    old = ["00000000", "01010101", "03030303"]  # the time of one is over, and nobody has swept
    assert released(table, Query(label="old", limit=2), dry_run=True) == old
    assert table.stats().live_leases == 7
    assert released(table, Query(label="old", job="02000000", min_age_s=6.1)) == []
    assert released(table, Query(label="old", job="02000000", min_age_s=6)) == ["01010101"]
    assert released(table, Query(min_age_s=3, limit=1)) == ["00000000", "03030303", "04040404"]
    assert released(table, Query(label="old")) == []
    with pytest.raises(LeaseReleasedError, match=r"by pid 4711 on node abababab, job 01000000"):
        resolve(table, A)
    assert (table.stats().released, table.stats().live_leases) == (4, 3)  # and the one whose time is over


@pytest.mark.parametrize("take", [False, True])
def test_one_that_a_use_has_ended_does_not_live_again(table: LeaseTable[str], take: bool) -> None:
    """A consumer may be at work, and give the use back later. It counts nothing, as it had ended; a dry run leaves it alone."""
    for lease, label in ((A, "wanted"), (B, "other")):
        pin(table, lease, "x", uses=None if take else 1, label=label)
        table.resolve(lease, STARTED, slot=None, take=take, origin=ME, use=b"use")
    assert released(table, Query(label="wanted"), dry_run=True) == []
    assert table.tombstones.revocable(A) is not None
    assert released(table, Query(label="wanted")) == []
    backs = [unspent.give_back(table, GiveBackRow(lease, b"use", take, 1, ME, b""), ["x"], [b"o"]) for lease in (A, B)]
    assert backs == [None, True]
    assert list(table.live) == [B]


def test_a_lease_can_be_ended_by_its_row_in_a_listing(table: LeaseTable[str]) -> None:
    """By a mark that is the short id and a hash: of leases with one short id the right one ends, and once only."""
    alike = [b"same" + bytes([number]) * 12 for number in range(3)]
    for lease in alike:
        pin(table, lease, "x")
    rows = page(table, Query()).infos
    assert {row.short_id for row in rows} == {b"same".hex()}
    chosen = Query(marks=frozenset({rows[1]._mark}))
    assert len(released(table, chosen, dry_run=True)) == 1
    assert len(released(table, chosen)) == 1
    assert list(table.live) == [alike[0], alike[2]]
    assert released(table, chosen) == []
    assert all(lease not in pickle.dumps(rows) and lease.hex() not in repr(rows) for lease in alike)

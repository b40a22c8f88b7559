"""Where leases live, and how a registry's topology changes, without Ray."""

from __future__ import annotations

from collections import Counter

import pytest

from safe_refs.replication.rules import Rules
from safe_refs.replication.topology import Topology, completed, grown
from tests.support.rules import Clock, make_table

LEASES = [number.to_bytes(16, "big") for number in range(2000)]


@pytest.mark.parametrize(("shards", "replicas"), [(1, 1), (3, 1), (3, 2), (5, 3)])
def test_leases_spread_evenly_over_distinct_holders(shards: int, replicas: int) -> None:
    """Each shard holds its share, and decides about its share."""
    topology = Topology(1, shards, replicas)
    holders = [topology.holders(lease) for lease in LEASES]
    assert all(len(set(each)) == replicas for each in holders)
    held = Counter(shard for each in holders for shard in each)
    decided = Counter(each[0] for each in holders)
    for shard in range(shards):
        assert abs(held[shard] - len(LEASES) * replicas / shards) < len(LEASES) * replicas / shards / 5
        assert abs(decided[shard] - len(LEASES) / shards) < len(LEASES) / shards / 5


def test_a_growth_moves_only_what_new_shards_take_over_and_asks_old_holders_first() -> None:
    """Who looks for a lease meanwhile asks all shards that may have it."""
    before = Topology(1, shards=3, replicas=2)
    growing = grown(before, 5)
    assert growing == Topology(2, shards=5, replicas=2, before=3)
    for lease in LEASES[:200]:
        old, new = before.holders(lease), growing.holders(lease)
        assert all(shard in old or shard >= 3 for shard in new)
        assert growing.everywhere(lease)[:2] == old
        assert set(growing.everywhere(lease)) == {*old, *new}
    assert Topology.from_bytes(growing.to_bytes()) == growing


def test_two_growths_at_once_come_one_after_the_other_each_with_its_own_version() -> None:
    """Shard 0 decides: the second waits until the first is over. So no version belongs to two topologies."""
    first = Topology(7, shards=2, replicas=2)
    growing = grown(first, 3)
    assert growing is not None
    assert grown(growing, 4) is None
    done = completed(growing)
    assert done == Topology(9, shards=3, replicas=2)
    assert grown(done, 3) is None
    again = grown(done, 4)
    assert again is not None
    assert [each.version for each in (first, growing, done, again)] == [7, 8, 9, 10]


def test_a_growth_is_over_when_the_last_of_the_old_shards_has_moved_its_leases() -> None:
    """Shard 0 counts them. One that reports twice, or of another growth, changes nothing; after a crash they report again."""
    clock = Clock()
    rules = Rules(0, Topology(1, shards=2, replicas=1), make_table(clock), False, clock)
    growing = rules.grow(3)
    assert growing is not None
    assert rules.take_topology(growing)
    assert rules.grow(4) is None
    assert [rules.has_moved(shard, growing.version) for shard in (1, 1)] == [None, None]
    back = Rules(0, growing, make_table(clock), True, clock)
    assert back.has_moved(0, growing.version) is None
    assert rules.has_moved(0, growing.version - 1) is None
    assert rules.has_moved(0, growing.version) == back.has_moved(1, growing.version) == completed(growing)
    assert rules.take_topology(completed(growing))
    assert rules.has_moved(1, growing.version) is None
    assert rules.grow(4) is not None


def test_who_goes_by_another_topology_looks_again() -> None:
    """A shard takes a topology only if it is newer than its own; 0 is no version."""
    clock = Clock()
    rules = Rules(0, Topology(3, shards=2), make_table(clock), False, clock)
    assert [rules.is_stale(version) for version in (0, 2, 3, 4)] == [False, True, False, True]
    assert not rules.take_topology(None)
    assert not rules.take_topology(Topology(3, shards=9))
    assert rules.topology.shards == 2
    assert rules.take_topology(Topology(4, shards=9))
    assert rules.is_stale(3)

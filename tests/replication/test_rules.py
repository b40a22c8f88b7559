"""What replicas owe each other, without Ray: the rules of `replication`, one at a time. The clock is the test's."""

from __future__ import annotations

import pytest
from safe_refs.registry.replication import Replica
from safe_refs.registry.topology import Topology

from safe_refs import _ray
from safe_refs.registry import contact, releasing
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.shard import STALE
from tests.support.rules import ME, A, B, C, Clock, make_table, pin

TOPOLOGY = Topology(version=1, shards=2, replicas=2)


def make(shard: int, clock: Clock, restarted: bool = False) -> tuple[LeaseTable[str], Replica[str]]:
    table = make_table(clock)
    return table, Replica(shard, TOPOLOGY, table, restarted, clock)


def tell(one: Replica[str], other: Replica[str]) -> list[bytes]:
    """Deliver all news of one shard to the other; of which leases there were some."""
    news = one.take_news(other.shard, 100)
    other.receive(one.parcel(news))
    return news


def test_a_pin_that_one_shard_lost_and_the_other_got_late_reaches_both() -> None:
    """A shard carries out a pin, crashes, comes back and asks; only then the pin arrives at the other."""
    clock = Clock()
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    back.receive(peer.parcel(peer.shared_with(0)))
    back.hear(1, peer.knows_of(0))
    pin(two, A, "x")
    assert peer.owe_returned([A])
    assert tell(peer, back) == [A]
    assert one.items_of(A) == ("x",)
    assert not back.owe_returned([A])


def test_an_end_that_comes_late_reaches_who_came_back_from_who_told_it() -> None:
    """A shard ends a lease, crashes before its news arrive, and is told by the other that the lease lives."""
    clock = Clock()
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    pin(two, A, "x")
    back.receive(peer.parcel(peer.shared_with(0)))
    back.hear(1, peer.knows_of(0))
    gone, crashed = make(0, clock)
    gone.release(A, ME)
    peer.receive(crashed.parcel([A]))
    assert tell(peer, back) == [A]
    assert one.items_of(A) == ()
    peer.receive(crashed.parcel([A]))
    assert tell(peer, back) == tell(back, peer) == []


def test_a_lease_that_has_moved_does_not_come_back_with_news() -> None:
    """The registry grows; a shard that has let go of a lease hears of its use, and would be told of its end no more."""
    grown = Topology(version=2, shards=3, replicas=1, before=1)
    clock = Clock()
    moved = next(lease for lease in (A, B, C) if grown.holders(lease) != (0,))
    (one, old), (two, new) = make(0, clock), make(grown.holders(moved)[0], clock)
    pin(one, moved, "x", uses=2)
    old.topology = new.topology = grown
    assert old.misplaced() == [moved]
    new.receive(old.parcel([moved]))
    assert old.drop_moved([moved]) == 1
    two.resolve(moved, two.epoch, two.generation, slot=None, take=False, origin=ME, use=b"1")
    assert new.owe([moved])
    assert tell(new, old) == [moved]
    assert (one.items_of(moved), two.items_of(moved)) == ((), ("x",))


def test_a_new_shard_takes_what_it_is_given_before_it_has_heard_of_the_growth() -> None:
    """It was started by the growth, and knows the topology of before, in which there is no such shard."""
    before, grown = Topology(version=1), Topology(version=2, shards=3, replicas=1, before=1)
    clock = Clock()
    moved = next(lease for lease in (A, B, C) if grown.holders(lease) != (0,))
    (one, old), (two, new) = make(0, clock), make(grown.holders(moved)[0], clock)
    old.topology, new.topology = grown, before
    pin(one, moved, "x")
    assert new.receive(old.parcel([moved])) == [moved]
    assert two.items_of(moved) == ("x",)


def test_a_shard_that_recovers_after_a_growth_keeps_nothing_that_has_moved() -> None:
    """It takes back all that it held while others still move, and hears only then that the growth is over."""
    grown = Topology(version=2, shards=4, replicas=2, before=2)
    clock = Clock()
    moved = next(lease for lease in (bytes([n]) * 16 for n in range(99)) if 0 not in grown.holders(lease))
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    back.topology = peer.topology = grown
    pin(two, moved, "x")
    back.receive(peer.parcel(peer.shared_with(0)))
    assert one.items_of(moved) == ("x",)
    assert back.drop_strays() == 0
    back.topology = grown._replace(version=3, before=0)
    assert back.drop_strays() == 1
    assert one.items_of(moved) == ()


def test_who_never_crashed_or_long_ago_is_told_nothing_twice() -> None:
    """What is pinned reaches all holders by itself, so that it costs no news when all is well."""
    clock = Clock()
    (_, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    for lease in (A, B):
        pin(two, lease, "x")
    assert not peer.owe_returned([A])
    assert sorted(peer.shared_with(0)) == [A, B]
    assert peer.owe_returned([B])
    assert tell(peer, back) == [B]
    clock.now += 601.0
    pin(two, C, "x")
    assert not peer.owe_returned([C])


def test_an_end_counts_though_another_shard_says_that_the_registry_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old holder ends a lease; the new one has heard that the growth is over, and has the lease's end as news already."""
    moved = next(
        lease for lease in (bytes([n]) * 16 for n in range(99)) if Topology(1, shards=3).holders(lease) == (2,)
    )
    topologies = iter([Topology(2, shards=3, before=1), Topology(3, shards=3)])
    replies = iter([{0: [True], 2: STALE}, {2: [False]}])
    monkeypatch.setattr(_ray, "connection", lambda: _ray.Connection(b"c" * 28, "01000000"))
    monkeypatch.setattr(contact, "topology", lambda *_, **__: next(topologies))
    monkeypatch.setattr(contact, "ask_each", lambda *_, **__: next(replies))
    assert releasing.release_ids("any", [([moved], ME)], 5.0) == {moved}

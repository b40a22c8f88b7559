"""What replicas owe each other, without Ray: the rules of `replication`, one at a time. The clock is the test's."""

from __future__ import annotations

from safe_refs.errors import LeaseNotFoundError, LeaseReleasedError
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Renewal, Terms
from safe_refs.registry.wire import Granted, NotNow
from safe_refs.replication.rules import Rules
from safe_refs.replication.topology import Topology, completed
from tests.support.rules import ME, STARTED, A, B, C, Clock, make_table, pin

TOPOLOGY = Topology(version=1, shards=2, replicas=2)


def make(shard: int, clock: Clock, restarted: bool = False) -> tuple[LeaseTable[str], Rules[str]]:
    table = make_table(clock)
    return table, Rules(shard, TOPOLOGY, table, restarted, clock)


def tell(one: Rules[str], other: Rules[str]) -> list[bytes]:
    """Deliver all news of one shard to the other; of which leases there were some."""
    news = one.take_news(other.shard, 100)
    other.received(one.records(news))
    return news


def recover(back: Rules[str], peer: Rules[str]) -> None:
    """A shard that came back takes from the only other what they share."""
    leases, complete = peer.shared_with(back.shard)
    back.received(peer.records(leases))
    back.answered(peer.shard, complete)
    assert not back.recovered()
    back.end_recovery(None)


def test_a_pin_that_one_shard_lost_and_the_other_got_late_reaches_both() -> None:
    """A shard carries out a pin, crashes, comes back and asks; only then the pin arrives at the other."""
    clock = Clock()
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    recover(back, peer)
    pin(two, A, "x")
    assert peer.pinned(A)
    assert tell(peer, back) == [A]
    assert one.items_of(A) == ("x",)
    assert not back.pinned(A)


def test_an_end_that_comes_late_reaches_who_came_back_from_who_knows_it() -> None:
    """A shard ends a lease, crashes before its news arrive, and is told by the other that the lease lives."""
    clock = Clock()
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    pin(two, A, "x")
    recover(back, peer)
    gone, crashed = make(0, clock)
    gone.release(A, ME)
    peer.received(crashed.records([A]))
    assert tell(peer, back) == [A]
    assert one.items_of(A) == ()
    peer.received(crashed.records([A]))
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
    new.received(old.records([moved]))
    assert old.drop_moved([moved]) == 1
    two.resolve(moved, STARTED, slot=None, take=False, origin=ME, use=b"1")
    assert new.changed([moved])
    assert tell(new, old) == [moved]
    assert (one.items_of(moved), two.items_of(moved)) == ((), ("x",))


def test_a_new_shard_takes_what_it_is_given_before_it_knows_of_the_growth() -> None:
    """It was started by the growth, and knows the topology of before, in which there is no such shard."""
    before, grown = Topology(version=1), Topology(version=2, shards=3, replicas=1, before=1)
    clock = Clock()
    moved = next(lease for lease in (A, B, C) if grown.holders(lease) != (0,))
    (one, old), (two, new) = make(0, clock), make(grown.holders(moved)[0], clock)
    old.topology, new.topology = grown, before
    pin(one, moved, "x")
    assert new.received(old.records([moved])) == [moved]
    assert two.items_of(moved) == ("x",)


def test_a_shard_that_recovers_after_a_growth_keeps_nothing_that_has_moved() -> None:
    """It takes back all that it held while others still move, and hears only then that the growth is over."""
    grown = Topology(version=2, shards=4, replicas=2, before=2)
    clock = Clock()
    moved = next(lease for lease in (bytes([n]) * 16 for n in range(99)) if 0 not in grown.holders(lease))
    (one, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    back.topology = peer.topology = grown
    pin(two, moved, "x")
    leases, complete = peer.shared_with(0)
    back.received(peer.records(leases))
    assert one.items_of(moved) == ("x",)
    for shard in back.unheard:
        back.answered(shard, complete)
    assert not back.recovered()
    back.topology = grown._replace(version=3, before=0)
    assert back.end_recovery(None) == 1
    assert one.items_of(moved) == ()


def test_who_never_crashed_or_long_ago_gets_nothing_twice() -> None:
    """What is pinned reaches all holders by itself, so that it costs no news when all is well."""
    clock = Clock()
    (_, back), (two, peer) = make(0, clock, restarted=True), make(1, clock)
    for lease in (A, B):
        pin(two, lease, "x")
    assert not peer.pinned(A)
    assert sorted(peer.shared_with(0)[0]) == [A, B]
    assert peer.pinned(B)
    assert tell(peer, back) == [B]
    clock.now += 601.0
    pin(two, C, "x")
    assert not peer.pinned(C)


def test_what_a_client_pins_is_news_for_a_shard_that_came_back_and_what_a_shard_sends_is_not() -> None:
    """Otherwise two shards that both came back would send each other the same lease for ever."""
    clock = Clock()
    _, back = make(0, clock, restarted=True)
    two, peer = make(1, clock)
    recover(back, peer)
    back.shared_with(1)
    pin(two, A, "x")
    assert peer.pinned(A)
    assert tell(peer, back) == [A]
    assert not back.pinned(A, from_shard=True)
    assert tell(back, peer) == [A]  # as `received` has learned something that shard 1 may not know
    assert tell(peer, back) == tell(back, peer) == []


def test_a_shard_that_recovers_says_so_in_place_of_not_found_until_it_answers_for_itself() -> None:
    """Also between the last answer of the others and the new epoch, if there is one; an end that it knows of it says at all times."""
    clock = Clock()
    one, back = make(0, clock, restarted=True)
    unknown, ended = LeaseNotFoundError.of("a", "r"), LeaseReleasedError.of("a", "r", 1.0, "me")
    assert back.excuse(A, b"use", unknown) is NotNow.RECOVERING
    assert back.excuse(A, b"use", ended) is None
    assert back.recovered()
    assert back.excuse(A, b"use", unknown) is NotNow.RECOVERING
    assert back.end_recovery(Identity(b"epoch..2", 4)) == 0
    assert back.excuse(A, b"use", unknown) is None
    assert one.identity == Identity(b"epoch..2", 4)


def test_the_use_that_ended_a_lease_is_granted_by_who_knew_of_its_end_first() -> None:
    """What another holder granted is not refused here."""
    clock = Clock()
    (one, granting), (_, asked) = make(0, clock), make(1, clock)
    pin(one, A, "x", uses=1)
    one.resolve(A, STARTED, slot=None, take=False, origin=ME, use=b"mine")
    asked.received(granting.records([A]))
    refusal = LeaseReleasedError.of("a", "r", 1.0, "me")
    assert asked.excuse(A, b"mine", refusal) == Granted(refusal)
    assert asked.excuse(A, b"another's", refusal) is None


def test_a_lease_that_ends_as_it_arrives_is_not_new() -> None:
    """Its uses on both shards are all that it had: nobody is told of a lease that is not there."""
    clock = Clock()
    (one, _), (two, rules) = make(0, clock), make(1, clock)
    for table, use in ((one, b"1"), (two, b"2")):
        pin(table, A, "x", uses=2)
        table.resolve(A, STARTED, slot=None, take=False, origin=ME, use=use)
    sent = Rules(0, TOPOLOGY, one, False, clock).records([A])
    two.let_go(A)
    sent = sent._replace(live=[sent.live[0]._replace(used=frozenset((b"1", b"2")))])
    assert rules.received(sent) == []
    assert A in two.tombstones


def test_own_copies_are_news_for_who_came_back_and_while_the_registry_grows() -> None:
    """Other holders make copies of their own, and don't want these."""
    clock = Clock()
    table, rules = make(0, clock)
    pin(table, A, "x")
    assert not rules.replaced(A)
    rules.shared_with(1)
    assert rules.replaced(A)
    assert rules.take_news(1, 10) == [A]
    table, rules = make(0, clock)
    rules.topology = Topology(2, shards=4, replicas=2, before=2)
    assert rules.replaced(A)


def test_what_is_lost_is_asked_back_from_the_other_holders() -> None:
    """Each of them once, for all leases; and it owes them from then on."""
    clock = Clock()
    _, rules = make(0, clock)
    other, peer = make(1, clock)
    assert rules.lost([A, B]) == {1: [A, B]}
    pin(other, A, "x")
    peer.missed([A, B], [0])
    assert peer.owing() == [0]
    assert tell(peer, rules) == [A, B]


def test_a_newer_identity_comes_with_records_and_an_older_one_does_not() -> None:
    """A shard that lost leases has begun a new epoch; the others learn of it with its news."""
    clock = Clock()
    table, rules = make(0, clock)
    rules.received(rules.records([]), Identity(b"epoch..0", 2))
    assert table.identity == STARTED
    rules.received(rules.records([]), Identity(b"epoch..2", 4))
    assert table.identity == Identity(b"epoch..2", 4)


def test_a_renewal_that_comes_a_moment_after_the_end_of_the_old_ttl_counts() -> None:
    """One shard renews in time; the other takes the record after the old deadline, before its clock has ended the lease."""
    clock = Clock()
    (one, here), (two, other) = make(0, clock), make(1, clock)
    for table in (one, two):
        table.begin(A, ["x"], [b"o"], Terms(ttl=1.0), ME)
        table.set_time(A, Renewal(0, 1.0, 1.0), 1.0)
    clock.now += 0.9
    one.renew(A, one.identity, 10.0)
    clock.now += 0.11
    other.received(here.records([A]))
    assert two.items_of(A) == ("x",)


def test_a_lease_that_came_back_during_a_growth_goes_where_it_belongs_when_that_ends() -> None:
    """A shard has moved all, crashes, gets all back, and the growth ends before it has moved them again."""
    clock = Clock()
    growing = Topology(version=7, shards=4, replicas=2, before=2)
    leases = [bytes([number]) * 16 for number in range(40)]
    peers = make_table(clock)
    peer = Rules(0, growing, peers, False, clock)
    table = make_table(clock)
    back = Rules(1, growing, table, True, clock)
    for lease in leases:
        pin(peers, lease, "x")
    back.received(peer.records(leases))
    back.answered(0, True)
    back.recovered()
    assert back.end_recovery(None) == 0
    assert back.take_topology(completed(growing))
    theirs = [lease for lease in leases if 1 not in back.topology.holders(lease)]
    assert theirs
    assert back.drop_moved(list(table.live)) == len(theirs)
    assert set(table.live) == set(leases) - set(theirs)

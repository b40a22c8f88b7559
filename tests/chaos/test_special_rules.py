"""The ledger's rules for what is special: one replica, durable leases, actors, processes that leave, pins that nobody waited for."""

from __future__ import annotations

import pytest

from tests.chaos.judging import answer, figure, made
from tests.chaos.ledger import NEVER, Ledger, Payload, Process, Span
from tests.chaos.rules import JUST_LOADED, ONLY_COPY, ONLY_SHARD, Rules

LOST = answer("loads", "LeaseLostError")
GONE = answer("get", "ReferenceCountingAssertionError")


def test_one_replica_is_lost_with_its_shard_and_says_so(ledger: Ledger, payload: Payload) -> None:
    """With R = 1 a crash costs all leases; before one, none. It excuses no other error."""
    assert figure(ledger, payload, LOST, replicas=1) == "lost"
    ledger.releasing(payload, 20.0)
    assert figure(ledger, payload, answer("release"), replicas=1) == "early"
    ledger.shard_dying(15.0).ended = 16.0
    assert figure(ledger, payload, LOST, replicas=1) == ONLY_SHARD
    assert figure(ledger, payload, answer("release"), replicas=1) == ONLY_SHARD
    assert figure(ledger, payload, LOST) == "lost"
    assert figure(ledger, payload, answer("loads", "LeaseNotFoundError"), replicas=1) == "wrong"
    assert figure(ledger, payload, answer("loads", "OwnerGoneError"), replicas=1) == "early"


def test_with_one_replica_references_are_safe_a_second_after_the_load(ledger: Ledger, payload: Payload) -> None:
    """What was loaded less than a second before the only shard's crash may be gone; nothing else."""
    ledger.shard_dying(15.0).ended = 16.0
    assert figure(ledger, payload, GONE, replicas=1) == "lost"
    assert figure(ledger, payload, GONE, live_since=13.0, replicas=1) == "lost"
    assert figure(ledger, payload, GONE, live_since=14.0, replicas=1) == JUST_LOADED
    assert figure(ledger, payload, GONE, live_since=14.0) == "lost"
    forwarded = ledger.order(14.0, ledger.born("t2", "b.0", "b", "node 2"), sources=[payload], durable=True)
    not_copied = answer("dumps", "OwnerGoneError", at=15.5)
    assert figure(ledger, forwarded, not_copied, replicas=1) == JUST_LOADED
    assert figure(ledger, forwarded, not_copied) == "wrong"
    assert figure(ledger, payload, not_copied, replicas=1) == "wrong"


def test_a_reference_to_a_copy_is_safe_a_second_after_the_load(ledger: Ledger, owner: Process) -> None:
    """Whatever the number of replicas, as each has copies of its own; also where it was forwarded. The lease is safe at once."""
    payload = made(ledger, owner, durable=True)
    ledger.shard_dying(15.0).ended = 16.0
    assert figure(ledger, payload, GONE, live_since=13.0) == "lost"
    assert figure(ledger, payload, GONE, live_since=14.0) == JUST_LOADED
    assert figure(ledger, payload, LOST) == "lost"
    forwarded = ledger.order(14.0, ledger.born("t2", "b.0", "b", "node 2"), sources=[payload])
    ledger.made(forwarded, 14.5, b"forwarded")
    assert figure(ledger, forwarded, GONE) == JUST_LOADED


def test_durable_leases_outlive_their_maker(ledger: Ledger, owner: Process) -> None:
    """The death of its maker neither explains that a durable lease is gone, nor demands it."""
    payload = made(ledger, owner, durable=True)
    ledger.dying(12.0, job="a")
    assert figure(ledger, payload, answer("loads", "OwnerGoneError")) == "early"
    assert figure(ledger, payload, answer("get", "OwnerDiedError")) == "lost"
    assert figure(ledger, payload, answer("loads", at=300.0)) == ""


def test_a_copy_goes_with_its_node_and_the_lease_has_another(ledger: Ledger, owner: Process) -> None:
    """A reference to a copy dies with its replica's node, the lease doesn't; but with one replica there was one copy."""
    payload = made(ledger, owner, durable=True)
    ledger.lost_nodes["node 2"] = Span(15.0, 15.0)
    assert figure(ledger, payload, LOST) == "lost"
    assert figure(ledger, payload, LOST, replicas=1) == ONLY_COPY
    assert figure(ledger, payload, answer("loads", "OwnerGoneError")) == "early"
    assert figure(ledger, payload, answer("loads", "OwnerGoneError"), replicas=1) == ONLY_COPY
    forwarded = ledger.order(14.0, ledger.born("t2", "b.0", "b", "node 3"), sources=[payload])
    ledger.made(forwarded, 14.5, b"forwarded")
    assert figure(ledger, forwarded, answer("loads", "OwnerGoneError"), replicas=1) == ONLY_COPY
    assert figure(ledger, forwarded, answer("loads", "OwnerGoneError")) == "early"
    assert figure(ledger, payload, answer("get", "OwnerDiedError"), live_since=14.0) == ""
    assert figure(ledger, payload, answer("get", "OwnerDiedError", at=40.0)) == "lost"
    assert figure(ledger, payload, answer("get", "OwnerDiedError", at=40.0), live_since=35.0) == "lost"


@pytest.mark.parametrize("kind", ["actor", "async", "driver", "client"])
def test_a_lease_may_depend_on_who_has_borrowed(ledger: Ledger, payload: Payload, kind: str) -> None:
    """With threads of its own a borrower that is killed takes its leases along, until it has dropped its references."""
    borrower = ledger.born("t2", "b.0", "b", "node 2", kind)
    forwarded = ledger.order(12.0, borrower, sources=[payload])
    ledger.made(forwarded, 13.0, b"forwarded")
    ledger.had(borrower, forwarded, 13.0)
    copied = ledger.order(14.5, ledger.born("t3", "c.0", "c", "node 2"), sources=[forwarded], durable=True)
    not_copied = answer("dumps", "OwnerGoneError")
    for given in (LOST, GONE):
        assert figure(ledger, forwarded, given) == "lost"
    assert figure(ledger, copied, not_copied) == "wrong"
    ledger.dying(14.0, token="t2")  # noqa: S106 # a process's name, no secret
    for given in (LOST, GONE):
        assert figure(ledger, forwarded, given) == ("" if kind in ("async", "driver") else "lost")
        assert figure(ledger, payload, given) == "lost"
    assert figure(ledger, copied, not_copied) == ("" if kind in ("async", "driver") else "wrong")
    assert figure(ledger, forwarded, answer("loads", "LeaseNotFoundError")) == "wrong"
    assert figure(ledger, forwarded, GONE, live_since=12.5) == "lost"


@pytest.mark.parametrize("kind", ["actor", "async", "client"])
def test_what_is_forwarded_from_such_a_lease_depends_on_its_own_maker_too(
    ledger: Ledger, payload: Payload, kind: str
) -> None:
    """It can't report what the owner doesn't know of it: a Ray Client, say, is in between."""
    between, last = ledger.born("t2", "b.0", "b", "node 2", kind), ledger.born("t3", "c.0", "c", "node 2")
    forwarded = payload
    for at, maker in ((12.0, between), (13.0, last)):
        forwarded = ledger.order(at, maker, sources=[forwarded])
        ledger.made(forwarded, at + 0.5, b"forwarded")
        ledger.had(maker, forwarded, at + 0.5)
    assert figure(ledger, forwarded, LOST) == "lost"
    ledger.dying(14.0, token="t3")  # noqa: S106 # a process's name, no secret
    assert figure(ledger, forwarded, LOST) == ("lost" if kind == "actor" else "")


def test_nothing_depends_on_a_process_that_has_dropped_or_leaves_in_order(ledger: Ledger, payload: Payload) -> None:
    """A kill long after the drop costs nothing, but for what is still kept; nor does a `ray.shutdown()`."""
    for token, name in (("t2", "b.0"), ("t3", "c.0")):
        ledger.born(token, name, name[0], "node 2", "driver")
    first, second = ledger.processes["t2"], ledger.processes["t3"]
    forwarded = [ledger.order(12.0, each, sources=[payload]) for each in (first, second)]
    for each in forwarded:
        ledger.made(each, 13.0, b"forwarded")
        ledger.had(each.maker, each, 13.0)
    ledger.keeps(second, payload)
    ledger.dying(19.0, token="t2")  # noqa: S106 # a process's name, no secret
    ledger.leaving("t3", 19.0)
    assert figure(ledger, forwarded[0], LOST) == "lost"
    assert figure(ledger, forwarded[1], LOST) == "lost"
    second.left = False
    assert figure(ledger, forwarded[1], LOST) == ""


def test_a_lease_of_an_actors_handle_depends_on_who_has_borrowed_it(ledger: Ledger, owner: Process) -> None:
    """Also where a borrower of objects is anchored; and an actor is gone with its creator or its node."""
    payload = made(ledger, owner, actors=1)
    assert [each.is_actor for each in payload.objects] == [False, False, True]
    forwarded = ledger.order(12.0, ledger.born("t2", "b.0", "b", "node 2"), sources=[payload])
    ledger.made(forwarded, 13.0, b"forwarded")
    ledger.dying(14.0, token="t2")  # noqa: S106 # a process's name, no secret
    assert figure(ledger, forwarded, LOST) == ""
    died = answer("get", "ActorDiedError", slot=2)
    assert figure(ledger, payload, died) == "lost"
    ledger.lost_nodes["node 1"] = Span(15.0, 15.0)
    assert figure(ledger, payload, died) == ""
    assert figure(ledger, payload, answer("get", "ActorDiedError", slot=1)) == "wrong"
    methods = answer("get", "RayTaskError(RaySystemError)", slot=2)
    assert figure(ledger, payload, methods) == "wrong"
    ledger.dying(15.0, token="t1")  # noqa: S106 # a process's name, no secret
    assert figure(ledger, payload, methods) == ""


def test_a_pin_that_nobody_waited_for_may_never_begin(ledger: Ledger, owner: Process) -> None:
    """If its maker dies before it is acknowledged, or what slows it down takes longer than readers wait. Once flushed, it is."""
    payload = made(ledger, owner, waited=False)
    never = answer("loads", "LeaseNotFoundError")
    assert figure(ledger, payload, never) == "wrong"
    trouble = ledger.trouble(12.0, 19.0)
    assert figure(ledger, payload, never) == ""
    trouble.ended = 9.0
    ledger.dying(14.0, token="t1")  # noqa: S106 # a process's name, no secret
    assert figure(ledger, payload, never) == ""
    ledger.releasing(payload, 20.0)
    assert figure(ledger, payload, answer("release", at=20.0)) == "", "a release has nothing to end"
    assert figure(ledger, payload, LOST) == "lost"
    assert figure(ledger, payload, LOST, replicas=1) == "", (
        "another shard's generation was the last that the maker had heard of"
    )
    ledger.flushed(payload, 13.0)
    assert figure(ledger, payload, never) == "wrong"
    assert figure(ledger, payload, LOST, replicas=1) == "lost"


def test_a_release_may_overtake_a_pin_that_nobody_waited_for(ledger: Ledger, owner: Process) -> None:
    """Right after, and before a flush; it has nothing to end then."""
    payload = made(ledger, owner, waited=False)
    ledger.releasing(payload, 12.0)
    assert figure(ledger, payload, answer("release", at=12.0)) == ""
    assert figure(ledger, payload, answer("release", at=14.0)) == "early"
    ledger.flushed(payload, 11.5)
    assert figure(ledger, payload, answer("release", at=12.0)) == "early"


def test_who_leaves_is_refused_by_name(ledger: Ledger, payload: Payload) -> None:
    """Calls of safe_refs end with its own error; what plain Ray says in such a process is Ray's own matter."""
    assert figure(ledger, payload, answer("loads", "RegistryUnavailableError", leaving=True)) == ""
    assert figure(ledger, payload, answer("get", "RaySystemError", leaving=True)) == ""
    assert figure(ledger, payload, answer("loads", "RaySystemError", leaving=True)) == "wrong"
    assert figure(ledger, payload, answer("loads", "RegistryUnavailableError", leaving=True, call_s=41.0)) == "hung"


def test_a_forked_child_is_judged(ledger: Ledger, payload: Payload) -> None:
    """By what it was told, and how long that took."""
    assert figure(ledger, payload, answer("fork")) == ""
    assert figure(ledger, payload, answer("fork", "WrongForkError")) == "wrong"
    assert figure(ledger, payload, answer("fork", "HungForkError")) == "hung"


def test_what_a_killed_maker_of_a_durable_lease_has_left_ends_by_its_time(ledger: Ledger, owner: Process) -> None:
    """Its ttl, or the time that copies may take, whichever is longer."""
    payload = ledger.order(10.0, owner, 1, durable=True, ttl=5.0)
    ledger.broken_off(payload, 11.0)
    assert Rules(ledger).leaked([payload.number], 40.0) == []
    assert Rules(ledger).leaked([payload.number], 60.0) != []


def test_a_node_that_is_squeezed_may_lose_whom_it_likes(ledger: Ledger, payload: Payload) -> None:
    """From the squeeze on its processes may be dead, but need not be before the node has gone."""
    ledger.squeezing(15.0, "node 1")
    assert figure(ledger, payload, answer("loads", "OwnerGoneError")) == ""
    assert figure(ledger, payload, answer("loads", at=100.0)) == ""
    late = ledger.born("t9", "a.1", "a", "node 1")
    assert (late.dying_at, late.dead_at) == (15.0, NEVER)
    ledger.dying(100.0, node="node 1")
    assert figure(ledger, payload, answer("loads", at=110.0)) == ""
    assert figure(ledger, payload, answer("loads", at=140.0)) == "leaked"
    durable = made(ledger, ledger.born("t2", "b.0", "b", "node 2"), durable=True)
    assert figure(ledger, durable, answer("loads", "OwnerGoneError"), replicas=1) == ONLY_COPY


def test_a_pin_that_comes_late_has_its_time_from_then(ledger: Ledger, owner: Process) -> None:
    """The registry counts from when it gets it. Where nothing slows that down, or the maker has flushed, it has it."""
    rules = Rules(ledger)
    payload = made(ledger, owner, waited=False, ttl=5.0)
    assert rules.must_have_ended(payload, 20.0)
    ledger.trouble(9.0, 14.0)
    ledger.shard_pausing(13.0, 16.0)
    ledger.trouble(17.0, 40.0)
    assert not rules.must_have_ended(payload, 20.0)
    assert rules.must_have_ended(payload, 25.0)
    ledger.flushed(payload, 13.0)
    assert not rules.must_have_ended(payload, 20.0)
    assert rules.must_have_ended(payload, 22.0)

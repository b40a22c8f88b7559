"""A process with a fault calls our actors: each of these calls has ended an actor, or somebody else's leases."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import workers
from safe_refs.anchoring.relays import FOR_CLIENTS, Relays
from safe_refs.config import Limits
from safe_refs.durability import owner
from safe_refs.durability.part import Durability
from safe_refs.durability.wire import CopyCall, DurableCall, DurableRow
from safe_refs.registry.calls import Call
from safe_refs.registry.hooks import Loop
from safe_refs.registry.records import NO_TERMS, Identity, Query, Terms
from safe_refs.registry.shard import Shard, actor_name
from safe_refs.registry.wire import PinCall, PinRow, ReleaseCall, ReleaseWhereCall, RenewCall
from safe_refs.replication.part import Replication
from safe_refs.replication.records import Record, Records
from tests.support.rules import ME
from tests.support.waiting import wait_until

REFUSED = (TypeError, ValueError, safe_refs.SafeRefsError)


class Peer:
    """Calls the shard of a registry with whatever the test says.

    Attributes:
        kept: a payload of somebody else's.
    """

    def __init__(self, registry: str) -> None:
        safe_refs.init()
        self.registry = registry
        self.shard: Any = ray.get_actor(actor_name(registry), namespace="safe_refs")
        self.kept = safe_refs.dumps(ray.put("mine"))
        self.identity = Identity.from_bytes(self.ask(Call(Shard.hello)))
        self.process = self.ask(Call(Shard.where))

    def ask(self, call: Call[Any]) -> Any:
        return ray.get(getattr(self.shard, call.method).remote(*call.args), timeout=60)

    def pin(self, refs: Any, lease: Any = b"garbage........!", **fields: Any) -> Any:
        row = PinRow(lease, 1, NO_TERMS, ME, b"", {})._replace(**fields)
        return ray.get(self.shard.pin.remote(PinCall(0, [row]), refs), timeout=60)

    def refuses(self, call: Call[Any]) -> None:
        """The shard refuses that by name."""
        with pytest.raises(REFUSED):
            self.ask(call)

    def refuses_pin(self, refs: Any, lease: Any = b"garbage........!", **fields: Any) -> None:
        try:
            answer = self.pin(refs, lease, **fields)
        except REFUSED:
            return
        assert isinstance(answer, list), "it is held"
        assert all(isinstance(each, safe_refs.SafeRefsError) for each in answer), answer


@pytest.fixture
def peer(registry: str) -> Iterator[Peer]:
    """Afterwards the shard lives, and holds what it held: no more, and no less."""
    found = Peer(registry)
    yield found
    assert found.ask(Call(Shard.where)) == found.process
    assert len(safe_refs.leases()) == 1
    assert ray.get(safe_refs.loads(found.kept), timeout=20) == "mine"
    safe_refs.release(found.kept)


def test_what_is_no_reference_is_not_pinned(peer: Peer) -> None:
    """A pin of None ended the registry's process, by a segmentation fault, and everybody's leases with it."""
    nil: Any = ray.ObjectRef.nil()
    for refs in ([None], None, ["text"], [nil], [], [None] * 2, {"a": 1}, [[None]]):
        peer.refuses_pin(refs)


def test_a_relay_and_a_copy_owner_take_references_only(peer: Peer) -> None:
    """The same None, lent to a relay, and sent to be copied: both live on."""
    relay = Relays().handle(FOR_CLIENTS[1])
    copies: Any = owner.start(peer.registry, 0)._handle
    lives = [ray.get(each.where.remote(), timeout=60) for each in (relay, copies)]
    wrong: list[tuple[Any, tuple[Any, ...]]] = [
        (relay.hold, (b"key.....", [None], [])),
        (copies.make_copies, (CopyCall(b"garbage........!", "{}", at_home=False), [None])),
        (peer.shard.part, ("Durability.take_copies", b"garbage........!", [None])),
    ]
    for method, args in wrong:
        reply = method.remote(*args)
        with pytest.raises(REFUSED):
            ray.get(reply, timeout=60)
    assert [ray.get(each.where.remote(), timeout=60) for each in (relay, copies)] == lives


def test_a_senseless_ttl_does_not_stop_the_clock(peer: Peer) -> None:
    """After a lease whose ttl was not a number, no lease of anybody expired any more; a renewal or a record did the same."""
    ref = ray.put("x")
    kept, lease = bytes.fromhex(safe_refs.inspect(peer.kept).lease_id or ""), b"garbage........!"
    senseless: list[Any] = [math.nan, math.inf, -1.0, 1e300, "5", 10**400]
    for ttl in senseless:
        peer.refuses_pin([ref], lease, terms=Terms(ttl=ttl))
        peer.refuses(Call(Shard.renew, RenewCall(0, kept, peer.identity, ttl, False, None)))
        peer.refuses(Call(Durability.make_durable, DurableCall(0, [DurableRow(kept, peer.identity, ttl, False)], "{}")))
        record = Record(lease, (ref,), (workers.owner_of(ref),), Terms(ttl=ttl), ME, 0.0, ttl, 0, ttl, frozenset())
        peer.refuses(Call(Replication.receive, Records([record], []), peer.identity))
    short = safe_refs.dumps(ray.put("short"), ttl=0.2)
    wait_until(lambda: len(safe_refs.leases(sizes=False)) == 1, 20)
    with pytest.raises(safe_refs.LeaseExpiredError):
        safe_refs.loads(short)


def test_an_id_of_another_kind_does_not_break_the_listing(peer: Peer) -> None:
    """A lease whose id was a text could be pinned, and `leases()` then failed for everybody; a tombstone of one lasted a day."""
    wrong: list[Any] = ["text of 16 bytes", b"short", b"x" * 17, None, 5, b""]
    for lease in wrong:
        peer.refuses_pin([ray.put("x")], lease)
        peer.refuses(Call(Shard.release, ReleaseCall(0, [([lease], ME)])))


def test_an_origin_that_cannot_be_shown_is_refused(peer: Peer) -> None:
    """Whoever lists leases, or meets a limit, sees who made them: job, node, process and line are what they should be, and short."""
    wrong: list[Any] = [None, ME._replace(source="x" * 2000), ME._replace(pid=-1), ("j",) * 4]
    for maker in wrong:
        peer.refuses_pin([ray.put("x")], maker=maker)


def test_a_borrower_that_is_nobody_is_refused(peer: Peer) -> None:
    """The address of a process is read by threads of the shard: one that can't be read is refused before it gets there."""
    peer.refuses_pin([ray.put("x")], borrower=b"no address")
    assert not workers.is_address(b"no address")
    assert workers.is_address(workers.own_address())


def test_extras_that_their_wing_does_not_know_are_refused(peer: Peer) -> None:
    """What a pin says to a wing of the shard is checked by that wing, before the lease begins."""
    wrong: list[Any] = [5, ("{}",), ("{}", math.nan, ()), ("{}", None, (-1,)), ("{}", 1.0, (), 1)]
    for wanted in wrong:
        peer.refuses_pin([ray.put("x")], extras={"durability": wanted})


def test_nobody_can_speak_for_other_shards(peer: Peer) -> None:
    """A newer identity was believed, and payloads then named a registry that never was; shards that never were, were owed news."""
    newer = Identity(os.urandom(8), 10**6)
    peer.refuses(Call(Replication.receive, Records([], []), newer))
    for shard in (0, 1, 999):
        peer.refuses(Call(Replication.shared_with, shard))
        peer.refuses(Call(Replication.repair, [b"garbage........!"], [shard]))
    assert peer.ask(Call(Shard.hello)) == peer.identity.to_bytes()
    assert peer.ask(Call(Replication.grow, 5)).name == "WAIT", "there are no such shards"
    found = safe_refs.stats()
    assert found is not None
    assert (found.shards, found.recovering) == (1, 0)


def test_limits_that_are_none_are_refused(peer: Peer) -> None:
    """Neither a shard nor the control store takes them, from which a restarted shard would read them."""
    for limits in (Limits(max_leases="5"), Limits(sweep_s=math.nan), Limits(sweep_s=0.0), (None,) * 9):  # type: ignore[arg-type]
        peer.refuses(Call(Shard.set_limits, limits))  # type: ignore[arg-type]
    for changes in ({"sweep_s": math.nan}, {"max_leases": -5}, {"max_leases": 1.5}, {"no_limit": 1}, {"sweep_s": None}):
        peer.refuses(Call(Replication.change_limits, changes))
    peer.refuses(Call(Shard.hold_off, 1e9))


def test_a_query_that_says_nothing_ends_nothing(peer: Peer) -> None:
    """Whoever ends leases by a query says which: one in which nothing was set ended all of everybody's."""
    for query in (Query(), Query(min_age_s=0.0), Query(sort="bytes", min_bytes=0.0)):
        peer.refuses(Call(Shard.release_where, ReleaseWhereCall(0, query, ME, dry_run=False)))


def test_a_call_is_refused_as_a_whole(peer: Peer) -> None:
    """If one row of a call is wrong, none of its leases begins, whichever comes first."""
    rows = [PinRow(os.urandom(16), 1, NO_TERMS, ME, b"", {}), PinRow(b"short", 1, NO_TERMS, ME, b"", {})]
    peer.refuses(Call(Shard.pin, PinCall(0, rows), [ray.put(1), ray.put(2)]))
    good = rows[0]
    peer.refuses(Call(Shard.pin, PinCall(0, [good]), [ray.put(1), ray.put(2)]))
    peer.refuses(Call(Shard.pin, PinCall(0, [good._replace(size=2)]), [ray.put(1)]))
    for data in (b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93" * 5000, os.urandom(200)):
        with pytest.raises(REFUSED):
            ray.get(peer.shard.pin.remote(data, []), timeout=60)


def test_a_refusal_names_what_is_wrong_and_shows_no_value(peer: Peer) -> None:
    """The method, the place in the argument, and what should be there; the value itself might be somebody's secret, or endless."""
    with pytest.raises(ValueError, match=r"pin: call\.rows\[0\]\.lease must have 16 to 16 bytes, not 24") as raised:
        peer.pin([ray.put("x")], b"secret" * 4)
    assert "secretsecret" not in str(raised.value)


def test_an_owner_whose_address_cannot_be_read_is_not_dead(cluster: str) -> None:
    """It is nobody: the thread that asks whether owners live goes on."""
    assert not workers.is_surely_dead(b"no address at all")


@pytest.mark.parametrize("error", [SystemExit, MemoryError, ValueError])
def test_a_thread_of_a_shard_survives_any_error(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever one turn of it raises, the next one begins a second later."""
    seen: list[int] = []

    def run() -> None:
        seen.append(1)
        if len(seen) < 2:
            raise error

    Loop("time", run).keep_running()
    assert len(seen) == 2
    assert "safe_refs-time failed; it starts again" in caplog.text

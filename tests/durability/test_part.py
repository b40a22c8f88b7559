"""The shard's part for durable leases, without Ray: a real shard, strings for references, and a copy owner that only notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from safe_refs._ray import workers
from safe_refs.config import Limits
from safe_refs.durability.part import Durability
from safe_refs.durability.wire import WING, CopyCall, CopyRequest, DurableCall, DurableRow, NotCopyable, Why
from safe_refs.errors import LeaseError, LeaseLostError, LeaseNotFoundError, LeaseReleasedError, SafeRefsError
from safe_refs.registry.hooks import Began, Parts, ShardPart
from safe_refs.registry.records import Identity, Origin, Terms
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import NotNow, Refused, ResolveRow
from tests.support import stand_ins

A, B = b"a" * 16, b"b" * 16
ENV = "{}"
IDENTITY = Identity(b"epoch..1", 1)
ME = Origin("01000000", "ab" * 28, 4711, "app.py:12 in main")
OWNER, COPIES_OWNER = b"the maker", b"the copy owner"


class FakeOwner:
    """A copy owner that only notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[CopyCall, list[Any]]] = []
        self.is_down = False

    def start(self, registry: str, shard: int) -> FakeOwner:
        if self.is_down:
            raise ValueError("another process won the race for the name")
        return self

    def make_copies(self, call: CopyCall, refs: Sequence[Any]) -> Any:
        self.calls.append((call, list(refs)))
        return f"completion {len(self.calls)}"


class Watcher(ShardPart):
    """Another wing: it sees what is announced, and may say that the shard is recovering."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.recovering = False

    def replaced(self, lease: bytes, former: Any) -> None:
        self.seen.append(("replaced", lease))

    def lost(self, leases: Sequence[bytes]) -> None:
        self.seen.append(("lost", list(leases)))

    def ended(self, lease: bytes, items: Sequence[Any]) -> None:
        self.seen.append(("ended", lease))

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused | None:
        return NotNow.RECOVERING if self.recovering else None


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A shard with this part and a watcher; none of their threads run."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.owner, self.watcher = FakeOwner(), Watcher()
        self.shard = Shard("default", IDENTITY, Limits())
        self.table: Any = self.shard.table
        self.table.clock = self.clock
        self.part = Durability(self.shard, self.owner.start)
        self.shard.parts = Parts([self.part, self.watcher])

    def pin(self, lease: bytes, request: CopyRequest | None = None, ttl: float | None = None) -> None:
        extras = {} if request is None else {WING: tuple(request)}
        with self.shard.lock:
            self.table.pin(lease, ["original"], [OWNER], Terms(ttl=ttl), ME)
            self.shard.parts.pinned(lease, Began(extras=extras))

    def receive(self, lease: bytes, owner: bytes = b"another copy owner") -> None:
        """Another shard gives a durable lease."""
        with self.shard.lock:
            self.table.begin(lease, ["their copy"], [owner], Terms(durable=ENV), ME)
            self.shard.parts.pinned(lease, Began(b"another shard", from_shard=True))

    def release(self, lease: bytes) -> None:
        with self.shard.lock:
            self.table.release(lease, ME)

    def ask(self, *leases: bytes, ttl: float | None = None, failed: bool = False) -> tuple[list[Any], list[Any]]:
        reply = self.part.make_durable(
            DurableCall(0, [DurableRow(lease, IDENTITY, ttl, failed) for lease in leases], ENV)
        )
        assert isinstance(reply, tuple)
        return reply

    def items(self, lease: bytes) -> list[str]:
        return list(self.table.items_of(lease))

    def why(self, lease: bytes) -> LeaseError:
        with pytest.raises(LeaseError) as raised:
            self.table.living(lease, IDENTITY)
        return raised.value


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    stand_ins.allow(monkeypatch)
    monkeypatch.setattr(workers, "owner_of", lambda ref: COPIES_OWNER if "copy" in ref else OWNER)
    return House()


def test_a_pin_that_asks_for_copies_gets_them(house: House) -> None:
    """The thread sends the request; the lease holds the copies when the copy owner brings them, in the same slots."""
    house.pin(A, CopyRequest(ENV, None))
    house.part.send_due()
    assert house.owner.calls == [(CopyCall(A, ENV, at_home=False), ["original"])]
    assert house.ask(A) == ([False], ["completion 1"])
    assert house.part.still_wanted([A, B]) == [A]
    assert house.part.take_copies(A, ["a copy"]) == IDENTITY.to_bytes()  # type: ignore[list-item] # as references
    assert house.items(A) == ["a copy"]
    assert house.ask(A) == ([True], [None])
    assert house.watcher.seen == [("replaced", A)]


def test_a_request_that_the_maker_has_sent_itself_is_not_sent_again(house: House) -> None:
    """It gets the completion itself."""
    house.pin(A, CopyRequest(ENV, None, sent_to=(0, 1)))
    house.pin(B, CopyRequest(ENV, None, sent_to=(1,)))
    house.part.send_due()
    assert [call.lease for call, _ in house.owner.calls] == [B]
    assert house.ask(A) == ([False], [None])


def test_a_lease_without_a_request_is_left_alone_until_somebody_asks(house: House) -> None:
    """As those of borrowed objects, of which the owners are to know first who holds them."""
    house.pin(A)
    house.part.send_due()
    assert house.owner.calls == []
    assert house.ask(A) == ([False], ["completion 1"])
    assert [call.lease for call, _ in house.owner.calls] == [A]


@pytest.mark.parametrize("given", [None, 60.0, 5.0])
def test_a_ttl_counts_from_when_the_copies_exist(house: House, given: float | None) -> None:
    """Also if it is the same that the lease has already; without one, the lease keeps what it has, and its time runs on.

    A renewal counts, so that replicas agree which ttl is the last.
    """
    house.pin(A, CopyRequest(ENV, given), ttl=60.0)
    house.clock.now += 20
    house.part.take_copies(A, ["a copy"])  # type: ignore[list-item]
    held = house.table.live[A]
    assert held.terms.ttl == (given or 60.0)
    assert house.table.expires_in_s(A, IDENTITY) == (given or 40.0)
    assert held.renewals == (0 if given is None else 1)
    assert held.terms.durable == ENV


def test_copies_that_nobody_wants_are_not_taken(house: House) -> None:
    """The lease has ended meanwhile, was never pinned, or they come twice."""
    house.pin(A, CopyRequest(ENV, None))
    house.release(A)
    assert house.part.take_copies(A, ["a copy"]) == b""  # type: ignore[list-item]
    assert house.part.take_copies(B, ["a copy"]) == b""  # type: ignore[list-item]
    house.pin(B, CopyRequest(ENV, None))
    assert house.part.take_copies(B, ["a copy"])  # type: ignore[list-item]
    assert house.part.take_copies(B, ["a late copy"]) == b""  # type: ignore[list-item]
    assert house.items(B) == ["a copy"]


def test_nothing_is_kept_of_a_lease_that_ends(house: House) -> None:
    """However it ends, and however far its copies are."""
    house.pin(A, CopyRequest(ENV, None))
    house.pin(B, CopyRequest(ENV, None), ttl=5.0)
    house.receive(b"c" * 16)
    house.part.take_copies(B, ["a copy"])  # type: ignore[list-item]
    house.release(A)
    house.clock.now += 10
    with house.shard.lock:
        house.table.expire()
        house.shard.lose([b"c" * 16], "a test says so")
    assert len(house.part._requests) == 0
    assert house.part._own == set()
    house.part.send_due()
    assert house.owner.calls == []


def test_what_cannot_be_copied_is_reported_to_whoever_asks_and_the_lease_stays(house: House) -> None:
    """Once, to the first; whoever asks then has it tried again."""
    house.pin(A, CopyRequest(ENV, None))
    house.part.send_due()
    problem = NotCopyable(Why.UNSUPPORTED, "it holds a mortal actor")
    assert house.part.take_copies(A, problem) == b""
    assert house.ask(A)[0] == [problem]
    assert house.ask(A)[0] == [False]
    assert house.items(A) == ["original"]


def test_a_copy_owner_that_does_not_deliver_gets_the_request_again(house: House) -> None:
    """A waiting process says so, as it has the completion."""
    house.pin(A, CopyRequest(ENV, None, sent_to=(0,)))
    assert house.ask(A, failed=True) == ([False], ["completion 1"])
    assert house.ask(A) == ([False], ["completion 1"])
    assert house.ask(A, failed=True) == ([False], ["completion 2"])


def test_a_copy_owner_that_cannot_be_started_is_tried_again(house: House) -> None:
    """Until then the lease is not durable, and the shard goes on."""
    house.owner.is_down = True
    house.pin(A, CopyRequest(ENV, None))
    house.part.send_due()
    assert house.ask(A) == ([False], [None])
    house.owner.is_down = False
    house.part.send_due()
    assert house.ask(A) == ([False], ["completion 1"])


def test_who_asks_for_an_ended_or_unknown_lease_learns_that(house: House) -> None:
    """Unless the shard may still learn of it."""
    house.pin(A)
    house.release(A)
    (first, second), completions = house.ask(A, B)
    assert isinstance(first, LeaseReleasedError)
    assert isinstance(second, LeaseNotFoundError)
    assert completions == [None, None]
    house.watcher.recovering = True
    assert house.ask(B)[0] == [NotNow.RECOVERING]
    assert len(house.part._requests) == 0


def test_a_durable_lease_of_another_shard_is_copied_in_the_background(house: House) -> None:
    """Its copies belong to the other's copy owner. Our own are made once, and lie on our copy owner's node."""
    house.table.alone = False
    house.receive(A)
    house.part.send_due()
    assert house.owner.calls == [(CopyCall(A, ENV, at_home=True), ["their copy"])]
    assert house.ask(A)[0] == [True], "it is durable meanwhile"
    assert house.part.take_copies(A, ["our copy"])  # type: ignore[list-item]
    with house.shard.lock:
        house.shard.parts.pinned(A, Began(b"another shard", from_shard=True))
    house.part.send_due()
    assert len(house.owner.calls) == 1
    assert house.items(A) == ["our copy"]


def test_the_death_of_the_copies_owner_is_a_loss_where_others_have_copies(house: House) -> None:
    """Then replication asks them for theirs. Without others, the lease ends as any does whose owners are dead."""
    house.pin(A, CopyRequest(ENV, None))
    house.part.take_copies(A, ["a copy"])  # type: ignore[list-item]
    house.pin(B)
    house.watcher.seen.clear()
    house.part.owner_died(COPIES_OWNER)
    assert house.watcher.seen == []
    house.table.alone = False
    house.part.owner_died(OWNER)
    assert house.watcher.seen == [("lost", [])], "what isn't durable has nobody else who could have it"
    house.part.owner_died(COPIES_OWNER)
    assert house.watcher.seen[1:] == [("ended", A), ("lost", [A])]
    assert isinstance(house.why(A), LeaseLostError)
    house.receive(A)
    house.part.send_due()
    assert house.owner.calls[-1][0] == CopyCall(A, ENV, at_home=True), "it comes back, and is copied again"


def test_a_lease_with_another_owner_alive_is_not_lost(house: House) -> None:
    """What can still be read stays."""
    house.table.alone = False
    with house.shard.lock:
        house.table.begin(A, ["one copy", "another"], [COPIES_OWNER, OWNER], Terms(durable=ENV), ME)
        house.table.begin(B, ["copy", "actor"], [COPIES_OWNER, b""], Terms(durable=ENV), ME)
    house.part.owner_died(COPIES_OWNER)
    assert house.items(A) == ["one copy", "another"]
    assert house.items(B) == [], "what nobody owns (a detached actor) doesn't keep the copies alive"


def test_the_death_of_the_copies_node_loses_durable_leases_only(house: House) -> None:
    """Also where there is no other shard: the data is gone."""
    house.pin(A, CopyRequest(ENV, None))
    house.part.take_copies(A, ["a copy"])  # type: ignore[list-item]
    house.pin(B)
    house.part.copies_lost([A, B, b"c" * 16])
    assert isinstance(house.why(A), LeaseLostError)
    assert "node" in str(house.why(A))
    assert house.items(B) == ["original"]


def test_a_reader_is_sent_to_other_replicas_when_the_copies_owner_is_dead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next sweep sees it; where there are no others, the lease's end says it."""
    monkeypatch.setattr(workers, "is_surely_dead", lambda owner: owner == COPIES_OWNER)
    row = ResolveRow(A, IDENTITY, None, False, ME, b"")
    house.pin(A, CopyRequest(ENV, None))
    house.table.alone = False
    assert house.part.doubts(row) is None
    house.part.take_copies(A, ["a copy"])  # type: ignore[list-item]
    assert house.part.doubts(row) is NotNow.DOUBTFUL
    assert house.part.doubts(row._replace(lease=B)) is None
    house.table.alone = True
    assert house.part.doubts(row) is None
    (answer,), _ = house.ask(A, failed=True)
    assert isinstance(answer, NotCopyable)
    assert answer.why is Why.COPIES_GONE


def test_a_lease_that_became_durable_elsewhere_gets_copies_of_its_own(house: House) -> None:
    """A process had asked for it here, too, and stops asking when it hears that it is durable."""
    house.pin(A, CopyRequest(ENV, 60.0), ttl=600.0)
    house.part.send_due()
    house.table.alone = False
    with house.shard.lock:
        terms = house.table.live[A].terms._replace(durable=ENV)
        house.table.replace(A, ["their copy"], [b"another copy owner"], terms)
        house.shard.parts.pinned(A, Began(b"another shard", from_shard=True))
    assert house.ask(A)[0] == [True]
    house.part._requests._clock = lambda: house.clock() + 1e6
    house.part.send_due()
    assert house.owner.calls[-1][1] == ["their copy"]
    assert house.part.take_copies(A, ["our copy"])  # type: ignore[list-item]
    assert house.items(A) == ["our copy"]
    assert house.table.live[A].renewals == 0

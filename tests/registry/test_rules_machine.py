"""The rules against a shadow: whatever comes, in whatever order, a lease can be reached just as long as it should be.

What is driven are the functions that the shard itself calls (`steps`), on its table, and a part that learns of each lease's beginning
and end.

Clients send messages (pins, resolves, releases, renewals) into a network that delivers them late, twice, in another order, or
never; time passes, owners die, the registry restarts. A model that is as plain as can be, with no heaps, indexes or laziness, says
after each delivery what the answer has to be, and after each sweep what must be held: nothing ends early, nothing leaks, each end
has its reason.

`make test` runs a short form; `make test-deep` 10,000 programs of 50 steps. Three planted bugs show that it would find them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from safe_refs.config import Limits
from safe_refs.errors import (
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
    SafeRefsError,
)
from safe_refs.registry import steps
from safe_refs.registry.hooks import Began, Parts, ShardPart
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Origin, Terms
from safe_refs.registry.wire import PinRow, ReleaseCall, RenewCall, ResolveRow
from tests.support.rules import ME, Clock

OWNERS = (b"owner 0", b"owner 1", b"owner 2")
TIMES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 60.0])


@dataclass
class Shadow:
    """One lease, as anybody would keep it on paper."""

    items: tuple[str, ...]
    owners: tuple[bytes, ...]
    ends_at: float | None
    uses: int | None
    end: type[LeaseError] | None = None
    used: set[bytes] = field(default_factory=set)


@dataclass
class Message:
    """A call on its way: its name, the lease, the epoch that the caller knows, and what else it says."""

    what: str
    lease: bytes
    epoch: bytes
    arguments: dict[str, Any] = field(default_factory=dict)


class Kept(ShardPart):
    """What a part keeps of a lease: from when it is told that the lease has begun, until it is told that it has ended."""

    def __init__(self) -> None:
        self.leases: dict[bytes, tuple[str, ...]] = {}

    def pinned(self, lease: bytes, began: Began) -> None:
        self.leases[lease] = ()

    def ended(self, lease: bytes, items: Sequence[Any]) -> None:
        del self.leases[lease]


class RulesMachine(RuleBasedStateMachine):
    """Drives a `LeaseTable` and its shadow side by side."""

    table_class: type[LeaseTable[str]] = LeaseTable

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.epochs = 0
        self.leases: list[tuple[bytes, bytes]] = []
        self.network: list[Message] = []
        self.calls = 0

    @initialize()
    def restart(self) -> None:
        """The registry starts, or crashes and starts again: what it held is lost, and the shadow's book begins anew."""
        self.epochs += 1
        self.epoch = f"epoch {self.epochs:02}".encode()
        self.kept = Kept()
        self.parts = Parts([self.kept])
        self.table = self.table_class(
            registry="r",
            identity=Identity(self.epoch, self.epochs),
            clock=self.clock,
            wall=self.clock,
            limits=Limits(max_tombstones=10**6, tombstone_age_s=1e9),
            gone=lambda lease, _: self.parts.ended(lease, ()),
        )
        self.book: dict[bytes, Shadow] = {}

    @rule(
        count=st.integers(1, 3),
        owner=st.integers(0, 2),
        mixed=st.booleans(),
        ttl=st.none() | TIMES,
        uses=st.none() | st.integers(1, 3),
    )
    def send_pin(self, count: int, owner: int, mixed: bool, ttl: float | None, uses: int | None) -> None:
        """A client makes a lease."""
        lease = len(self.leases).to_bytes(16, "big")
        items = tuple(f"{len(self.leases)}.{number}" for number in range(count))
        owners = tuple(OWNERS[(owner + (number if mixed else 0)) % 3] for number in range(count))
        self.leases.append((lease, self.epoch))
        self.network.append(
            Message("pin", lease, self.epoch, {"items": items, "owners": owners, "terms": Terms(ttl=ttl, uses=uses)})
        )

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(), what=st.sampled_from(["resolve", "release", "renew"]), take=st.booleans(), ttl=st.none() | TIMES
    )
    def send(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> None:
        """A client that has a payload, of this or an earlier start of the registry, calls."""
        message = self.draw_call(data, what, take, ttl)
        self.network.append(message)

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(), what=st.sampled_from(["resolve", "release", "renew"]), take=st.booleans(), ttl=st.none() | TIMES
    )
    def call(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> None:
        """A client calls, and the network is quick."""
        message = self.draw_call(data, what, take, ttl)
        expected = self.expect(message)
        assert self.do(message) == expected, message

    def draw_call(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> Message:
        """A call about any lease that a client may know of."""
        lease, epoch = data.draw(st.sampled_from(self.leases))
        self.calls += 1
        use = self.calls.to_bytes(8, "big")
        arguments: dict[str, dict[str, Any]] = {
            "resolve": {"take": take, "use": use},
            "release": {},
            "renew": {"ttl": ttl},
        }
        return Message(what, lease, epoch, arguments[what])

    @precondition(lambda self: self.network)
    @rule(data=st.data(), keep=st.booleans())
    def deliver(self, data: st.DataObject, keep: bool) -> None:
        """Any message on its way arrives, and may arrive again later."""
        number = data.draw(st.integers(0, len(self.network) - 1))
        message = self.network[number] if keep else self.network.pop(number)
        expected = self.expect(message)
        assert self.do(message) == expected, message

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A message never arrives."""
        self.network.pop(data.draw(st.integers(0, len(self.network) - 1)))

    @rule(seconds=TIMES)
    def wait(self, seconds: float) -> None:
        """Time passes; nobody sweeps."""
        self.clock.now += seconds

    @rule(owner=st.sampled_from(OWNERS))
    def bury(self, owner: bytes) -> None:
        """A process dies that owned objects, and the registry hears of it."""
        self.let_time_work()
        self.table.expire()
        dead = {owner} | (set(OWNERS) - set(self.table.owners.living()))
        self.table.bury(owner)
        for shadow in self.book.values():
            if shadow.end is None and owner in shadow.owners and dead.issuperset(shadow.owners):
                shadow.end = OwnerGoneError

    @rule()
    def sweep(self) -> None:
        """The time thread does its work: from here on nothing is held that should not be."""
        self.table.expire()
        self.let_time_work()
        expected = sorted(item for shadow in self.book.values() if shadow.end is None for item in shadow.items)
        assert sorted(self.table.items()) == expected
        assert self.table.stats().live_references == len(expected)

    @invariant()
    def nothing_has_ended_early(self) -> None:
        """Whatever should be held is held."""
        held = set(self.table.items())
        for shadow in self.book.values():
            if shadow.end is None and not (shadow.ends_at is not None and shadow.ends_at <= self.clock.now):
                assert held.issuperset(shadow.items)

    @invariant()
    def parts_keep_what_is_live_and_nothing_else(self) -> None:
        """A part is told of every beginning and every end, however it comes about."""
        assert self.kept.leases.keys() == self.table.live.keys()

    def let_time_work(self) -> None:
        for shadow in self.book.values():
            if shadow.end is None and shadow.ends_at is not None and shadow.ends_at <= self.clock.now:
                shadow.end = LeaseExpiredError

    def expect(self, message: Message) -> Any:
        """What the answer to a message has to be, by the book."""
        self.let_time_work()
        shadow = self.book.get(message.lease)
        if message.what == "pin":
            if shadow is None:
                terms: Terms = message.arguments["terms"]
                ends_at = None if terms.ttl is None else self.clock.now + terms.ttl
                self.book[message.lease] = Shadow(
                    message.arguments["items"], message.arguments["owners"], ends_at, terms.uses
                )
                return None
            return shadow.end
        if message.what == "release":
            if shadow is None:
                self.book[message.lease] = Shadow((), (), None, None, LeaseReleasedError)
                return 0
            if shadow.end is None:
                shadow.end = LeaseReleasedError
                return 1
            return 0
        if message.epoch != self.epoch and (shadow is None or shadow.end is not None):
            return LeaseLostError
        if shadow is None:
            return LeaseNotFoundError
        if shadow.end is not None:
            return shadow.end
        if message.what == "renew":
            ttl = message.arguments["ttl"]
            shadow.ends_at = None if ttl is None else self.clock.now + ttl
            return None
        shadow.used.add(message.arguments["use"])  # a call that arrives twice is one use
        if message.arguments["take"]:
            shadow.end = LeaseReleasedError
        elif len(shadow.used) == shadow.uses:
            shadow.end = LeaseUsedUpError
        return shadow.items

    def do(self, message: Message) -> Any:
        """What the shard answers: a value, or the class of its error."""
        lease, asked, arguments = message.lease, Identity(message.epoch, 1), message.arguments
        answer: Any
        if message.what == "pin":
            items, owners = arguments["items"], arguments["owners"]
            row = PinRow(lease, len(items), arguments["terms"], ME, b"", {})
            answer = steps.pin(self.table, self.parts, row, items, owners)
        elif message.what == "release":
            (answer,) = steps.release(self.table, self.parts, ReleaseCall(0, [([lease], ME)]))
        elif message.what == "renew":
            answer = steps.renew(self.table, self.parts, RenewCall(0, lease, asked, arguments["ttl"], 0))
        else:
            asking = ResolveRow(lease, asked, None, arguments["take"], ME, arguments["use"])
            answer = steps.resolve(self.table, self.parts, asking)
        if isinstance(answer, SafeRefsError):
            return type(answer)
        if message.what in ("pin", "renew"):
            return None  # the registry's identity; the renewal's number
        return tuple(answer) if isinstance(answer, list) else answer


def run(machine: type[RulesMachine], programs: int, *, explain: bool = True) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=programs,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=False,
            phases=list(Phase) if explain else [Phase.generate],
            derandomize=not explain,  # a bug that is found once is found each time
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_rules_agree_with_their_shadow() -> None:
    """The short form: 200 programs of 50 steps."""
    run(RulesMachine, 200)


@pytest.mark.slow
def test_the_rules_agree_with_their_shadow_ten_thousand_times() -> None:
    """10,000 programs of 50 steps: no early end, no leak, no wrong reason."""
    run(RulesMachine, int(os.environ.get("SAFE_REFS_TEST_PROGRAMS", "10000")))


class EarlyExpiry(LeaseTable[str]):
    """A bug: the sweep ends leases that have a third of a second left."""

    def expire(self, most: int | None = None) -> int:
        clock, self.clock = self.clock, lambda: clock() + 0.3
        try:
            return super().expire(most)
        finally:
            self.clock = clock


class LostRelease(LeaseTable[str]):
    """A bug: the release of a lease with a ttl is answered, and not carried out."""

    def release(self, lease: bytes, origin: Origin) -> int:
        if lease in self.live and self.live[lease].terms.ttl is not None:
            return 1
        return super().release(lease, origin)


class Resurrection(LeaseTable[str]):
    """A bug: a pin that comes late, after its lease has been released, begins it again."""

    def pin(self, lease: bytes, items: Sequence[str], owners: Sequence[bytes], terms: Terms, origin: Origin) -> bool:
        self.tombstones._ended.pop(lease, None)
        return super().pin(lease, items, owners, terms, origin)


@pytest.mark.parametrize("bug", [EarlyExpiry, LostRelease, Resurrection], ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: type[LeaseTable[str]]) -> None:
    """The machine fails for a table with this bug in it, so it would for ours."""
    machine = type(f"With{bug.__name__}", (RulesMachine,), {"table_class": bug})
    with pytest.raises(AssertionError):
        run(machine, 2000, explain=False)

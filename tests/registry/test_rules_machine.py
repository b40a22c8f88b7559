"""The rules against a shadow: whatever comes, in whatever order, a lease can be reached just as long as it should be.

What is driven are the functions that the shard calls (`steps`), on its table, and a part that learns of each beginning and end.

Clients send messages (pins, resolves, uses given back, releases, renewals) into a network that delivers them late, twice, in another
order, or never; time passes, owners die, the registry restarts. A model as plain as can be, with no heaps, indexes or laziness, says
after each delivery what the answer has to be, and after each sweep what must be held: nothing ends early, nothing leaks, each end
has its reason.

`make test` runs a short form; `make test-deep` 10,000 programs of 50 steps. Four planted bugs show that it would find them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    OwnerGoneError,
    SafeRefsError,
)
from safe_refs.registry import steps
from safe_refs.registry.hooks import Parts
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Origin, Renewal, Terms
from safe_refs.registry.wire import GiveBackRow, PinRow, ReleaseCall, RenewCall, ResolveRow
from tests.support.rules import ME, Clock
from tests.support.shadow import Kept, Message, NeverAgain, Shadow

OWNERS = (b"owner 0", b"owner 1", b"owner 2")
TIMES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 60.0])
CALLS = ["resolve", "release", "renew", "lengthen"]  # the last is a keepalive's renewal


class RulesMachine(RuleBasedStateMachine):
    """Drives a `LeaseTable` and its shadow side by side."""

    table_class: type[LeaseTable[str]] = LeaseTable

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.epochs = 0
        self.leases: list[tuple[bytes, bytes]] = []
        self.network: list[Message] = []
        self.resolves: list[Message] = []
        self.contents: dict[bytes, tuple[tuple[str, ...], tuple[bytes, ...]]] = {}
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
        self.granted: dict[bytes, set[bytes]] = {}

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
        self.contents[lease] = items, owners
        self.network.append(
            Message("pin", lease, self.epoch, {"items": items, "owners": owners, "terms": Terms(ttl=ttl, uses=uses)})
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), what=st.sampled_from(CALLS), take=st.booleans(), ttl=st.none() | TIMES)
    def send(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> None:
        """A client that has a payload, of this or an earlier start of the registry, calls."""
        self.network.append(self.draw_call(data, what, take, ttl))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), what=st.sampled_from(CALLS), take=st.booleans(), ttl=st.none() | TIMES)
    def call(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> None:
        """A client calls, and the network is quick."""
        self.check(self.draw_call(data, what, take, ttl))

    def draw_call(self, data: st.DataObject, what: str, take: bool, ttl: float | None) -> Message:
        """A call about any lease that a client may know of."""
        lease, epoch = data.draw(st.sampled_from(self.leases))
        self.calls += 1
        if what in ("renew", "lengthen"):
            lengthens = what == "lengthen"
            return Message("renew", lease, epoch, {"ttl": ttl or 0.75 if lengthens else ttl, "lengthens": lengthens})
        if what == "release":
            return Message(what, lease, epoch)
        self.resolves.append(Message(what, lease, epoch, {"take": take, "use": self.calls.to_bytes(8, "big")}))
        return self.resolves[-1]

    @precondition(lambda self: self.resolves)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """A client that could not open what it got, or has got no answer, gives a use back."""
        got = data.draw(st.sampled_from(self.resolves))
        self.network.append(Message("give back", got.lease, got.epoch, got.arguments))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), take=st.booleans())
    def fail(self, data: st.DataObject, take: bool) -> None:
        """The same, and the network is quick."""
        got = self.draw_call(data, "resolve", take, None)
        self.check(got)
        self.check(Message("give back", got.lease, got.epoch, got.arguments))

    @precondition(lambda self: self.network)
    @rule(data=st.data(), keep=st.booleans())
    def deliver(self, data: st.DataObject, keep: bool) -> None:
        """Any message on its way arrives, and may arrive again later."""
        number = data.draw(st.integers(0, len(self.network) - 1))
        self.check(self.network[number] if keep else self.network.pop(number))

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
                shadow.finish(OwnerGoneError)

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

    @invariant()
    def nothing_is_granted_too_often(self) -> None:
        """As often as the lease's uses allow, and once more for each use that was given back."""
        for lease, uses in self.granted.items():
            shadow = self.book[lease]
            assert shadow.uses is None or len(uses - shadow.returned) <= shadow.uses

    def check(self, message: Message) -> None:
        """A message arrives; the answer has to be as expected."""
        expected = self.expect(message)
        assert self.do(message) == expected, message

    def let_time_work(self) -> None:
        for shadow in self.book.values():
            if shadow.end is None and shadow.ends_at is not None and shadow.ends_at <= self.clock.now:
                shadow.finish(LeaseExpiredError)

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
                self.book[message.lease] = Shadow((), (), None, None, LeaseReleasedError, is_final=True)
                return 0
            was_live = shadow.end is None
            shadow.finish(LeaseReleasedError)
            return int(was_live)
        if message.what == "give back":
            return shadow is not None and shadow.give_back(**message.arguments, now=self.clock.now)
        if message.epoch != self.epoch and (shadow is None or shadow.end is not None):
            return LeaseLostError
        if shadow is None:
            return LeaseNotFoundError
        if shadow.end is not None:
            return shadow.end
        if message.what == "renew":
            ttl = message.arguments["ttl"]
            if not message.arguments["lengthens"]:
                shadow.ends_at = None if ttl is None else self.clock.now + ttl
            elif shadow.ends_at is not None:
                shadow.ends_at = max(shadow.ends_at, self.clock.now + ttl)
            return None
        if message.arguments["use"] in shadow.returned:
            return LeaseNotFoundError  # it has come late
        shadow.use(message.arguments["use"], message.arguments["take"])
        return shadow.items

    def do(self, message: Message) -> Any:
        """What the shard answers: a value, or the class of its error."""
        lease, asked, arguments = message.lease, Identity(message.epoch, 1), message.arguments
        answer: Any
        if message.what == "pin":
            pin = PinRow(lease, len(arguments["items"]), arguments["terms"], ME, b"", {})
            answer = steps.pin(self.table, self.parts, pin, arguments["items"], arguments["owners"])
        elif message.what == "release":
            (answer,) = steps.release(self.table, self.parts, ReleaseCall(0, [([lease], ME)]))
        elif message.what == "renew":
            renewal = RenewCall(0, lease, asked, arguments["ttl"], arguments["lengthens"], None)
            answer = steps.renew(self.table, self.parts, renewal)
        elif message.what == "give back":
            items, owners = self.contents[lease]
            row = GiveBackRow(lease, arguments["use"], arguments["take"], len(items), ME, b"")
            answer = steps.give_back(self.table, self.parts, row, items, owners)
        else:
            asking = ResolveRow(lease, asked, None, arguments["take"], ME, arguments["use"])
            answer = steps.resolve(self.table, self.parts, asking)
            if isinstance(answer, list):
                self.granted.setdefault(lease, set()).add(arguments["use"])
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


class Shortening(LeaseTable[str]):
    """A bug: a keepalive's renewal is like any other."""

    def renew(self, *args: Any, **_: Any) -> Renewal:
        return super().renew(*args[:3])


class LostRelease(LeaseTable[str]):
    """A bug: the release of a lease with a ttl is answered, and not carried out."""

    def release(self, lease: bytes, origin: Origin, rejected: str = "") -> int:
        if lease in self.live and self.live[lease].terms.ttl is not None:
            return 1
        return super().release(lease, origin, rejected)


class Resurrection(LeaseTable[str]):
    """A bug: a pin that comes late, after its lease has been released, begins it again."""

    def pin(self, lease: bytes, items: Sequence[str], owners: Sequence[bytes], terms: Terms, origin: Origin) -> bool:
        self.tombstones._ended.pop(lease, None)
        return super().pin(lease, items, owners, terms, origin)


BUGS = [EarlyExpiry, Resurrection, NeverAgain]
LONG = [pytest.param(bug, marks=pytest.mark.long) for bug in (LostRelease, Shortening)]


@pytest.mark.parametrize("bug", [*BUGS, *LONG])
def test_a_planted_bug_is_found(bug: type[LeaseTable[str]]) -> None:
    """The machine fails for a table with this bug in it, so it would for ours."""
    machine = type(f"With{bug.__name__}", (RulesMachine,), {"table_class": bug})
    with pytest.raises(AssertionError):
        run(machine, 2000, explain=False)

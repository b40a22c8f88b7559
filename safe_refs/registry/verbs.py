"""What a process wants of a registry: begin leases, resolve them, end them, prolong them. Here for a registry with one shard.

Each verb asks once (`pin_once`, `resolve_once`, for several leases in one call) and the verbs for one lease ask until there is an
answer. A registry with several shards has verbs that inherit from these.

What always holds: a verb returns a result, or raises an error that says what became of the lease, by its deadline.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .._ray.objects import UnopenedActorError
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import LeaseLostError, LeaseNotFoundError, OwnerGoneError, SafeRefsError
from .calls import Call, NoRegistryError, Registry, Session, Silence
from .hooks import Layout, Plan
from .records import Identity, Origin
from .shard import Shard
from .wire import ExpiresCall, Granted, NotNow, PinCall, PinRow, ReleaseCall, RenewCall, ResolveCall, ResolveRow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")

COMES_S = 5.0  # how long a reader waits for a pin that its maker didn't wait for
_COMES_PAUSE_S = 0.01


class Wanted(NamedTuple):
    """A lease that is to be resolved.

    Attributes:
        address: where it lives.
        slot: which of its references; None for all.
        take: end it in the same step.
        asker: who asks.
        use: id of this use, the same whichever shard is asked, and however often.
    """

    address: LeaseAddress
    slot: int | None
    take: bool
    asker: Origin
    use: bytes

    def row(self, use: bytes | None = None) -> ResolveRow:
        """It, for a call to a shard."""
        lease, asked = self.address.lease, Identity(self.address.epoch, self.address.generation)
        return ResolveRow(lease, asked, self.slot, self.take, self.asker, self.use if use is None else use)


def wanted(address: LeaseAddress, session: Session, *, slot: int | None, take: bool) -> Wanted:
    """What is wanted of a lease, as one use of it."""
    # It is worth the time to look up which line ends a lease, not which lines only read it.
    here = session.connection
    asker = session.origin() if take else Origin(here.job, session.node, session.pid, "by loading")
    return Wanted(address, slot, take, asker, os.urandom(8))


def lost(address: LeaseAddress) -> LeaseLostError:
    """The error for a lease whose registry is gone."""
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


def is_missing(error: object) -> bool:
    """Whether a refusal says that the lease isn't there, rather than how it ended: its pin may be on its way, or others have it."""
    return isinstance(error, (LeaseNotFoundError, LeaseLostError))


class Verbs:
    """The verbs for one registry.

    Args:
        registry: which.
        layout: its layout; when that changes, others are made.
    """

    def __init__(self, registry: Registry, layout: Layout) -> None:
        self.registry = registry
        self.layout = layout

    def by_shard(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        """Leases by the shards that may hold them."""
        return {0: list(leases)}

    def holders(self, lease: bytes) -> Sequence[int]:
        """The shards that a lease is pinned at; with several shards and during a growth, others may hold it still."""
        return (0,)

    def pin_once(self, plans: Sequence[Plan], deadline: Deadline) -> list[Identity | SafeRefsError | None]:
        """Begin leases, in one call to each shard that is to hold some.

        Returns:
            For each the identity of the registry that holds it, or why it doesn't; None if it has to be asked again.

        Raises:
            RegistryUnavailableError: no answer in time.
        """
        refs = [ref for plan in plans for ref in plan.refs]
        call = Call(Shard.pin, PinCall(self.layout.version, [self.pin_row(plan) for plan in plans]), refs)
        try:
            reply = self.registry.ask({0: call}, deadline, start=True)[0]
        except UnopenedActorError:
            return self.unopened(plans)
        if not isinstance(reply, list):
            self.not_now(reply, deadline)
            return [None] * len(plans)
        return [self.held(answer) if isinstance(answer, bytes) else answer for answer in reply]

    def pin_row(self, plan: Plan) -> PinRow:
        """A plan, for a call to a shard. A Ray Client can't tell what its server owns, and the shard can."""
        borrower = self.registry.session.address if plan.borrowed or self.registry.session.connection.client else b""
        return PinRow(plan.lease, len(plan.refs), plan.terms, plan.maker, borrower, plan.extras)

    def unopened(self, plans: Sequence[Plan]) -> list[Identity | SafeRefsError | None]:
        """A call could not be opened, as the job that made an actor has ended: whose, if it isn't clear, each asks by itself."""
        if len(plans) > 1:
            return [None] * len(plans)
        return [OwnerGoneError.of(plans[0].lease[:4].hex(), self.registry.name)]

    def held(self, answer: bytes) -> Identity:
        """The identity in the answer to a pin, which is remembered."""
        self.registry.identity = identity = Identity.from_bytes(answer)
        return identity

    def pin(self, plan: Plan, deadline: Deadline) -> Identity:
        """Begin a lease.

        Raises:
            RegistryFullError: a limit would be passed.
            OwnerGoneError: the job that made an actor has ended.
            RegistryUnavailableError: no answer in time. As with every error, the caller has to release the lease.
        """
        return until(lambda verbs: verbs.pin_once([plan], deadline)[0], self.registry, deadline, start=True)

    def resolve_once(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref] | SafeRefsError | None]:
        """What leases hold, in one call to each shard that holds some.

        Returns:
            For each its references, or the refusal; None if it has to be asked again, with the same use.

        Raises:
            NoRegistryError: there is none.
            RegistryUnavailableError: no answer in time.
        """
        call = Call(Shard.resolve, ResolveCall(self.layout.version, [each.row() for each in rows]))
        try:
            reply = self.registry.ask({0: call}, deadline)[0]
        except UnopenedActorError:
            if len(rows) > 1:
                return [None] * len(rows)  # each finds out whether it is its own
            return [OwnerGoneError.of(rows[0].address.short_id, self.registry.name)]
        if not isinstance(reply, tuple):
            self.not_now(reply, deadline)
            return [None] * len(rows)
        answers, refs = reply
        found: list[list[Ref] | SafeRefsError | None] = []
        at = 0
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, int):
                found.append(self.resolved(row.address, refs[at : at + answer]))
                at += answer
            else:
                refusal = answer.refusal if isinstance(answer, Granted) else answer
                found.append(refusal if isinstance(refusal, SafeRefsError) else None)
        return found

    def resolved(self, address: LeaseAddress, refs: list[Ref]) -> list[Ref]:
        """References that have come from the registry: the client's parts are told."""
        for part in self.registry.session.parts:
            part.resolved(address, refs)
        return refs

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """What a lease holds.

        Raises:
            LeaseError: it has ended, was lost, or was never there.
            OwnerGoneError: or the job that made an actor in it has ended.
            RegistryUnavailableError: no answer in time.
        """
        return waited_for(
            row.address, lambda verbs: verbs.resolve_once([row], deadline)[0], self.registry, deadline
        )

    def release(self, rows: Sequence[tuple[Sequence[bytes], Origin]], deadline: Deadline) -> set[bytes]:
        """End leases by their ids, each row by whom it says; which of them that ended."""
        ended: set[bytes] = set()
        try:
            until(lambda verbs: verbs.release_once(rows, ended, deadline), self.registry, deadline, start=False)
        except NoRegistryError:
            self.registry.forget()
        for part in self.registry.session.parts:
            for leases, _ in rows:
                part.released(self.registry.name, leases)
        return ended

    def release_once(
        self, rows: Sequence[tuple[Sequence[bytes], Origin]], ended: set[bytes], deadline: Deadline
    ) -> bool | None:
        """End leases, and add those that this call ended to `ended`; None if it has to be asked again."""
        call = Call(Shard.release, ReleaseCall(self.layout.version, rows))
        flags = self.answer(self.registry.ask({0: call}, deadline)[0], deadline)
        if flags is None:
            return None
        leases = [lease for ids, _ in rows for lease in ids]
        ended.update(lease for lease, flag in zip(leases, flags, strict=True) if flag)
        return True

    def renew(self, address: LeaseAddress, ttl: float | None, deadline: Deadline) -> None:
        """Let a lease live `ttl` seconds from now, or without a limit; errors as for `resolve`."""
        asked = Identity(address.epoch, address.generation)

        def once(verbs: Verbs) -> int | SafeRefsError | None:
            call = Call(Shard.renew, RenewCall(verbs.layout.version, address.lease, asked, ttl, 0))
            return verbs.answer(self.registry.ask({0: call}, deadline)[0], deadline)

        waited_for(address, once, self.registry, deadline)

    def expires_in_s(self, address: LeaseAddress, deadline: Deadline) -> float | None:
        """Seconds until a lease's ttl runs out; None without one; errors as for `resolve`."""
        asked = Identity(address.epoch, address.generation)

        def once(verbs: Verbs) -> tuple[float | None] | SafeRefsError | None:
            call = Call(Shard.expires_in_s, ExpiresCall(verbs.layout.version, address.lease, asked))
            return verbs.answer(self.registry.ask({0: call}, deadline)[0], deadline)

        return waited_for(address, once, self.registry, deadline)[0]

    def answer(self, reply: A | NotNow | Silence, deadline: Deadline) -> A | None:
        """A shard's reply; None if it has to be asked again."""
        if isinstance(reply, (NotNow, Silence)):
            self.not_now(reply, deadline)
            return None
        return reply

    def not_now(self, reply: NotNow | Silence, deadline: Deadline) -> None:
        """A shard has not done what it was asked: see to it that asking again is better.

        Raises:
            NoRegistryError: there is no such shard.
            RegistryUnavailableError: no answer in time.
        """
        if reply is Silence.ABSENT:
            raise NoRegistryError
        if reply is Silence.LATE:
            raise self.registry.no_answer(deadline)
        if reply in (NotNow.STALE, NotNow.CLOSING):
            self.registry.forget_layout()


def until(once: Callable[[Verbs], A | SafeRefsError | None], registry: Registry, deadline: Deadline, *, start: bool) -> A:
    """Ask until there is an answer, by the verbs for the layout that the registry has by then.

    Raises:
        SafeRefsError: the answer is an error.
        RegistryUnavailableError: no answer in time.
    """
    while True:
        answer = once(registry.verbs(start=start))
        if isinstance(answer, SafeRefsError):
            raise answer
        if answer is not None:
            return answer
        if registry.knows_layout:  # if the layout has changed, the next one may be asked at once
            registry.pause(deadline)
        elif deadline.is_over():
            raise registry.no_answer(deadline)


def waited_for(
    address: LeaseAddress, once: Callable[[Verbs], A | SafeRefsError | None], registry: Registry, deadline: Deadline
) -> A:
    """The same for what a live lease says. One whose maker did not wait for the pin is waited for, a little, if it isn't there."""
    comes_by = min(deadline.at, time.monotonic() + COMES_S) if address.soon else 0.0
    while True:
        try:
            return until(once, registry, deadline, start=False)
        except NoRegistryError:
            registry.forget()
            error: SafeRefsError = lost(address)
        except (LeaseNotFoundError, LeaseLostError) as refusal:
            error = refusal
        if time.monotonic() >= comes_by:
            raise error.with_traceback(None) from None
        time.sleep(_COMES_PAUSE_S)


class Direct:
    """A `Sender` (see `hooks`) without any batching: each request goes out by itself, and its caller waits.

    Args:
        session: whose registries it asks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def pin(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """Begin a lease; see `Verbs.pin`."""
        return self._session.registry(registry).verbs(start=True).pin(plan, deadline)

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """Begin several leases."""
        return [self.pin(registry, plan, deadline) for plan in plans]

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """What a lease holds; see `Verbs.resolve`."""
        return _of_running(self._session.registry(row.address.registry), row.address).resolve(row, deadline)

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref]]:
        """What several leases hold."""
        return [self.resolve(row, deadline) for row in rows]

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """End leases; how many that ended."""
        rows = [(leases, self._session.origin())]
        try:
            return len(self._session.registry(registry).verbs(start=False).release(rows, deadline))
        except NoRegistryError:
            return 0

    def post(
        self, registry: str, plan: Plan, deadline: Deadline, then: Callable[[Identity | None, Exception | None], None]
    ) -> None:
        """Begin a lease soon, and call `then` with the identity that holds it, or with the error."""
        then(self.pin(registry, plan, deadline), None)

    def close(self) -> None:
        """The connection is gone."""

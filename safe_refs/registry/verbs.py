"""What a process wants of a registry: begin leases, resolve them, end them, prolong them.

The functions (`pin`, `resolve`, `release`, `renew`, `expires_in_s`) ask until there is an answer. `Verbs` asks once: here, the only
shard of a registry; for a registry with several shards there are verbs that inherit from these. A function takes the verbs for the
layout that the registry has at that moment.

What always holds: a function returns a result, or raises an error that says what became of the lease, by its deadline.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

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

    def row(self, *, counts: bool) -> ResolveRow:
        """It, for a call to a shard: as a use that counts, or only to look whether it does."""
        return ResolveRow(
            self.address.lease, identity(self.address), self.slot, self.take, self.asker, self.use if counts else b""
        )


class Question(Generic[A]):
    """What is asked about one lease, of one shard or of several.

    Args:
        address: the lease.
        call: makes the call, from the version of the layout, whether the shards are asked one after the other (so that what they do
            counts), and the largest number that one of them has answered.
        opened: what an answer says.
        in_turn: the shards are to be asked one after the other from the start; otherwise only if one of them says so.

    Attributes:
        memory: what the verbs keep between two attempts.
    """

    def __init__(
        self,
        address: LeaseAddress,
        call: Callable[[int, bool, int], Call[Any]],
        opened: Callable[[Any], A | SafeRefsError | Granted | NotNow],
        *,
        in_turn: bool,
    ) -> None:
        self.address = address
        self.call = call
        self.opened = opened
        self.in_turn = in_turn
        self.memory: Any = None


def identity(address: LeaseAddress) -> Identity:
    """The identity of the registry that an address names."""
    return Identity(address.epoch, address.generation)


def wanted(address: LeaseAddress, session: Session, *, slot: int | None, take: bool) -> Wanted:
    """What is wanted of a lease, as one use of it.

    Raises:
        WrongClusterError: it is another cluster's.
    """
    session.check_cluster(address)
    # It is worth the time to look up which line ends a lease, not which lines only read it.
    here = session.connection
    asker = session.origin() if take else Origin(here.job, session.node, session.pid, "by loading")
    return Wanted(address, slot, take, asker, os.urandom(8))


def lost(address: LeaseAddress) -> LeaseLostError:
    """The error for a lease whose registry is gone."""
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


class Verbs:
    """Asks a registry once. This one asks its only shard.

    Args:
        registry: which.
        layout: its layout; when that changes, others are made.
    """

    def __init__(self, registry: Registry, layout: Layout) -> None:
        self.registry = registry
        self.layout = layout

    def holders(self, lease: bytes) -> Sequence[int]:
        """The shards that a lease is pinned at."""
        return (0,)

    def by_shard(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        """Leases by the shards that may hold them; while a registry grows, that may be more than `holders`."""
        return {0: list(leases)}

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
            return self.unopened([plan.lease for plan in plans])
        if not isinstance(reply, list):
            self.not_now(reply, deadline)
            return [None] * len(plans)
        return [self.held(each) if isinstance(each, bytes) else each for each in reply]

    def pin_row(self, plan: Plan) -> PinRow:
        """A plan, for a call to a shard. A Ray Client can't tell what its server owns, and the shard can."""
        session = self.registry.session
        borrower = session.address if plan.borrowed or session.connection.client else b""
        return PinRow(plan.lease, len(plan.refs), plan.terms, plan.maker, borrower, plan.extras)

    def held(self, answer: bytes) -> Identity:
        """The identity in the answer to a pin, which is remembered."""
        self.registry.identity = found = Identity.from_bytes(answer)
        return found

    def unopened(self, leases: Sequence[bytes]) -> list[Any]:
        """A call could not be opened, as the job that made an actor has ended. If it isn't clear whose, each asks by itself."""
        if len(leases) > 1:
            return [None] * len(leases)
        return [OwnerGoneError.of(leases[0][:4].hex(), self.registry.name)]

    def resolve_once(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref] | None]:
        """What leases hold, in one call to each shard that holds some.

        Returns:
            For each its references; None if that is not settled by this call: `resolve` it by itself, with the same use.

        Raises:
            RegistryUnavailableError: no answer in time.
        """
        call = Call(Shard.resolve, ResolveCall(self.layout.version, [each.row(counts=True) for each in rows]))
        try:
            reply = self.registry.ask({0: call}, deadline)[0]
        except UnopenedActorError:
            return [None] * len(rows)
        if not isinstance(reply, tuple):
            return [None] * len(rows)
        return [self.resolved(row.address, refs) for row, refs in zip(rows, parts(*reply), strict=True)]

    def resolved(self, address: LeaseAddress, refs: list[Ref] | None) -> list[Ref] | None:
        """References that have come from the registry, of which the client's parts are told."""
        if refs is not None:
            for part in self.registry.session.parts:
                part.resolved(address, refs)
        return refs

    def ask_once(self, question: Question[A], deadline: Deadline) -> A | SafeRefsError | None:
        """Ask about one lease; None if it has to be asked again.

        Raises:
            NoRegistryError: there is none.
            RegistryUnavailableError: no answer in time.
        """
        reply = self.registry.ask({0: question.call(self.layout.version, True, 0)}, deadline)[0]
        answer = reply if isinstance(reply, Silence) else question.opened(reply)
        if isinstance(answer, (NotNow, Silence)):
            self.not_now(answer, deadline)
            return None
        return answer.refusal if isinstance(answer, Granted) else answer

    def release_once(
        self, rows: Sequence[tuple[Sequence[bytes], Origin]], ended: set[bytes], deadline: Deadline
    ) -> bool | None:
        """End leases, each row by whom it says, and add those that this call ended to `ended`; None if it has to be asked again.

        Raises:
            NoRegistryError: there is none.
            RegistryUnavailableError: no answer in time.
        """
        reply = self.registry.ask({0: Call(Shard.release, ReleaseCall(self.layout.version, rows))}, deadline)[0]
        if not isinstance(reply, list):
            self.not_now(reply, deadline)
            return None
        leases = [lease for ids, _ in rows for lease in ids]
        ended.update(lease for lease, flag in zip(leases, reply, strict=True) if flag)
        return True

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


def parts(answers: Sequence[int | Any], refs: list[Ref]) -> list[list[Ref] | None]:
    """The references of each lease, by the answer to a `resolve`; None for one that has none."""
    found: list[list[Ref] | None] = []
    at = 0
    for answer in answers:
        count = answer if type(answer) is int else 0
        found.append(refs[at : at + count] if type(answer) is int else None)
        at += count
    return found


def pin(registry: Registry, plan: Plan, deadline: Deadline) -> Identity:
    """Begin a lease, and wait until the registry holds it.

    Returns:
        The identity of the registry that holds it.

    Raises:
        RegistryFullError: a limit would be passed.
        OwnerGoneError: the job that made an actor has ended.
        RegistryUnavailableError: no answer in time. As with every error, the caller has to release the lease.
    """
    return _until(registry, lambda verbs: verbs.pin_once([plan], deadline)[0], deadline, start=True)


def resolve(registry: Registry, row: Wanted, deadline: Deadline) -> list[Ref]:
    """What a lease holds.

    Raises:
        LeaseError: it has ended, was lost, or was never there; `OwnerGoneError` if the job that made an actor in it has ended.
        RegistryUnavailableError: no answer in time.
    """

    def call(version: int, counts: bool, _: int) -> Call[Any]:
        return Call(Shard.resolve, ResolveCall(version, [row.row(counts=counts)]))

    def opened(answer: Any) -> Any:
        return (answer[1] if type(answer[0][0]) is int else answer[0][0]) if isinstance(answer, tuple) else answer

    question = Question[list[Ref]](row.address, call, opened, in_turn=row.take)
    try:
        refs = _live(registry, question, deadline)
    except UnopenedActorError:
        raise OwnerGoneError.of(row.address.short_id, registry.name) from None
    for part in registry.session.parts:
        part.resolved(row.address, refs)
    return refs


def release(registry: Registry, rows: Sequence[tuple[Sequence[bytes], Origin]], deadline: Deadline) -> set[bytes]:
    """End leases by their ids, each row by whom it says; which of them that ended."""
    ended: set[bytes] = set()
    try:
        _until(registry, lambda verbs: verbs.release_once(rows, ended, deadline), deadline, start=False)
    except NoRegistryError:
        registry.forget()
    for part in registry.session.parts:
        for leases, _ in rows:
            part.released(registry.name, leases)
    return ended


def renew(registry: Registry, address: LeaseAddress, ttl: float | None, deadline: Deadline) -> None:
    """Let a lease live `ttl` seconds from now, or without a limit; errors as for `resolve`."""

    def call(version: int, _: bool, number: int) -> Call[Any]:
        return Call(Shard.renew, RenewCall(version, address.lease, identity(address), ttl, number))

    # The first holder counts the renewals, and the others go by its number: two renewals at once can't be taken in different orders.
    _live(registry, Question[int](address, call, _as_it_is, in_turn=True), deadline)


def expires_in_s(registry: Registry, address: LeaseAddress, deadline: Deadline) -> float | None:
    """Seconds until a lease's ttl runs out; None without one; errors as for `resolve`."""

    def call(version: int, _: bool, __: int) -> Call[Any]:
        return Call(Shard.expires_in_s, ExpiresCall(version, address.lease, identity(address)))

    return _live(registry, Question[tuple[float | None]](address, call, _as_it_is, in_turn=False), deadline)[0]


def _as_it_is(answer: Any) -> Any:
    return answer


def _until(
    registry: Registry, once: Callable[[Verbs], A | SafeRefsError | None], deadline: Deadline, *, start: bool
) -> A:
    """Ask until there is an answer, by the verbs for the layout that the registry has by then.

    Raises:
        SafeRefsError: the answer is an error.
        NoRegistryError: there is no registry, and it is not to be started.
        RegistryUnavailableError: no answer in time.
    """
    while True:
        answer = once(registry.verbs(start=start))
        if isinstance(answer, SafeRefsError):
            raise answer
        if answer is not None:
            return answer
        if registry.knows_layout:  # if the layout has changed, the next attempt may be made at once
            registry.pause(deadline)
        elif deadline.is_over():
            raise registry.no_answer(deadline)


def _live(registry: Registry, question: Question[A], deadline: Deadline) -> A:
    """Ask about a lease. If its maker did not wait for the pin and it isn't there, wait for it, a little."""
    comes_by = min(deadline.at, time.monotonic() + COMES_S) if question.address.soon else 0.0
    while True:
        try:
            return _until(registry, lambda verbs: verbs.ask_once(question, deadline), deadline, start=False)
        except NoRegistryError:
            registry.forget()
            error: SafeRefsError = lost(question.address)
        except (LeaseNotFoundError, LeaseLostError) as refusal:
            error = refusal
        if time.monotonic() >= comes_by:
            raise error.with_traceback(None) from None
        question.memory = None
        time.sleep(_COMES_PAUSE_S)


class Direct:
    """A `Sender` (see `hooks`) without any batching: each request goes out by itself, and its caller waits.

    Args:
        session: whose registries it asks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def pin(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """See `Sender`, as for all below."""
        return pin(self._session.registry(registry), plan, deadline)

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """One after the other."""
        return [self.pin(registry, plan, deadline) for plan in plans]

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """At once."""
        return resolve(self._session.registry(row.address.registry), row, deadline)

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref]]:
        """One after the other."""
        return [self.resolve(row, deadline) for row in rows]

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """At once."""
        return len(release(self._session.registry(registry), [(leases, self._session.origin())], deadline))

    def post(
        self, registry: str, plan: Plan, deadline: Deadline, then: Callable[[Identity | None, Exception | None], None]
    ) -> None:
        """At once, too."""
        then(self.pin(registry, plan, deadline), None)

    def close(self) -> None:
        """It keeps nothing."""

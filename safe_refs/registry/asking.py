"""One request to a registry, sent once. `Verbs` is for a registry with one shard; `ReplicatedVerbs` inherits it, for several.

The module `verbs` repeats a request until there is an answer. Each time it takes the `Verbs` for the layout of that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._ray.objects import UnopenedActorError
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import OwnerGoneError, SafeRefsError
from . import behind, late
from .calls import Call, NoRegistryError, Registry
from .protocols import Layout
from .records import Identity, Origin
from .requests import Plan, Question, Unspent, Wanted
from .shard import Shard
from .wire import GiveBackCall, Granted, NotNow, Overdue, PinCall, PinRow, ReleaseCall, ResolveCall, Silence, split

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")


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
        rows = [
            PinRow(plan.lease, len(plan.refs), plan.terms, plan.maker, plan.borrower, plan.extras) for plan in plans
        ]
        call = Call(Shard.pin, PinCall(self.layout.version, rows), refs)
        try:
            reply = self.registry.ask({0: call}, deadline, start=True)[0]
        except UnopenedActorError:
            return self.unopened([plan.lease for plan in plans])
        answers = [reply] * len(plans) if isinstance(reply, bytes) else reply
        if not isinstance(answers, list):
            self.not_now(answers, deadline)
            return [None] * len(plans)
        for plan, answer in zip(plans, answers, strict=True):
            plan.note_unsure(answer)
        return [self.remember(each) if isinstance(each, bytes) else each for each in answers]

    def remember(self, answer: bytes) -> Identity:
        """Remember the identity in the answer to a pin, and give it."""
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
            For each its references; None if this call does not decide: `resolve` it by itself, with the same use.

        Raises:
            RegistryUnavailableError: no answer in time.
        """

        def calls() -> dict[int, Call[Any]]:
            them = [each.row(counts=True) for each in rows]
            call = Call(Shard.resolve, ResolveCall(self.layout.version, them, True, behind.insists(deadline)))
            call.late = late.of_rows(rows)
            return {0: call}

        try:
            reply = behind.ask(self.registry, calls, deadline)[0]
        except UnopenedActorError:
            return [None] * len(rows)
        if not isinstance(reply, tuple):
            return [None] * len(rows)
        return [self.resolved(row.address, refs) for row, refs in zip(rows, split(*reply), strict=True)]

    def resolved(self, address: LeaseAddress, refs: list[Ref] | None) -> list[Ref] | None:
        """References that have come from the registry. The client's parts learn of them."""
        if refs is not None:
            for part in self.registry.here.parts:
                part.resolved(address, refs)
        return refs

    def ask_once(self, question: Question[A], deadline: Deadline) -> A | SafeRefsError | None:
        """Ask about one lease; None if it has to be asked again.

        Raises:
            NoRegistryError: there is none.
            RegistryUnavailableError: no answer in time.
        """
        reply = self.registry.ask({0: question.call(self.layout.version, True, None)}, deadline)[0]
        answer = reply if isinstance(reply, Silence) else question.opened(reply)
        if isinstance(answer, (NotNow, Silence)):
            self.not_now(answer, deadline)
            return None
        return answer.refusal if isinstance(answer, (Granted, Overdue)) else answer

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

    def give_back_once(self, uses: Sequence[Unspent], lives: set[bytes], deadline: Deadline) -> bool | None:
        """Give uses back, and add the leases that live again by that to `lives`; else as `release_once`."""
        reply = self.registry.ask({0: self.give_back_call(uses)}, deadline)[0]
        if isinstance(reply, (NotNow, Silence)):
            self.not_now(reply, deadline)
            return None
        lives.update(each.plan.lease for each, answer in zip(uses, reply, strict=True) if answer is True)
        return True

    def give_back_call(self, uses: Sequence[Unspent]) -> Call[Sequence[bool | NotNow] | NotNow | Silence]:
        """The call that gives uses back."""
        rows = [each.row() for each in uses]
        return Call(
            Shard.give_back, GiveBackCall(self.layout.version, rows), [ref for each in uses for ref in each.plan.refs]
        )

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
        if reply is NotNow.CLOSING:
            # It has the same layout until it is gone: asking again at once would only keep it busy.
            self.registry.pause(deadline)

"""What asks a registry once that has several shards: each lease's holders, of which the answers are merged (see `merging`).

A lease begins at all its holders at once. It is resolved from all at once, so that the references survive the crash of any one of
them, and an end that one of them knows of beats the lease that another still has. What counts (uses, takes, renewals) goes to one
holder after the other, so that the first decides. It ends at all that may hold it.

What always holds: a pin returns when all holders have the lease, or all except those known to be dead, which get it from the others
later; how answers are understood is not decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .._ray.objects import UnopenedActorError
from ..config import Deadline
from ..errors import SafeRefsError
from ..registry import behind, late
from ..registry.asking import Verbs
from ..registry.calls import LONGEST_WAIT_S, RETRY_PAUSE_S, Call, NoRegistryError, Registry
from ..registry.protocols import Layout
from ..registry.records import Identity, Origin
from ..registry.requests import Plan, Question, Unspent, Wanted
from ..registry.shard import Shard
from ..registry.wire import NotNow, PinCall, PinRow, ReleaseCall, ResolveCall, Silence, split
from .merging import (
    PATIENCE_S,
    Ask,
    Inquiry,
    Pinning,
    Releasing,
    Repair,
    Returning,
    granted_by_all,
    replies_of,
    rows_of,
)
from .part import Replication
from .topology import Topology

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

A = TypeVar("A")

_PINNING = "replication.pinning"  # a plan's note: who holds its lease by now


class ReplicatedVerbs(Verbs):
    """Asks a registry with several shards, once.

    Args:
        registry: which.
        layout: its topology; when that changes, others are made.
    """

    def __init__(self, registry: Registry, layout: Layout) -> None:
        super().__init__(registry, layout)
        self.topology = cast("Topology", layout)

    def holders(self, lease: bytes) -> Sequence[int]:
        """See `Verbs`, as for all below."""
        return self.topology.holders(lease)

    def by_shard(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        """While the registry grows, the old holders have some, and the new ones."""
        found: dict[int, list[bytes]] = {}
        for lease in leases:
            for shard in self.topology.everywhere(lease):
                found.setdefault(shard, []).append(lease)
        return found

    def pin_once(self, plans: Sequence[Plan], deadline: Deadline) -> list[Identity | SafeRefsError | None]:
        """Begin leases, each at all its holders, or at those that are known not to have it yet from an attempt before."""
        holders = [self.topology.holders(plan.lease) for plan in plans]
        pinnings: list[Pinning] = [plan.notes.get(_PINNING, Pinning()) for plan in plans]
        rows = rows_of([pinning.missing(shards) for pinning, shards in zip(pinnings, holders, strict=True)])
        # Most often several shards get the same leases, as each has R holders: then they get the same call.
        calls: dict[tuple[int, ...], Call[bytes | list[bytes | SafeRefsError] | NotNow]] = {}
        for places in rows.values():
            if tuple(places) not in calls:
                calls[tuple(places)] = self._pin_call([plans[place] for place in places])
        by_shard = {shard: calls[tuple(places)] for shard, places in rows.items()}
        try:
            replies = self.registry.ask(by_shard, deadline, start=True)
        except UnopenedActorError:
            return self.unopened([plan.lease for plan in plans])
        finally:
            calls.clear()
            by_shard.clear()
        answers: list[Any] = []
        given = {
            shard: [reply] * len(rows[shard]) if isinstance(reply, bytes) else reply for shard, reply in replies.items()
        }
        for number, each in enumerate(replies_of(rows, given, len(plans))):
            pinnings[number], verdict = pinnings[number].take(holders[number], each)
            for answer in each.values():
                plans[number].note_unsure(answer)
            answers.append(verdict)
        self._repair(plans, pinnings, answers, deadline)
        for plan, pinning in zip(plans, pinnings, strict=True):
            plan.notes[_PINNING] = pinning
        return self._answered(answers, deadline)

    def _pin_call(self, plans: Sequence[Plan]) -> Call[bytes | list[bytes | SafeRefsError] | NotNow]:
        refs = [ref for plan in plans for ref in plan.refs]
        rows = [
            PinRow(plan.lease, len(plan.refs), plan.terms, plan.maker, plan.borrower, plan.extras) for plan in plans
        ]
        return Call(Shard.pin, PinCall(self.topology.version, rows), refs)

    def _repair(self, plans: Sequence[Plan], pinnings: list[Pinning], answers: list[Any], deadline: Deadline) -> None:
        """Some holders are dead: have those that are not pass the leases on to them when they are back."""
        alike: dict[Repair, list[int]] = {}
        for number, answer in enumerate(answers):
            if isinstance(answer, Repair):
                alike.setdefault(answer, []).append(number)
        for repair, numbers in alike.items():
            call = Call(Replication.repair, [plans[number].lease for number in numbers], repair.missing)
            replies = self.registry.ask(dict.fromkeys(repair.shards, call), deadline)
            for number in numbers:
                pinnings[number], answers[number] = pinnings[number].repaired(replies)
            if isinstance(answers[numbers[0]], Identity):
                logger.warning(
                    "%s held by %d of %d replicas: shard(s) %s of registry %r are down, and get %s when they are back",
                    f"lease {plans[numbers[0]].lease[:4].hex()} is"
                    if len(numbers) == 1
                    else f"{len(numbers)} leases are",
                    len(repair.shards),
                    len(repair.shards) + len(repair.missing),
                    ", ".join(map(str, repair.missing)),
                    self.registry.name,
                    "it" if len(numbers) == 1 else "them",
                    extra={"about": (self.registry.name, *repair.missing)},
                )

    def _answered(self, answers: Sequence[Any], deadline: Deadline) -> list[Identity | SafeRefsError | None]:
        """The verdicts on several pins, for the caller."""
        for why in {answer for answer in answers if isinstance(answer, (NotNow, Silence))}:
            # A single pin raises if a shard doesn't answer. Of several, others may have been answered: who wasn't asks by itself.
            if why is not Silence.LATE or len(answers) == 1:
                self.not_now(why, deadline)
        for answer in answers:
            if isinstance(answer, Identity):
                self.registry.identity = answer
        return [None if isinstance(answer, (NotNow, Silence)) else answer for answer in answers]

    def resolve_once(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref] | None]:
        """What leases hold, from all holders of each. Takes, and what counts its uses, are not for all at once: None."""
        shards = [self.topology.everywhere(each.address.lease) for each in rows]
        together = [() if each.take and len(theirs) > 1 else theirs for each, theirs in zip(rows, shards, strict=True)]
        places = rows_of(together)

        def call(theirs: Sequence[int]) -> Call[Any]:
            them = [rows[place].row(counts=len(shards[place]) == 1) for place in theirs]
            made = Call(Shard.resolve, ResolveCall(self.topology.version, them, True, behind.insists(deadline)))
            made.late = late.of_rows([rows[place] for place in theirs])
            return made

        def calls() -> dict[int, Call[Any]]:
            return {shard: call(theirs) for shard, theirs in places.items()}

        try:
            replies = behind.ask(self.registry, calls, deadline, patience_s=PATIENCE_S)
        except UnopenedActorError:
            return [None] * len(rows)  # each finds out whether it is its own
        if NotNow.STALE in replies.values():
            self.registry.forget_layout()
        given = {shard: split(*reply) if isinstance(reply, tuple) else reply for shard, reply in replies.items()}
        answers = replies_of(places, given, len(rows))
        return [self.resolved(row.address, granted_by_all(answer)) for row, answer in zip(rows, answers, strict=True)]

    def ask_once(self, question: Question[A], deadline: Deadline) -> A | SafeRefsError | None:
        """Ask all holders of a lease, at once or one after the other; those that have granted what counts are not asked again."""
        inquiry: Inquiry = question.memory or Inquiry(question.in_turn)
        inquiry, step = inquiry.begin(question.address.lease, self.topology)
        while isinstance(step, Ask):
            call: Call[Any] = question.call(self.topology.version, step.counts, step.decided)
            patience_s = LONGEST_WAIT_S if step.counts else PATIENCE_S
            replies = self.registry.ask(dict.fromkeys(step.shards, call), deadline, patience_s=patience_s)
            inquiry, step = inquiry.take(_opened(question, replies))
        if not isinstance(step, (NotNow, Silence)):
            question.memory = None
            return cast("A | SafeRefsError", step)
        question.memory = inquiry
        # One holder can't tell, and the other has been waited for no longer than that one's answer is worth: there is more time.
        if step is not Silence.LATE or deadline.left_s() <= RETRY_PAUSE_S:
            self.not_now(step, deadline)
        return None

    def give_back_once(self, uses: Sequence[Unspent], lives: set[bytes], deadline: Deadline) -> bool | None:
        """Give uses back at all that may hold their leases, at the deciding holders last."""
        begun: list[tuple[Returning, Ask | bool | NotNow | Silence]]
        begun = [Returning().begin(each.plan.lease, self.topology) for each in uses]
        while any(isinstance(step, Ask) for _, step in begun):
            rows = rows_of([step.shards if isinstance(step, Ask) else () for _, step in begun])
            calls = {shard: self.give_back_call([uses[place] for place in places]) for shard, places in rows.items()}
            # One that doesn't respond must not keep the others from being asked.
            until = Deadline(deadline.at - deadline.left_s() / 2, deadline.timeout_s)
            answers = replies_of(rows, self.registry.ask(calls, until), len(uses))
            for place, (returning, step) in enumerate(begun):
                if isinstance(step, Ask):
                    begun[place] = returning.take(answers[place])
                    lives.update(uses[place].plan.lease for answer in answers[place].values() if answer is True)
        for _, verdict in begun:
            if isinstance(verdict, (NotNow, Silence)):
                self.not_now(verdict, deadline)
                return None
        return True

    def release_once(
        self, rows: Sequence[tuple[Sequence[bytes], Origin]], ended: set[bytes], deadline: Deadline
    ) -> bool | None:
        """End leases at all that may hold them, except those that are dead, which hear it from the others.

        Where there are no others, it is asked until it is back.
        """
        makers = {lease: maker for leases, maker in rows for lease in leases}
        releasing = Releasing().begin(makers, self.topology)
        while releasing.waiting:
            calls = {
                shard: Call(Shard.release, ReleaseCall(self.topology.version, _rows(theirs, makers)))
                for shard, theirs in releasing.waiting
            }
            replies = self.registry.ask(calls, deadline)
            if all(reply is Silence.ABSENT for reply in replies.values()):
                raise NoRegistryError
            releasing, these, verdict = releasing.take(replies)
            ended.update(these)
            if verdict is NotNow.RECOVERING:
                self.registry.pause(deadline)
            elif isinstance(verdict, (NotNow, Silence)):
                self.not_now(verdict, deadline)
                return None
        return True


def _opened(question: Question[Any], replies: Mapping[int, Any]) -> dict[int, Any]:
    return {shard: reply if isinstance(reply, Silence) else question.opened(reply) for shard, reply in replies.items()}


def _rows(leases: Iterable[bytes], makers: Mapping[bytes, Origin]) -> list[tuple[list[bytes], Origin]]:
    """Leases as rows with who ends them: neighbours with the same go together."""
    rows: list[tuple[list[bytes], Origin]] = []
    for lease in leases:
        if not rows or rows[-1][1] is not makers[lease]:
            rows.append(([], makers[lease]))
        rows[-1][0].append(lease)
    return rows

"""Clients: they drive the real machines of `merging` with the answers of the shards. And the scope of what is explored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from safe_refs.config import Limits
from safe_refs.envelope import LeaseAddress
from safe_refs.errors import SafeRefsError
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.requests import Question
from safe_refs.registry.wire import NotNow, Silence
from safe_refs.replication.merging import Ask, Inquiry, Pinning, Releasing, Repair, Returning
from safe_refs.replication.rules import Rules

from .model import BACKS, EARLY, LEASES, RENEWALS, TAKES, TOPOLOGY, Choice, Op, Status

SENT: Status = ("sent", False)
IDLE: Status = ("idle",)


_EARLY = LeaseAddress("r", b"c" * 28, b"e" * 8, 1, b"l" * 16, soon=True)


def waits_for(refusal: SafeRefsError) -> bool:
    """Whether who has a payload whose pin was not acknowledged asks again, as `verbs` do it."""
    return Question[Any](_EARLY, lambda *_: None, lambda _: NotNow.STALE, in_turn=False).awaits(refusal)


@dataclass
class Scope:
    """What is explored.

    Attributes:
        programs: of the three clients: for each step, the choices.
        crashes: of shards, in all.
        deaths: of clients, in all.
        doubles: of calls and of news, in all.
        lates: how often a client gives up waiting for an answer, in all; the call may arrive all the same.
        both: whether a shard may crash while the other is down or recovering.
        borrowed: makers don't own what they pin, so that leases depend on them until the owner knows the shards.
        uses: of both leases.
        ttl: both leases have a first ttl, which may pass on each shard at any time.
        limits: of each shard.
        table, rules: the classes of a shard.
        inquiry, pinning, releasing, returning: the classes of a client's machines.
        waits_for: whether an early reader asks again.
        strict: promise all the same what both shards may have lost, as they crashed around one call or were out at the same time.
        only: look for violations of that property, and pass over others.
    """

    programs: tuple[tuple[tuple[Choice, ...], ...], ...]
    crashes: int = 1
    deaths: int = 1
    doubles: int = 0
    lates: int = 0
    both: bool = False
    borrowed: bool = False
    uses: tuple[int | None, int | None] = (None, 1)
    ttl: bool = False
    limits: Limits = field(default_factory=Limits)
    table: type[LeaseTable[str]] = LeaseTable
    rules: type[Rules[str]] = Rules
    inquiry: type[Inquiry] = Inquiry
    pinning: type[Pinning] = Pinning
    releasing: type[Releasing] = Releasing
    returning: type[Returning] = Returning
    waits_for: Callable[[SafeRefsError], bool] = waits_for
    strict: bool = False
    only: str = ""

    @property
    def is_shaky(self) -> bool:
        """Whether so much may go wrong that not all is promised: what may have been forgotten has to be noted."""
        return self.crashes > 1 or self.lates > 0 or self.borrowed


def begin(op: Op, scope: Scope) -> Op:
    """Ask for the first time, or once more."""
    lease, machine = LEASES[op.lease], op.machine
    if op.kind == "pin":
        pinning = machine if isinstance(machine, Pinning) else scope.pinning()
        return _sent(op, pinning, Ask(pinning.missing(TOPOLOGY.holders(lease)), counts=True))
    if op.kind == "release":
        releasing = machine if isinstance(machine, Releasing) else scope.releasing()
        releasing = releasing.begin([lease], TOPOLOGY)
        return _sent(op, releasing, Ask(tuple(shard for shard, _ in releasing.waiting or ()), counts=True))
    if op.kind in BACKS:
        return _sent(op, *scope.returning().begin(lease, TOPOLOGY))
    inquiry = machine if isinstance(machine, Inquiry) else scope.inquiry(op.kind in RENEWALS or op.kind in TAKES)
    return _sent(op, *inquiry.begin(lease, TOPOLOGY))


def go_on(op: Op, scope: Scope) -> tuple[Op, Any]:
    """What the real client does with the answers so far: the op as it goes on, and the verdict (None: not yet)."""
    if any(call[0] in ("sent", "done") for call in op.calls):
        return op, None
    replies = {shard: call[1] for shard, call in enumerate(op.calls) if call[0] == "here"}
    machine, verdict = _taken(op, replies)
    if isinstance(verdict, (Ask, Repair)):
        return _sent(op, machine, verdict), None
    if isinstance(verdict, NotNow):
        return begin(op._replace(machine=machine), scope), None
    if op.kind in EARLY and isinstance(verdict, SafeRefsError) and scope.waits_for(verdict):
        return op._replace(machine=None, ask=None, calls=(IDLE, IDLE)), None
    return op, verdict


def _taken(op: Op, replies: dict[int, Any]) -> tuple[Any, Any]:
    if isinstance(op.machine, Releasing):
        machine, _, verdict = op.machine.take(replies)
        return machine, verdict
    if isinstance(op.machine, Pinning):
        repairs = isinstance(op.ask, Repair)
        return op.machine.repaired(replies) if repairs else op.machine.take(TOPOLOGY.holders(LEASES[op.lease]), replies)
    assert op.machine is not None
    return op.machine.take(replies)


def _sent(op: Op, machine: Any, ask: Ask | Repair) -> Op:
    calls = (SENT if 0 in ask.shards else IDLE, SENT if 1 in ask.shards else IDLE)
    return op._replace(machine=machine, ask=ask, calls=calls)


def with_call(op: Op, shard: int, status: Status) -> Op:
    return op._replace(calls=(status, op.calls[1]) if shard == 0 else (op.calls[0], status))


def given_up(op: Op) -> Op:
    """Its time is over: whatever has not been answered by now is late."""
    first, second = (("here", Silence.LATE) if call[0] in ("sent", "done") else call for call in op.calls)
    return op._replace(calls=(first, second))

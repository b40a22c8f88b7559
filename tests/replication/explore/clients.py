"""Clients: what they do with the answers of the shards, and the scope of what is explored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from safe_refs.registry.replication import Replica

from safe_refs.config import Limits
from safe_refs.registry.leases import LeaseTable

from .model import IN_TURN, Choice, Op, Status

SENT: Status = ("sent", False)
GRANTS = ("ok", "items", "renewed")


def as_the_client(op: Op, holders: tuple[int, ...]) -> tuple[Op, str]:
    """What the real client does with the answers so far: the op as it goes on, and how it ends ("": not yet)."""
    kinds = (op.calls[0][0], op.calls[1][0])
    if "sent" in kinds or "done" in kinds:
        return op, ""
    if op.kind in IN_TURN:
        return _in_turn(op, kinds, holders)
    if op.kind == "resolve":
        # An end beats all; items from anybody will do; as long as one is dead or recovering, both are asked again.
        for answer in ("ended", "items"):
            if answer in kinds:
                return op, answer
        if "recovering" in kinds or "no" in kinds:
            return begin(op, holders), ""
        return op, "lost" if "lost" in kinds else "not found"
    if "ok" not in kinds:
        return begin(op, holders), ""
    if op.kind == "pin" and "no" in kinds:
        return op._replace(calls=_pair(kinds.index("no"), ("repairing",), SENT)), ""
    return op, "well"


def _in_turn(op: Op, kinds: tuple[str, str], holders: tuple[int, ...]) -> tuple[Op, str]:
    """One holder after the other; in a further round, those that have granted it before are left out."""
    for answer in ("ended", "yours"):
        if answer in kinds and (answer == "ended" or not any(kind in GRANTS for kind in kinds)):
            return op, answer
    if "later" in kinds:
        return with_call(op, kinds.index("later"), SENT), ""
    if any(kind in GRANTS for kind in kinds):
        return op, "well"
    if "recovering" in kinds or "no" in kinds:
        return begin(op, holders), ""
    return op, "lost" if "lost" in kinds else "not found"


Rules = Callable[[Op, tuple[int, ...]], tuple[Op, str]]


def with_call(op: Op, shard: int, status: Status) -> Op:
    return op._replace(calls=_pair(shard, status, op.calls[1 - shard]))


def _pair(shard: int, mine: Status, other: Status) -> tuple[Status, Status]:
    return (mine, other) if shard == 0 else (other, mine)


def begin(op: Op, holders: tuple[int, ...]) -> Op:
    """Send the first calls: to both at once, or in turn."""
    if op.kind in IN_TURN:
        return op._replace(calls=_pair(holders[0], SENT, ("later",)))
    return op._replace(calls=(SENT, SENT))


@dataclass
class Scope:
    """What is explored.

    Attributes:
        programs: of the three clients: for each step, the choices.
        crashes: of shards, in all.
        deaths: of clients, in all.
        doubles: of calls and of news, in all.
        both: whether a shard may crash while the other is down or recovering.
        uses: of both leases.
        limits: of each shard.
        rules: how clients deal with answers.
        table: the class of the rules.
        replica: the class of the replication.
        strict: promise all the same what both shards may have lost, as they crashed around one call or were out at the same time.
        only: look for violations of that property, and pass over others.
    """

    programs: tuple[tuple[tuple[Choice, ...], ...], ...]
    crashes: int = 1
    deaths: int = 1
    doubles: int = 0
    both: bool = False
    uses: tuple[int | None, int | None] = (None, 1)
    limits: Limits = field(default_factory=Limits)
    rules: Rules = as_the_client
    table: type[LeaseTable[str]] = LeaseTable
    replica: type[Replica[str]] = Replica
    strict: bool = False
    only: str = ""

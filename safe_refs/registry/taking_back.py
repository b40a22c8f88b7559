"""What a shard does with uses that are given back: the references that come with them are as good as in a pin.

What always holds: a lease that lives again does so on what the reader has handed back, and depends on that process as on any borrower
that pins, until the owners know the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from .._ray import actors, workers
from . import steps
from .hooks import Parts
from .leases import LeaseTable
from .wire import GiveBackCall, GiveBackRow, NotNow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]


class Shard(Protocol):
    """What this needs of `shard.Shard`, which says what each is."""

    table: LeaseTable[Ref]
    parts: Parts
    lock: Lock

    def refuses(self) -> NotNow | None:
        """Whether nothing new is held now."""

    def weigh(self, refs: Sequence[Ref]) -> dict[Ref, int]:
        """Sizes of objects."""


def carry_out(shard: Shard, call: GiveBackCall, refs: list[Ref]) -> list[bool | NotNow] | NotNow:
    """Take uses back, each with its references: for each whether its lease lives again by that."""
    not_now = shard.refuses() or shard.parts.admit(call.version)
    if not_now is not None:
        return not_now
    answers: list[bool | NotNow] = []
    at = 0
    for row in call.rows:
        answers.append(_take_back(shard, row, actors.interned(refs[at : at + row.size])))
        at += row.size
    return answers


def _take_back(shard: Shard, row: GiveBackRow, refs: list[Ref]) -> bool | NotNow:
    owners = [workers.owner_of(ref) for ref in refs]
    if row.borrower and workers.owns_all(row.borrower, owners):
        row = row._replace(borrower=b"")  # a Ray Client, which did not know
    shard.parts.pinning(row.borrower, refs)
    sizes = shard.weigh(refs)
    with shard.lock:
        shard.table.usage.learn(sizes)
        answer = steps.give_back(shard.table, shard.parts, row, refs, owners)
        shard.table.usage.forget_unheld(refs)
    return answer

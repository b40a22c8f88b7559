"""What a shard does with uses that are given back: the references that come with them are as good as in a pin.

What always holds: a lease that lives again does so on what the reader has handed back, and depends on that process as on any borrower
that pins, until the owners know the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from . import steps
from .arriving import arrived
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
    # Something that can't be held is none of what the reader has got.
    return [False if isinstance(each, Exception) else _take_back(shard, *each) for each in arrived(call.rows, refs)]


def _take_back(shard: Shard, row: GiveBackRow, refs: list[Ref], owners: list[bytes]) -> bool | NotNow:
    shard.parts.pinning(row.borrower, refs)
    sizes = shard.weigh(refs)
    with shard.lock:
        shard.table.usage.learn(sizes)
        answer = steps.give_back(shard.table, shard.parts, row, refs, owners)
        shard.table.usage.forget_unheld(refs)
    return answer

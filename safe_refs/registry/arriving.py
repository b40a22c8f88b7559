"""References that arrive at a shard, in pins and with uses that are given back: whose they are, and what can't be held.

What always holds: nothing has changed when this is done, so that a call that is refused here leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._ray import actors, workers
from ..errors import UnsupportedReferenceError
from .wire import GiveBackRow, PinRow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

R = TypeVar("R", PinRow, GiveBackRow)


def arrived(rows: Sequence[R], refs: list[Ref]) -> list[tuple[R, list[Ref], list[bytes]] | UnsupportedReferenceError]:
    """Each row with its references and the owners of these; or why they can't be held.

    A row's borrower is left out where it owns all of them: that is a Ray Client, which did not know.

    Raises:
        ValueError: there are not as many references as the rows say.
    """
    count = sum(row.size for row in rows)
    if count != len(refs):
        raise ValueError(f"the rows of the call name {count} references, and {len(refs)} came with it")
    found: list[tuple[R, list[Ref], list[bytes]] | UnsupportedReferenceError] = []
    at = 0
    for row in rows:
        theirs = actors.interned(refs[at : at + row.size])
        at += row.size
        refused = actors.refused(theirs)
        if refused is None:
            try:
                owners = [workers.owner_of(ref) for ref in theirs]
            except ValueError:
                refused = UnsupportedReferenceError("a reference has no owner that Ray knows: it was made of a bare id")
        if refused is not None:
            found.append(refused)
            continue
        if row.borrower and workers.owns_all(row.borrower, owners):
            row = row._replace(borrower=b"")
        found.append((row, theirs, owners))
    return found

"""Listing live leases, a page at a time. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from typing import Generic, TypeVar

from .lease import Lease
from .leases import LeaseTable
from .records import LeaseInfo, Query

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a listing.

    Attributes:
        infos: its rows.
        leases: of each row, the lease's id.
        items: of each row, what the lease holds.
        marks: of each row, a mark that is the same on every replica of the lease, and resolves nothing.
        after: where the next page begins; None if this is the last.
    """

    infos: list[LeaseInfo]
    leases: list[bytes]
    items: list[tuple[T, ...]]
    marks: list[bytes]
    after: tuple[float, int] | None


def page(table: LeaseTable[T], query: Query, sizes: Mapping[T, int] | None = None) -> Page[T]:
    """Live leases, each with its items, and where the next page begins.

    Args:
        table: which leases.
        query: which of them, in which order, and from where on.
        sizes: bytes of the objects, as far as they are known; needed where the query asks for them.
    """
    now = table.clock()

    def size(held: Lease[T]) -> int:
        return sum((sizes or {}).get(item, 0) for item in set(held.items))

    def key(held: Lease[T]) -> tuple[float, int]:
        if query.sort == "expires":
            return (math.inf if held.expires_at is None else held.expires_at, held.number)
        if query.sort == "references":
            return (-len(held.items), held.number)
        if query.sort == "bytes":
            return (-size(held), held.number)
        return (held.number, held.number)

    def wanted(held: Lease[T]) -> bool:
        return (
            (query.label is None or held.terms.label == query.label)
            and (query.job is None or held.origin.job == query.job)
            and (query.min_age_s is None or now - held.since >= query.min_age_s)
            and (query.min_bytes is None or size(held) >= query.min_bytes)
            and (query.after is None or key(held) > query.after)
        )

    found = ((key(held), lease, held) for lease, held in table.live.items() if wanted(held))
    # Leases stand in the order in which they began, so that pages by age need no sorting.
    by_age = query.sort == "age"
    rows = list(islice(found, query.limit)) if by_age else heapq.nsmallest(query.limit, found, key=itemgetter(0))
    leases = [lease for _, lease, _ in rows]
    return Page(
        infos=[_info(lease, held, now, None if sizes is None else size(held)) for _, lease, held in rows],
        leases=leases,
        items=[held.items for _, _, held in rows],
        marks=[blake2b(lease, digest_size=16).digest() for lease in leases],
        after=rows[-1][0] if len(rows) == query.limit else None,
    )


def _info(lease: bytes, held: Lease[T], now: float, size: int | None) -> LeaseInfo:
    return LeaseInfo(
        number=held.number,
        short_id=lease[:4].hex(),
        label=held.terms.label,
        age_s=now - held.since,
        expires_in_s=None if held.expires_at is None else held.expires_at - now,
        uses_left=held.uses_left,
        references=len(held.items),
        size_bytes=size,
        job=held.origin.job,
        node=held.origin.node,
        pid=held.origin.pid,
        source=held.origin.source,
        durable=held.terms.durable is not None,
    )

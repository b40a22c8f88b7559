"""Choosing live leases by what is known of them, a page at a time: to list them, or to end them. Pure.

What always holds: nothing in the rows resolves a lease. By its mark a lease can be ended, and nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, TypeVar

from .lease import Lease
from .leases import LeaseTable
from .records import LeaseInfo, Query

T = TypeVar("T")

_SHORT = 4  # bytes of an id that are its short id


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a listing.

    Attributes:
        infos: its rows.
        leases: of each row, the lease's id.
        items: of each row, what the lease holds.
        after: where the next page begins; None if this is the last.
    """

    infos: list[LeaseInfo]
    leases: list[bytes]
    items: list[tuple[T, ...]]
    after: tuple[float, int] | None


def mark_of(lease: bytes) -> bytes:
    """A mark that is the same on every replica of a lease: by it a shard finds the lease again, and nobody its id.

    It is the short id, which is public, and a hash of the id, which is random.
    """
    return lease[:_SHORT] + blake2b(lease, digest_size=16).digest()


def page(table: LeaseTable[T], query: Query, sizes: Mapping[T, int] | None = None) -> Page[T]:
    """Live leases, each with its items, and where the next page begins.

    Args:
        table: which leases.
        query: which of them, in which order, and from where on.
        sizes: bytes of the objects, as far as they are known; needed where the query asks for them.
    """
    now, chooses = table.clock(), _chooser(table, query)

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

    def wanted(lease: bytes, held: Lease[T]) -> bool:
        return (
            chooses(lease, held)
            and (query.min_bytes is None or size(held) >= query.min_bytes)
            and (query.after is None or key(held) > query.after)
        )

    found = ((key(held), lease, held) for lease, held in table.live.items() if wanted(lease, held))
    # Leases stand in the order in which they began, so that pages by age need no sorting.
    by_age = query.sort == "age"
    rows = list(islice(found, query.limit)) if by_age else heapq.nsmallest(query.limit, found, key=itemgetter(0))
    return Page(
        infos=[
            _info(table.registry, lease, held, now, None if sizes is None else size(held)) for _, lease, held in rows
        ],
        leases=[lease for _, lease, _ in rows],
        items=[held.items for _, _, held in rows],
        after=rows[-1][0] if len(rows) == query.limit else None,
    )


def revocable(table: LeaseTable[Any], query: Query) -> list[bytes]:
    """Leases that a query would choose if they lived: a use has ended them, and they live again if that is given back."""
    chooses = _chooser(table, query)
    return [lease for lease, held in table.tombstones.all_revocable() if chooses(lease, held)]


def _chooser(table: LeaseTable[Any], query: Query) -> Callable[[bytes, Lease[Any]], bool]:
    """Whether a query chooses a lease, of whatever size, on whatever page."""
    now = table.clock()
    shorts = None if query.marks is None else {mark[:_SHORT] for mark in query.marks}

    def chooses(lease: bytes, held: Lease[Any]) -> bool:
        return (
            (shorts is None or query.marks is None or (lease[:_SHORT] in shorts and mark_of(lease) in query.marks))
            and (held.expires_at is None or held.expires_at > now)  # nobody may have swept yet
            and (query.label is None or held.terms.label == query.label)
            and (query.job is None or held.origin.job == query.job)
            and (query.min_age_s is None or now - held.since >= query.min_age_s)
        )

    return chooses


def _info(registry: str, lease: bytes, held: Lease[T], now: float, size: int | None) -> LeaseInfo:
    return LeaseInfo(
        number=held.number,
        short_id=lease[:_SHORT].hex(),
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
        registry=registry,
        _mark=mark_of(lease),
    )

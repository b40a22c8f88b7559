"""Leases as one shard sends them to another, and how a shard merges what it receives into its own table. Pure.

What always holds: of a lease only such things change as grow (its uses, the number of its renewals), and an end beats a live lease.
So records may be merged in any order, any number of times, and all shards that have merged the same ones agree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

from ..registry.leases import LeaseTable
from ..registry.records import Origin, Terms
from ..registry.tombstones import End

T = TypeVar("T")


class Record(NamedTuple):
    """A live lease.

    Attributes:
        lease: its id.
        items: what it holds.
        owners: for each item, what names the process that the item dies with.
        terms: as of its last renewal.
        origin: who made it.
        age_s: seconds since it began.
        left_s: seconds until its ttl runs out; None without one.
        renewals: how often it was renewed.
        used: ids of the uses that it has granted, if it counts them.
    """

    lease: bytes
    items: tuple[Any, ...]
    owners: tuple[bytes, ...]
    terms: Terms
    origin: Origin
    age_s: float
    left_s: float | None
    renewals: int
    used: frozenset[bytes]


class EndRecord(NamedTuple):
    """A lease that has ended.

    Attributes:
        lease: its id.
        how: see `tombstones.End`, like `at`, `by`, `terms` and `uses`.
        ago_s: how many seconds ago.
        at: when, in seconds since the epoch.
        by: who ended it.
        terms: its terms at the end.
        uses: ids of the uses that it granted; see `granted`.
    """

    lease: bytes
    how: str
    ago_s: float
    at: float
    by: str
    terms: Terms
    uses: tuple[bytes, ...] = ()


class Records(NamedTuple):
    """What one shard sends to another.

    Attributes:
        live: records of live leases.
        ended: records of ended ones.
        sender: address of the sending shard's process: the leases depend on it, until the objects' owners know the receiver.
    """

    live: list[Record]
    ended: list[EndRecord]
    sender: bytes = b""


def record_of(table: LeaseTable[Any], lease: bytes) -> Record | None:
    """The record of a live lease; None if it isn't live."""
    held = table.find(lease)
    if held is None:
        return None
    now = table.clock()
    left = None if held.expires_at is None else held.expires_at - now
    age = now - held.since
    return Record(lease, held.items, held.owners, held.terms, held.origin, age, left, held.renewals, held.used)


def end_record_of(table: LeaseTable[Any], lease: bytes) -> EndRecord | None:
    """The record of an ended lease; None if it hasn't ended, or that is forgotten."""
    end = table.tombstones.get(lease)
    if end is None:
        return None
    return EndRecord(lease, end.how, table.clock() - end.since, end.at, end.by, end.terms, end.uses)


def merge_record(table: LeaseTable[T], record: Record) -> bool:
    """Hold a lease of another shard, or learn from its record of uses and renewals; False if the lease has ended here.

    Limits don't count: the lease was let in where it was made.
    """
    lease = record.lease
    if lease in table.tombstones:
        return False
    # Not `find`: where its time is over here, and nobody has swept yet, the record may bring the renewal that came in time.
    held = table.live.get(lease)
    if held is None:
        held = table.begin(lease, record.items, record.owners, record.terms, record.origin, record.age_s)
        held.renewals = record.renewals - 1  # so that the time that is left is taken from the record, below
    # Of two renewals with one number (each shard counted one while the other was down) the longer one counts, on all shards.
    if (record.renewals, _length(record.terms.ttl)) > (held.renewals, _length(held.terms.ttl)):
        table.set_time(lease, record.terms.ttl, record.left_s, record.renewals)
    if record.terms.durable is not None and held.terms.durable is None:
        # It became durable elsewhere, and this shard was not asked, or had failed: it holds the other's copies at first.
        terms = held.terms._replace(durable=record.terms.durable)
        if not table.replace(lease, record.items, record.owners, terms):
            return True  # its time is over, here as there
    held.used |= record.used
    if held.uses_left is not None and held.uses_left <= 0:
        table.end(lease, "used_up", str(record.origin))
    return True


def merge_end(table: LeaseTable[Any], record: EndRecord) -> bool:
    """A lease has ended on another shard, and so it has here; whether it was live here until now."""
    lease = record.lease
    held = table.live.get(lease)
    if held is not None:
        if held.terms.uses is not None and len(held.used.union(record.uses)) > held.terms.uses:
            # Both shards granted uses while the other was down, in all too many: this end excuses none of them here.
            record = record._replace(uses=())
        table.end(lease, record.how, record.by)
    if held is not None or lease not in table.tombstones:
        since = table.clock() - record.ago_s
        table.tombstones.add(lease, End(record.how, since, record.at, record.by, record.terms, record.uses))
    return held is not None


def granted(table: LeaseTable[Any], lease: bytes, use: bytes) -> bool:
    """Whether a lease that has ended granted this very use before.

    Replicas are asked one after the other. One that is asked second may have received the end already, and must not refuse what the
    first has granted. It can tell for a take, and for leases of up to 16 uses.
    """
    end = table.tombstones.get(lease)
    return end is not None and use in end.uses


def _length(ttl: float | None) -> float:
    return math.inf if ttl is None else ttl

"""Leases as one shard sends them to another, and how a shard merges what it receives into its own table. Pure.

What always holds: of a lease only such things change as grow (its uses, those that were given back, the number of its renewals), and
an end beats a live lease, unless it is the end by a use that was given back, or by a time that was renewed elsewhere (see
`lease.time_of`). So records may be merged in any order, any number of times, and all shards that have merged the same ones agree.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar

from ..bounds import Address, AnySpan, LeaseId, OneOf, Reference, Time, UseId, Whole
from ..registry import unspent
from ..registry.lease import Lease, time_of
from ..registry.leases import MOST_USES_REMEMBERED, LeaseTable
from ..registry.records import Origin, Renewal, Terms
from ..registry.tombstones import HOW, End, Revocable

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
        given_s: see `registry.lease.Lease`.
        used: ids of the uses that it has granted, if it counts them.
        returned: ids of those that were given back.
    """

    lease: LeaseId
    items: tuple[Reference, ...]
    owners: tuple[Address, ...]
    terms: Terms
    origin: Origin
    age_s: AnySpan
    left_s: AnySpan | None
    renewals: Whole
    given_s: AnySpan | None
    used: frozenset[UseId]
    returned: frozenset[UseId] = frozenset()


class RevocableRecord(NamedTuple):
    """What may make an end void: see `tombstones.Revocable`.

    Attributes:
        used: as of `Lease`, like `takes` and `returned`.
        takes: see `used`.
        returned: see `used`.
        origin: as of `Record`, like `age_s`, `left_s`, `renewals` and `given_s`.
        age_s: see `origin`.
        left_s: see `origin`.
        renewals: see `origin`.
        given_s: see `origin`.
        size: how many items it held.
        expired: as of `Lease`.
    """

    used: frozenset[UseId]
    takes: frozenset[UseId]
    returned: frozenset[UseId]
    origin: Origin
    age_s: AnySpan
    left_s: AnySpan | None
    renewals: Whole
    given_s: AnySpan | None
    size: Whole
    expired: bool = False


class EndRecord(NamedTuple):
    """A lease that has ended.

    Attributes:
        lease: its id.
        how: see `tombstones.End`, like `at`, `by`, `terms` and `uses`.
        ago_s: how many seconds ago.
        at: when, in seconds since the epoch.
        by: who ended it.
        terms: its terms at the end, or as of a later renewal that has become known.
        uses: ids of the uses that it granted; see `granted`.
        revocable: what may make this end void; None if it is final.
    """

    lease: LeaseId
    how: Annotated[str, OneOf(HOW)]
    ago_s: AnySpan
    at: Time
    by: str
    terms: Terms
    uses: tuple[UseId, ...] = ()
    revocable: RevocableRecord | None = None


class Records(NamedTuple):
    """What one shard sends to another.

    Attributes:
        live: records of live leases.
        ended: records of ended ones.
        sender: address of the sending shard's process: the leases depend on it, until the objects' owners know the receiver.
    """

    live: list[Record]
    ended: list[EndRecord]
    sender: Address = b""


def check_sizes(records: Records) -> None:
    """Whether each item has an owner, and each owner an item.

    Raises:
        ValueError: it isn't so.
    """
    if any(len(record.items) != len(record.owners) for record in records.live):
        raise ValueError("a record names more owners than items, or fewer")


def record_of(table: LeaseTable[Any], lease: bytes) -> Record | None:
    """The record of a live lease; None if it isn't live."""
    held = table.find(lease)
    if held is None:
        return None
    age, time = _times(table, held)
    return Record(lease, held.items, held.owners, held.terms, held.origin, age, *time, held.used, held.returned)


def end_record_of(table: LeaseTable[Any], lease: bytes) -> EndRecord | None:
    """The record of an ended lease; None if it hasn't ended, or that is forgotten."""
    end = table.tombstones.get(lease)
    if end is None:
        return None
    if (ended := table.tombstones.revocable(lease)) is None:
        return EndRecord(lease, end.how, table.clock() - end.since, end.at, end.by, end.terms, end.uses)
    held, (age, time) = ended.lease, _times(table, ended.lease)
    revocable = RevocableRecord(
        held.used, held.takes, held.returned, held.origin, age, *time, ended.size, expired=held.expired
    )
    return EndRecord(lease, end.how, table.clock() - end.since, end.at, end.by, held.terms, end.uses, revocable)


def merge_record(table: LeaseTable[T], record: Record) -> bool:
    """Hold a lease of another shard, or learn from its record of uses and renewals; False if the lease has ended here.

    Limits don't count: the lease was let in where it was made.
    """
    lease = record.lease
    if lease in table.tombstones:
        if (ended := table.tombstones.revocable(lease)) is not None:
            ended.lease.give_back(record.returned)
            ended.lease.count(record.used)
            _learn_time(table, lease, ended.lease, record)
            _ended_by_uses(table, lease, ended, table.wall(), str(record.origin))
        if not unspent.live_elsewhere(table, lease, record.items, record.owners):
            return False
    # Not `find`: where its time is over here, and nobody has swept yet, the record may bring the renewal that came in time.
    held = table.live.get(lease)
    if held is None:
        held = table.begin(lease, record.items, record.owners, record.terms, record.origin, record.age_s)
        held.renewals = record.renewals - 1  # so that the time that is left is taken from the record, below
    _learn_time(table, lease, held, record)
    if record.terms.durable is not None and held.terms.durable is None:
        # It became durable elsewhere, and this shard was not asked, or had failed: it holds the other's copies at first.
        terms = held.terms._replace(durable=record.terms.durable)
        if not table.replace(lease, record.items, record.owners, terms):
            return True  # its time is over, here as there
    held.give_back(record.returned)
    held.count(record.used)
    if held.uses_left is not None and held.uses_left <= 0:
        table.end(lease, "used_up", str(record.origin))
    return True


def merge_end(table: LeaseTable[Any], record: EndRecord) -> bool:
    """A lease has ended on another shard, and so it has here; whether that has ended it here.

    It goes on living if the use that ended it there was given back, or one of those that were too many; or if its time was over
    there, and it was renewed here.
    """
    lease, theirs = record.lease, record.revocable
    held, ended = table.live.get(lease), table.tombstones.revocable(lease)
    known = held or (ended and ended.lease)
    if known is not None and theirs is not None:
        known.give_back(theirs.returned)
        known.count(theirs.used, theirs.takes)
        _learn_time(table, lease, known, record)
    if held is not None:
        if theirs is not None and not held.is_over:
            return False
        both = held.used.union(record.uses) - held.returned
        if held.terms.uses is not None and len(both) > held.terms.uses:
            # Both shards granted uses while the other was down, in all too many: this end excuses none of them here.
            record = record._replace(uses=())
        elif len(both) <= MOST_USES_REMEMBERED:
            record = record._replace(uses=tuple(both))
        if record.how == "expired" and theirs is not None and not held.expired:
            # Renewed here in time; but the uses of both shards are all that it had, or it was taken.
            record = record._replace(how="released" if held.takes else "used_up")
        table.end(lease, record.how, record.by)
        ended = table.tombstones.revocable(lease)
    if theirs is None:
        ended = None
        table.tombstones.finish(lease)
    elif held is None and ended is not None:
        _ended_by_uses(table, lease, ended, record.at, record.by)
    elif known is None:
        ended = Revocable(_heard(record, theirs, table.clock()), theirs.size, was_here=False)
    if held is not None or lease not in table.tombstones:
        since = table.clock() - record.ago_s
        table.tombstones.add(lease, End(record.how, since, record.at, record.by, record.terms, record.uses), ended)
    return held is not None


def _heard(record: EndRecord, theirs: RevocableRecord, now: float) -> Lease[Any]:
    """A lease that was never here, as the record of its end has it."""
    lease: Lease[Any] = Lease(0, (), (), record.terms, theirs.origin, now - theirs.age_s)
    expires_at = None if theirs.left_s is None else now + theirs.left_s
    renewal = Renewal(theirs.renewals, record.terms.ttl, theirs.given_s)
    lease.set_time(renewal, expires_at, expired=theirs.expired)
    lease.used, lease.takes, lease.returned = theirs.used, theirs.takes, theirs.returned
    return lease


def _ended_by_uses(table: LeaseTable[Any], lease: bytes, ended: Revocable, at: float, by: str) -> None:
    """If a lease that has ended by its time was renewed in time elsewhere, and has ended by its uses, then that is how it ended."""
    held, end = ended.lease, table.tombstones.get(lease)
    if end is None or end.how != "expired" or held.expired or not held.is_spent:
        return
    how, uses = ("released" if held.takes else "used_up"), held.used | held.takes
    # If both shards granted too many, this end excuses none of them here; see `merge_end`.
    too_many = len(held.takes) > 1 or (held.terms.uses is not None and len(held.used) > held.terms.uses)
    known = () if too_many or len(uses) > MOST_USES_REMEMBERED else tuple(uses)
    if ended.was_here:
        table.ends["expired"] -= 1
        table.ends[how] += 1
    table.tombstones.add(lease, End(how, end.since, at, by, held.terms, known), ended)


def _learn_time(table: LeaseTable[Any], lease: bytes, known: Lease[Any], record: Record | EndRecord) -> None:
    """Another shard knows this of a lease's time, which counts here if it is later than what was known; see `lease.time_of`."""
    time = record if isinstance(record, Record) else record.revocable
    if time is None:
        return
    renewal = Renewal(time.renewals, record.terms.ttl, time.given_s)
    expired = isinstance(time, RevocableRecord) and time.expired
    if time_of(renewal, expired=expired) > known.time:
        if lease in table.live:
            table.set_time(lease, renewal, time.left_s)
        known.set_time(renewal, None if time.left_s is None else table.clock() + time.left_s, expired=expired)


def _times(table: LeaseTable[Any], held: Lease[Any]) -> tuple[float, tuple[float | None, int, float | None]]:
    """The age of a lease; what it has left, its renewals, and what the last of them gave."""
    now = table.clock()
    left = None if held.expires_at is None else held.expires_at - now
    return now - held.since, (left, held.renewals, held.given_s)


def granted(table: LeaseTable[Any], lease: bytes, use: bytes) -> bool:
    """Whether a lease that has ended granted this very use before.

    Replicas are asked one after the other. One that is asked second may have received the end already, and must not refuse what the
    first has granted. It can tell for a take, and for leases of up to 16 uses.
    """
    end = table.tombstones.get(lease)
    return end is not None and use in end.uses

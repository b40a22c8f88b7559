"""A use is given back, as its reader could not open what it got: it counts no more, and a lease that it has ended lives again. Pure.

A use counts from the moment in which the references go out, so that nobody else gets it. If the reader then fails, it sends the id of
the use back, with the references that it has just got: so the table keeps none for that. A reader that dies has spent the use.

```
live          give back    the use counts no longer
taken         give back    lives again, if that use has taken it
used up       give back    lives again, if that is one of its uses
other ends    give back    nothing: released since, expired, owners dead, or forgotten (`tombstones.Revocable` says how much is kept)
```

Replicas take part in that: what one shard has ended may be `live_elsewhere` by right, also since it was renewed there in time.

What always holds: a lease is granted no more often than its `uses` say, and once more for each use that was given back. What was
given back stays so, in whatever order the shards learn of it (`returned` only grows); calls may come twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .lease import MOST_RETURNED
from .leases import LeaseTable
from .tombstones import End, Revocable
from .wire import GiveBackRow

T = TypeVar("T")


def give_back(table: LeaseTable[T], row: GiveBackRow, items: Sequence[T], owners: Sequence[bytes]) -> bool | None:
    """A reader gives a use back.

    Args:
        table: of the leases.
        row: which use.
        items: what the reader has got by it.
        owners: as for `LeaseTable.pin`.

    Returns:
        Whether the lease lives again by that, from now on holding these items; None if nothing has changed at all.
    """
    held, ended = table.find(row.lease), table.tombstones.revocable(row.lease)
    lease = held or (ended and ended.lease)
    if lease is None or not (row.take or lease.terms.uses is not None):
        return None
    is_known = row.use in lease.returned
    if (is_known and (ended is None or lease.is_over)) or (not is_known and len(lease.returned) >= MOST_RETURNED):
        return None
    lease.give_back([row.use])
    if ended is None or lease.is_over or ended.size != len(items):
        return False
    if lease.expires_at is not None and lease.expires_at <= table.clock():
        end = table.tombstones.lives_again(row.lease)
        if ended.was_here:
            table.ends[end.how] -= 1
            table.ends["expired"] += 1
        now, lease.expired = table.clock(), not table.alone
        expired = End("expired", now, end.at + now - end.since, "", lease.terms)
        table.tombstones.add(row.lease, expired, None if table.alone else ended)
        return False
    lease.reader = row.reader
    _revive(table, row.lease, ended, items, owners)
    return True


def live_elsewhere(table: LeaseTable[T], lease: bytes, items: Sequence[T], owners: Sequence[bytes]) -> bool:
    """A lease that has ended here is live on another shard, with these items: whether it is right, and this end is void.

    Then the lease lives again here, too. What that shard knows of its uses and its time has been merged into the `Revocable`.
    """
    ended = table.tombstones.revocable(lease)
    if ended is None or ended.lease.is_over:
        return False
    _revive(table, lease, ended, items, owners)
    return True


def _revive(table: LeaseTable[T], lease: bytes, ended: Revocable, items: Sequence[T], owners: Sequence[bytes]) -> None:
    end, held = table.tombstones.lives_again(lease), ended.lease
    if ended.was_here:
        table.ends[end.how] -= 1
        table.revived += 1
    held.items, held.owners = tuple(items), tuple(owners)
    table.hold(lease, held)

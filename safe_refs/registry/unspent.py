"""A use is given back, as its reader could not open what it got: it counts no more, and a lease that it has ended lives again. Pure.

A use counts from the moment in which the references go out, so that nobody else gets it. If the reader then fails, it sends the id of
the use back, with the references that it has just got: so the table keeps none for that. A reader that dies has spent the use.

```
live          give back    the use counts no longer
taken         give back    lives again, if that use has taken it
used up       give back    lives again, if that is one of its uses
other ends    give back    nothing: released since, expired, owners dead, or forgotten (`tombstones.Spent` says how much is kept)
```

What always holds: a lease is granted no more often than its `uses` say, and once more for each use that was given back. What was
given back stays so, in whatever order the shards learn of it (`returned` only grows); calls may come twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from .lease import MOST_RETURNED
from .leases import LeaseTable
from .tombstones import End, Spent
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
    held, spent = table.find(row.lease), table.tombstones.spent(row.lease)
    lease = held or (spent and spent.lease)
    if lease is None or not (row.take or lease.terms.uses is not None):
        return None
    if row.use in lease.returned or len(lease.returned) >= MOST_RETURNED:
        return None
    lease.give_back([row.use])
    if spent is None or lease.is_spent or spent.size != len(items):
        return False
    if lease.expires_at is not None and lease.expires_at <= table.clock():
        end = table.tombstones.lives_again(row.lease)
        if spent.was_here:
            table.ends[end.how] -= 1
            table.ends["expired"] += 1
        now = table.clock()
        table.tombstones.add(row.lease, End("expired", now, end.at + now - end.since, "", lease.terms))
        return False
    lease.reader = row.reader
    _revive(table, row.lease, spent, items, owners)
    return True


def lives_elsewhere(
    table: LeaseTable[T],
    lease: bytes,
    used: Iterable[bytes],
    returned: Iterable[bytes],
    items: Sequence[T],
    owners: Sequence[bytes],
) -> bool:
    """A lease that has ended here is live on another shard, with these uses and items: whether it is right, and this end is void.

    Then the lease lives again here, too.
    """
    spent = table.tombstones.spent(lease)
    if spent is None:
        return False
    spent.lease.give_back(returned)
    spent.lease.count(used)
    if spent.lease.is_spent:
        return False
    _revive(table, lease, spent, items, owners)
    return True


def _revive(table: LeaseTable[T], lease: bytes, spent: Spent, items: Sequence[T], owners: Sequence[bytes]) -> None:
    end, held = table.tombstones.lives_again(lease), spent.lease
    if spent.was_here:
        table.ends[end.how] -= 1
        table.revived += 1
    held.items, held.owners = tuple(items), tuple(owners)
    table.hold(lease, held)

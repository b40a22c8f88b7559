"""What is remembered of leases that have ended, so that a late caller gets the error that says how. Pure.

What always holds: a tombstone holds no items; the number of tombstones and their age are bounded by the registry's limits. An end is
final, unless it is among the `Revocable` ones: a lease that a use has ended may live again, if that is given back; and one whose time
was over, if another table turns out to have renewed it before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from ..config import Limits
from ..errors import (
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseRejectedError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
)
from .lease import Lease
from .records import Terms

HOW = frozenset({"released", "expired", "used_up", "owner_gone", "rejected"})
_MOST_REVOCABLE = (
    50_000  # what is kept of leases whose end is not final, in all: 4 for each, and 1 for each of its uses
)


class End(NamedTuple):
    """How a lease ended.

    Attributes:
        how: one of `HOW`: the counter of `RegistryStats` that it belongs to; or `rejected`, if its pin has failed after its maker had
            passed it on.
        since: when, by the table's monotonic clock.
        at: when, in seconds since the epoch; for people.
        by: who ended it, for people; empty where nobody did. Of a rejected one, why.
        terms: its terms at the end.
        uses: ids of the uses that it granted, if they count and are not too many.
        unseen: a release of a lease that this table never held.
    """

    how: str
    since: float
    at: float
    by: str
    terms: Terms
    uses: tuple[bytes, ...] = ()
    unseen: bool = False


class Revocable(NamedTuple):
    """A lease that was taken, used up, or whose time is over. It has not ended after all if it isn't `Lease.is_over` any more.

    Attributes:
        lease: all of it but its items.
        size: how many items it held.
        was_here: this table held it; otherwise another has told of its end.
    """

    lease: Lease[Any]
    size: int
    was_here: bool = True


class Tombstones:
    """The ended leases of one table, in the order in which they ended, and the lost ones.

    Args:
        registry: name of the registry, for messages.
        clock: monotonic seconds.
        limits: gives the limits that hold now (`max_tombstones`, `tombstone_age_s`).
    """

    def __init__(self, registry: str, clock: Callable[[], float], limits: Callable[[], Limits]) -> None:
        self._registry = registry
        self._clock = clock
        self._limits = limits
        self._ended: OrderedDict[bytes, End] = OrderedDict()  # bounded by `forget_old`
        self._lost: OrderedDict[bytes, tuple[float, str]] = OrderedDict()  # bounded by max_tombstones
        self._revocable: OrderedDict[bytes, tuple[Revocable, int]] = (
            OrderedDict()
        )  # with its weight; bounded by _MOST_REVOCABLE
        self._weight = 0

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, lease: bytes) -> bool:
        return lease in self._ended

    def get(self, lease: bytes) -> End | None:
        """How a lease ended; None if it did not, or that is forgotten."""
        return self._ended.get(lease)

    def ids(self) -> list[bytes]:
        """Ids of the ended leases, oldest first."""
        return list(self._ended)

    def add(self, lease: bytes, end: End, revocable: Revocable | None = None) -> None:
        """Remember how a lease ended; and what it takes to live again, unless this end is final."""
        self._ended[lease] = end
        self.finish(lease)
        if revocable is not None:
            weight = 4 + len(revocable.lease.used)
            self._revocable[lease] = revocable, weight
            self._weight += weight
            while self._weight > _MOST_REVOCABLE:
                self.finish(next(iter(self._revocable)))
        self.forget_old()

    def revocable(self, lease: bytes) -> Revocable | None:
        """What is kept of a lease whose end is not final."""
        found = self._revocable.get(lease)
        return None if found is None else found[0]

    def all_revocable(self) -> list[tuple[bytes, Lease[Any]]]:
        """The leases whose end is not final, without their items."""
        return [(lease, found.lease) for lease, (found, _) in self._revocable.items()]

    def finish(self, lease: bytes) -> None:
        """The end of a lease is final from now on."""
        _, weight = self._revocable.pop(lease, (None, 0))
        self._weight -= weight

    def lives_again(self, lease: bytes) -> End:
        """A lease has not ended after all: how it had."""
        self.finish(lease)
        return self._ended.pop(lease)

    def add_lost(self, lease: bytes, at: float, why: str) -> None:
        """Remember that what a lease held is gone from here. Another shard may still hold it, so it has not ended."""
        self._lost[lease] = (at, why)
        while len(self._lost) > self._limits().max_tombstones:
            self._lost.popitem(last=False)

    def found_again(self, lease: bytes) -> None:
        """A lease that was lost is held again."""
        self._lost.pop(lease, None)

    def forget_old(self) -> None:
        """Drop tombstones beyond their number and their age."""
        limits = self._limits()
        oldest = self._clock() - limits.tombstone_age_s
        while self._ended:
            lease = next(iter(self._ended))
            if len(self._ended) <= limits.max_tombstones and self._ended[lease].since >= oldest:
                return
            del self._ended[lease]
            self.finish(lease)

    def why(self, lease: bytes, asked: tuple[bytes, int], now: tuple[bytes, int], *, alone: bool) -> LeaseError:
        """The error for a lease that is not live.

        Args:
            lease: its id.
            asked: epoch and generation that the payload names.
            now: epoch and generation of this table.
            alone: no other table holds the same leases. Then a release of an unknown lease says nothing of what became of it.
        """
        short, end = lease[:4].hex(), self._ended.get(lease)
        known = end is not None and (not end.unseen or not alone)
        # A shard may be of an earlier generation than others: a pin that never came names what its maker had last heard of any.
        if (end is None or not known) and asked[0] != now[0] and asked[1] <= now[1]:
            return LeaseLostError.of(short, self._registry, asked[1], now[1])
        if end is None and lease in self._lost:
            at, reason = self._lost[lease]
            return LeaseLostError.because(short, self._registry, now[1], at, reason)
        if end is None:
            return LeaseNotFoundError.of(short, self._registry)
        if end.how == "expired":
            return LeaseExpiredError.of(short, self._registry, end.at, end.terms.ttl)
        if end.how == "used_up":
            return LeaseUsedUpError.of(short, self._registry, end.at, end.terms.uses)
        if end.how == "owner_gone":
            return OwnerGoneError.of(short, self._registry, end.at, durable=end.terms.durable is not None)
        if end.how == "rejected":
            return LeaseRejectedError.of(short, self._registry, end.at, end.by)
        return LeaseReleasedError.of(short, self._registry, end.at, end.by)

"""What is remembered of leases that have ended, so that a late caller gets the error that says how. Pure.

What always holds: a tombstone holds no items; the number of tombstones and their age are bounded by the registry's limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ..config import Limits
from ..errors import (
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
)
from .records import Terms


class End(NamedTuple):
    """How a lease ended.

    Attributes:
        how: `released`, `expired`, `used_up` or `owner_gone`: the counter of `RegistryStats` that it belongs to.
        since: when, by the table's monotonic clock.
        at: when, in seconds since the epoch; for people.
        by: who ended it, for people; empty where nobody did.
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

    def add(self, lease: bytes, end: End) -> None:
        """Remember how a lease ended."""
        self._ended[lease] = end
        self.forget_old()

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
        if (end is None or not known) and asked[0] != now[0]:
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
            return OwnerGoneError.of(short, self._registry, end.at)
        return LeaseReleasedError.of(short, self._registry, end.at, end.by)

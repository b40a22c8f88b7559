"""A live lease, as a `LeaseTable` keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, TypeVar

from .records import Origin, Renewal, Terms

T = TypeVar("T")

MOST_RETURNED = 256  # uses that a lease takes back; then a use that fails is spent


class Lease(Generic[T]):
    """A live lease.

    Attributes:
        number: its ordinal number in this table.
        items: what it holds.
        owners: for each item, what names the process that the item dies with; empty for none.
        reader: who has handed back what it holds, if it lives again.
        since: when it began, by the table's clock; `expires_at` is when its ttl runs out, None without one.
        renewals: how often it was renewed.
        given_s: the seconds that it had left at the last renewal, or at its beginning; None without a limit.
        expired: its time is over by this renewal: it has ended, unless another table knows a later one.
        used: ids of the uses that it has granted, if it counts them; without those that were given back.
        takes: ids of the uses that have taken it, and so ended it; likewise.
        returned: ids of the uses that were given back. At most MOST_RETURNED for each shard that holds it.
    """

    __slots__ = (
        "expired",
        "expires_at",
        "given_s",
        "items",
        "number",
        "origin",
        "owners",
        "reader",
        "renewals",
        "returned",
        "since",
        "takes",
        "terms",
        "used",
    )

    def __init__(
        self, number: int, items: tuple[T, ...], owners: tuple[bytes, ...], terms: Terms, origin: Origin, since: float
    ) -> None:
        self.number = number
        self.items = items
        self.owners = owners
        self.terms = terms
        self.origin = origin
        self.since = since
        self.expires_at = None if terms.ttl is None else since + terms.ttl
        self.renewals = 0
        self.given_s = terms.ttl
        self.expired = False
        self.reader: Origin | None = None
        self.used: frozenset[bytes] = frozenset()
        self.takes: frozenset[bytes] = frozenset()
        self.returned: frozenset[bytes] = frozenset()

    @property
    def uses_left(self) -> int | None:
        """How many uses it still grants; None without a limit."""
        return None if self.terms.uses is None else self.terms.uses - len(self.used)

    def next_renewal(self, ttl: float | None, now: float, *, lengthens: bool = False) -> Renewal:
        """The renewal that comes after its last one; the last one itself if there is nothing to do.

        Args:
            ttl: seconds that it asks for; None for no limit.
            now: by the table's clock.
            lengthens: it takes no time away, and leaves the terms alone. Where as much is left, or no limit, there is nothing to do.
        """
        if not lengthens:
            return Renewal(self.renewals + 1, ttl, ttl)
        left = None if self.expires_at is None else self.expires_at - now
        if left is None or (ttl is not None and left >= ttl):
            return Renewal(self.renewals, self.terms.ttl, left)
        return Renewal(self.renewals + 1, self.terms.ttl, ttl)

    @property
    def renewal(self) -> Renewal:
        """Its last renewal; before the first, of number 0, what it began with."""
        return Renewal(self.renewals, self.terms.ttl, self.given_s)

    @property
    def time(self) -> tuple[float, ...]:
        """See `time_of`."""
        return time_of(self.renewal, expired=self.expired)

    def set_time(self, renewal: Renewal, expires_at: float | None, *, expired: bool = False) -> None:
        """This is its last renewal; the rest is as of the attributes."""
        self.terms = self.terms._replace(ttl=renewal.ttl)
        self.renewals, self.given_s = renewal.number, renewal.given_s
        self.expires_at, self.expired = expires_at, expired

    @property
    def giver(self) -> Origin:
        """Who has given what it holds: the maker; or if it lives again, whoever has handed that back."""
        return self.reader or self.origin

    @property
    def is_spent(self) -> bool:
        """Whether it was taken, or has no uses left."""
        return bool(self.takes) or (self.terms.uses is not None and len(self.used) >= self.terms.uses)

    @property
    def is_over(self) -> bool:
        """Whether it is spent, or its time is over."""
        return self.expired or self.is_spent

    def count(self, uses: Iterable[bytes], takes: Iterable[bytes] = ()) -> None:
        """It has granted these uses and takes. One that was given back counts no more, in whatever order that becomes known."""
        self.used |= frozenset(uses) - self.returned
        self.takes |= frozenset(takes) - self.returned

    def give_back(self, uses: Iterable[bytes]) -> None:
        """These uses were given back."""
        self.returned |= frozenset(uses)
        self.used -= self.returned
        self.takes -= self.returned


def time_of(renewal: Renewal, *, expired: bool) -> tuple[float, ...]:
    """What orders the states of a lease's time, so that all tables keep the same one: a later renewal beats what came before it.

    Of two with one number (each table counted one while the other was down) the longer counts; no two that differ are equal. Of one
    and the same, that its time is over counts: where it isn't yet, it is about to be.
    """
    return (renewal.number, *(math.inf if span is None else span for span in (renewal.given_s, renewal.ttl)), expired)

"""A live lease, as a `LeaseTable` keeps it."""

from __future__ import annotations

from typing import Generic, TypeVar

from .records import Origin, Terms

T = TypeVar("T")


class Lease(Generic[T]):
    """A live lease.

    Attributes:
        number: its ordinal number in this table.
        items: what it holds.
        owners: for each item, what names the process that the item dies with; empty for none.
        since: when it began, by the table's clock; `expires_at` is when its ttl runs out, None without one.
        renewals: how often it was renewed.
        used: ids of the uses that it has granted, if it counts them.
    """

    __slots__ = ("expires_at", "items", "number", "origin", "owners", "renewals", "since", "terms", "used")

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
        self.used: frozenset[bytes] = frozenset()

    @property
    def uses_left(self) -> int | None:
        """How many uses it still grants; None without a limit."""
        return None if self.terms.uses is None else self.terms.uses - len(self.used)

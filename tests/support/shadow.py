"""The shadow of a lease table, for the test that drives both: leases as anybody would keep them on paper, and calls on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from safe_refs.errors import LeaseError, LeaseExpiredError, LeaseReleasedError, LeaseUsedUpError
from safe_refs.registry.hooks import Began, ShardPart
from safe_refs.registry.leases import LeaseTable


@dataclass
class Shadow:
    """One lease.

    Attributes:
        used: the uses that count, and `takes` the takes.
        returned: what was given back of both.
        is_final: it has ended, and no use that is given back changes that.
    """

    items: tuple[str, ...]
    owners: tuple[bytes, ...]
    ends_at: float | None
    uses: int | None
    end: type[LeaseError] | None = None
    used: set[bytes] = field(default_factory=set)
    takes: set[bytes] = field(default_factory=set)
    returned: set[bytes] = field(default_factory=set)
    is_final: bool = False

    @property
    def is_spent(self) -> bool:
        """Whether its uses, or a take, have to end it."""
        return bool(self.takes) or len(self.used) == self.uses

    def finish(self, end: type[LeaseError]) -> None:
        """It ends for good, if it has not ended before."""
        self.end, self.is_final = self.end or end, True

    def use(self, use: bytes, take: bool) -> None:
        """It is used or taken; a call that arrives twice is one use."""
        self.used.add(use)
        if take:
            self.takes.add(use)
        if self.is_spent:
            self.end = LeaseReleasedError if take else LeaseUsedUpError

    def give_back(self, use: bytes, take: bool, now: float) -> bool:
        """A use is given back: whether it lives again by that."""
        if self.is_final or use in self.returned or (self.uses is None and not take):
            return False
        self.returned.add(use)
        self.used.discard(use)
        self.takes.discard(use)
        if self.end is None or self.is_spent:
            return False
        self.end = None
        if self.ends_at is not None and self.ends_at <= now:
            self.finish(LeaseExpiredError)
        return self.end is None


@dataclass
class Message:
    """A call on its way: its name, the lease, the epoch that the caller knows, and what else it says."""

    what: str
    lease: bytes
    epoch: bytes
    arguments: dict[str, Any] = field(default_factory=dict)


class Kept(ShardPart):
    """What a part keeps of a lease: from when it is told that the lease has begun, until it is told that it has ended."""

    def __init__(self) -> None:
        self.leases: dict[bytes, tuple[str, ...]] = {}

    def pinned(self, lease: bytes, began: Began) -> None:
        self.leases[lease] = ()

    def ended(self, lease: bytes, items: Sequence[Any]) -> None:
        del self.leases[lease]


class NeverAgain(LeaseTable[str]):
    """A table with a bug: a lease that was taken or used up stays so, even if that use is given back."""

    def end(self, lease: bytes, how: str, by: str, use: bytes = b"") -> None:
        super().end(lease, how, by, use)
        self.tombstones.finish(lease)

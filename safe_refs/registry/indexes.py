"""What a lease table finds its leases by, other than their ids: the next deadline, and the owners of what they hold. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

_SLACK = 64


class Deadlines:
    """When leases expire, soonest first.

    One for each lease that expires. The heap has old ones, too, of leases that were renewed or have ended: it is at most twice as
    long, and 64.
    """

    def __init__(self) -> None:
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, lease: bytes, at: float | None) -> None:
        """A lease expires at that time, by the table's clock; None: it doesn't, or not any more."""
        if at is None:
            self._at.pop(lease, None)
        else:
            self._at[lease] = at
            heapq.heappush(self._heap, (at, lease))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [(at, lease) for lease, at in self._at.items()]
            heapq.heapify(self._heap)

    def first(self) -> float | None:
        """The first deadline; None if there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> bytes:
        """The lease of the deadline that `first` has given, which is forgotten."""
        lease = heapq.heappop(self._heap)[1]
        del self._at[lease]
        return lease


class ByOwner:
    """The leases that hold something of each owner, and which of these owners are known to be dead.

    As large as what live leases hold.
    """

    def __init__(self) -> None:
        self._leases: dict[bytes, dict[bytes, None]] = {}
        self._dead: set[bytes] = set()

    def add(self, lease: bytes, owners: Iterable[bytes]) -> None:
        """A lease holds items of these owners. An empty one is nobody."""
        for owner in filter(None, owners):
            self._leases.setdefault(owner, {})[lease] = None
            self._dead.discard(owner)  # it may be asked about again: a verdict is only as good as its day

    def drop(self, lease: bytes, owners: Iterable[bytes]) -> None:
        """A lease doesn't hold these any more."""
        for owner in set(filter(None, owners)):
            theirs = self._leases[owner]
            del theirs[lease]
            if not theirs:
                del self._leases[owner]
                self._dead.discard(owner)

    def living(self) -> list[bytes]:
        """The owners that are not known to be dead."""
        return [owner for owner in self._leases if owner not in self._dead]

    def leases(self, owner: bytes) -> list[bytes]:
        """The leases that hold something of that owner."""
        return list(self._leases.get(owner, ()))

    def bury(self, owner: bytes) -> list[bytes]:
        """An owner is dead: the leases that hold something of it."""
        if owner in self._leases:
            self._dead.add(owner)
        return self.leases(owner)

    def are_dead(self, owners: Iterable[bytes]) -> bool:
        """Whether all of these owners are known to be dead."""
        return self._dead.issuperset(owners)

"""Which leases depend on this process, because it pinned references that it only borrowed, and could not be anchored then. Pure.

What always holds: nothing here knows Ray or waits. Any thread may use it, without a lock, also in a signal's handler that has
interrupted another call of the same thread. No reference is kept, only ids. A lease goes from here when this process releases it,
when its objects are anchored, and when the registry says that it doesn't need this process any more (`keep`); the owner of this
object asks that when `is_full` says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

MANY = 1000

Lease = tuple[str, bytes]  # a registry, and the lease's id there


class Dependents:
    """The leases, and what they hold that this process only borrowed."""

    def __init__(self) -> None:
        # Values are replaced, never changed, so that each step is one for the interpreter. Bounded by the leases that depend on this
        # process, and as many again (MANY at least) that did once.
        self._objects_of: dict[Lease, frozenset[bytes]] = {}
        self._most = MANY

    def __len__(self) -> int:
        return len(self._objects_of)

    def note(self, ids: Iterable[bytes], registry: str, lease: bytes) -> None:
        """A lease of these objects depends on this process."""
        noted = frozenset(ids)
        if noted:
            self._objects_of[(registry, lease)] = noted | self._objects_of.get((registry, lease), frozenset())

    def is_full(self) -> bool:
        """Whether so many leases are noted that it is time to ask which of them still depend on this process."""
        return len(self._objects_of) >= self._most

    def leases(self) -> set[Lease]:
        """All of them."""
        return set(self._objects_of)

    def objects(self) -> list[bytes]:
        """The ids of what they hold, those first that were noted first."""
        return list(dict.fromkeys(id_ for ids in self._objects_of.copy().values() for id_ in ids))

    def anchored(self, ids: Iterable[bytes]) -> None:
        """The owners of these objects know by now to whom this process passed them."""
        gone = frozenset(ids)
        for lease, held in self._objects_of.copy().items() if gone else ():
            if not gone.isdisjoint(held):
                self._leave(lease, held - gone)

    def released(self, registry: str, leases: Iterable[bytes]) -> None:
        """These leases have ended."""
        for lease in leases:
            self._objects_of.pop((registry, lease), None)

    def keep(self, asked: Collection[Lease], still: Collection[Lease], counted: Collection[bytes]) -> None:
        """Drop what doesn't depend on this process any more.

        Args:
            asked: the leases of which somebody has looked whether they do. Leases that were noted meanwhile are left alone.
            still: those of them that do.
            counted: the objects that this process still has references to: as for others, Ray has reported when it let go.
        """
        for lease in asked:
            self._leave(lease, self._objects_of.get(lease, frozenset()).intersection(counted if lease in still else ()))
        self._most = max(MANY, 2 * len(self._objects_of))

    def take(self) -> dict[Lease, frozenset[bytes]]:
        """All leases, with their objects; none of them is noted any more."""
        return {lease: self._objects_of.pop(lease, frozenset()) for lease in self.leases()}

    def _leave(self, lease: Lease, ids: frozenset[bytes]) -> None:
        if not ids:
            self._objects_of.pop(lease, None)
        elif lease in self._objects_of:  # otherwise it has ended meanwhile
            self._objects_of[lease] = ids

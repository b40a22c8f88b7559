"""Which leases depend on this process, because it pinned references that it only borrowed, and could not be anchored then. Pure.

What always holds: nothing here knows Ray or waits. Any thread may use it, also in a signal's handler that has interrupted another
call of the same thread. No reference is kept, only ids. A lease goes from here when this process releases it, when its objects are
anchored, and when the registry says that it doesn't need this process any more (`keep`); the owner of this object asks that when
`is_full` says so.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MANY = 1000

Lease = tuple[str, bytes]  # a registry, and the lease's id there


class Dependents:
    """The leases, and what they hold that this process only borrowed."""

    def __init__(self) -> None:
        # Guards all that follows. Reentrant, as a signal may come in the middle of a method.
        self._lock = threading.RLock()
        # Both say the same. Bounded by the leases that depend on this process, and as many again (MANY at least) that did once.
        self._leases_of: dict[bytes, set[Lease]] = {}
        self._objects_of: dict[Lease, set[bytes]] = {}
        self._most = MANY

    def __len__(self) -> int:
        return len(self._objects_of)

    def note(self, ids: Iterable[bytes], registry: str, lease: bytes) -> None:
        """A lease of these objects depends on this process."""
        with self._lock:
            for id_ in ids:
                self._leases_of.setdefault(id_, set()).add((registry, lease))
                self._objects_of.setdefault((registry, lease), set()).add(id_)

    def is_full(self) -> bool:
        """Whether so many leases are noted that it is time to ask which of them still depend on this process."""
        return len(self._objects_of) >= self._most

    def leases(self) -> set[Lease]:
        """All of them."""
        with self._lock:
            return set(self._objects_of)

    def objects(self) -> list[bytes]:
        """The ids of what they hold, those first that were noted first."""
        with self._lock:
            return list(self._leases_of)

    def anchored(self, ids: Iterable[bytes]) -> None:
        """The owners of these objects know by now to whom this process passed them."""
        with self._lock:
            for id_ in ids:
                for lease in self._leases_of.pop(id_, ()):
                    _drop(self._objects_of, lease, id_)

    def released(self, registry: str, leases: Iterable[bytes]) -> None:
        """These leases have ended."""
        with self._lock:
            for lease in leases:
                for id_ in self._objects_of.pop((registry, lease), ()):
                    _drop(self._leases_of, id_, (registry, lease))

    def keep(self, asked: Collection[Lease], still: Collection[Lease], counted: Collection[bytes]) -> None:
        """Drop what doesn't depend on this process any more.

        Args:
            asked: the leases of which somebody has looked whether they do. Leases that were noted meanwhile are left alone.
            still: those of them that do.
            counted: the objects that this process still has references to: as for others, Ray has reported when it let go.
        """
        with self._lock:
            for lease in asked:
                gone = set(self._objects_of.get(lease, ()))
                if lease in still:
                    gone.difference_update(counted)
                for id_ in gone:
                    _drop(self._objects_of, lease, id_)
                    _drop(self._leases_of, id_, lease)
            self._most = max(MANY, 2 * len(self._objects_of))

    def take(self) -> tuple[list[bytes], set[Lease]]:
        """All objects, and all leases; none of them is noted any more."""
        with self._lock:
            objects, leases = list(self._leases_of), set(self._objects_of)
            self._leases_of, self._objects_of = {}, {}
        return objects, leases


def _drop(sets: dict[K, set[V]], key: K, value: V) -> None:
    found = sets.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            sets.pop(key, None)

"""Objects that a shard has handed out since their owners last got a report. Pure.

Why a shard has to know them: a process that borrows an object pins it, and Ray puts into the answer to that call everything that it
knows here about who else got the object, for the process to report it to the owner. If the process is killed before it does, those
others are unknown to the owner, and their references are dead. So the shard reports to the owners first (`Anchoring.pinning`).

What always holds: a shard uses it under its lock only. It keeps no reference, only ids. It has at most as many as the shard
holds references, twice, and 64: beyond that it drops those that it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

_SLACK = 64


class HandedOut:
    """The ids of such objects.

    Args:
        held: the ids of all objects that the shard holds now: in live leases, or otherwise in its hands.
        size: how many references the shard holds: in live leases, or a little longer.
    """

    def __init__(self, held: Callable[[], Collection[bytes]], size: Callable[[], int]) -> None:
        self._held = held
        self._size = size
        self._ids: set[bytes] = set()  # bounded by `note`
        self._most = _SLACK

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._ids

    def note(self, ids: Iterable[bytes]) -> None:
        """Another process has got these objects.

        An object's lease may have ended already, by this very use. The id still counts if another lease holds the same object, and
        only a walk through all leases shows that. The walk takes about half a microsecond for each reference in them. It is made when
        so many ids have come that it costs each of them as much again, and no more.
        """
        self._ids.update(ids)
        if len(self._ids) > self._most:
            self.drop_unheld()

    def reported(self, ids: Iterable[bytes]) -> None:
        """The owners of these objects know by now who has got them."""
        self._ids.difference_update(ids)

    def drop_unheld(self) -> None:
        """Drop the objects that the shard doesn't hold any more: Ray has reported them when it let go."""
        if self._ids:
            self._ids.intersection_update(self._held())
        self._most = len(self._ids) + self._size() + _SLACK

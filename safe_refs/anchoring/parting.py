"""What a shard holds a little longer than the lease: objects that were handed out, and whose owners don't know yet to whom.

When the shard lets go, it reports to the owner who has got the object. It must not do so before the owner has answered (see
`answering`), as with any report.

What always holds: nothing stays for longer than _LONGEST_S: by then the owner has been silent all the time. It goes in the rounds'
thread, and not while counts are touched.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, workers
from .answering import Answering

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_STAYS_S = 0.1  # by then a reader's report that it let go of the same object, before it loaded, is on its way
_LONGEST_S = 10.0
_MOST = 500  # leases at once
_LOOKS_S = 0.02


class _Part(NamedTuple):
    """What one lease held: since when it is here, when it is to be looked at, and it."""

    since: float
    due_at: float
    items: Sequence[Ref]


class Parting:
    """What is held so.

    Args:
        lock: the shard's.
        using: held by threads of the shard while they have references in their hands. Taken before the lock.
        answering: asks owners.
        parted: told, under the lock, of what is about to go.
        forgotten: waits until Ray knows nothing of objects any more, by their owners; see `Owners.wait_until_forgotten`.
    """

    def __init__(
        self,
        lock: threading.Lock,
        using: threading.Lock,
        answering: Answering,
        parted: Callable[[Sequence[Ref]], None],
        forgotten: Callable[[dict[bytes, bytes], float], None],
    ) -> None:
        self._lock = lock
        self._using = using
        self._answering = answering
        self._parted = parted
        self._forgotten = forgotten
        self._turn = threading.Lock()  # of whoever has something in its hands; taken before the others
        # By when they are due; guarded by the lock. Bounded by the leases that end within _LONGEST_S.
        self._parts: deque[_Part] = deque()

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, items: Sequence[Ref]) -> None:
        """A lease has ended that held these. Under the lock."""
        now = time.monotonic()
        self._parts.append(_Part(now, now + _STAYS_S, items))

    def next_in_s(self) -> float | None:
        """Seconds until something is due; None if nothing is. Under the lock."""
        return max(0.0, self._parts[0].due_at - time.monotonic()) if self._parts else None

    def items(self) -> Iterable[Ref]:
        """All that is here. Under the lock."""
        return (item for part in self._parts for item in part.items)

    def let_go(self) -> None:
        """Let go of what is due, as far as the owners answer."""
        with self._turn:
            taken = self._take()
            stays = [False] * len(taken)
            if not taken:
                return
            try:
                stays = self._are_silent(taken)
            finally:
                with self._using, self._lock:  # here the last references go; no variable of this thread has any
                    self._sort(taken, stays)
                    taken.clear()

    def close(self, timeout_s: float) -> None:
        """The shard ends: let go of all, of what silent owners own at the end of that time."""
        with self._turn, self._lock:
            owners = self._owners()
        until = time.monotonic() + timeout_s
        while self._parts and time.monotonic() < until:
            self.let_go()
            time.sleep(_LOOKS_S)
        with self._lock:
            self._parts.clear()
        if owners:
            self._forgotten(owners, until - time.monotonic())

    def _owners(self) -> dict[bytes, bytes]:
        return {actors.id_of(ref): owner for ref in self.items() if (owner := workers.owner_of(ref))}

    def _take(self) -> list[_Part]:
        taken: list[_Part] = []
        with self._lock:
            now = time.monotonic()
            while self._parts and self._parts[0].due_at <= now and len(taken) < _MOST:
                taken.append(self._parts.popleft())
        return taken

    def _are_silent(self, taken: Sequence[_Part]) -> list[bool]:
        """For each part whether one of its owners is silent."""
        samples: dict[bytes, Ref] = {}
        owners: list[set[bytes]] = []
        for part in taken:
            theirs = {owner: ref for ref in part.items if (owner := workers.owner_of(ref))}  # a detached actor has none
            owners.append(set(theirs))
            samples |= theirs
        silent = self._answering.silent(samples)
        return [not silent.isdisjoint(each) for each in owners]

    def _sort(self, taken: Sequence[_Part], stays: Sequence[bool]) -> None:
        now = time.monotonic()
        for part, is_to_stay in zip(taken, stays, strict=True):
            if is_to_stay and now - part.since <= _LONGEST_S:
                self._parts.append(part._replace(due_at=now + _STAYS_S))
            else:
                self._parted(part.items)

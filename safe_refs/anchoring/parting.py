"""What a shard holds a little longer than the lease: objects that were handed out, and whose owners don't know yet to whom.

When the shard lets go, it reports to the owner who has got the object. It must not do so before the owner has answered (see
`answering`), as with any report.

What always holds: it goes after _LONGEST_S at the latest, when the owner has been silent all the time, or if there are more than
_MOST references here, the oldest first; and not while counts are touched. One thread at a time has something in its hands.
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
_AGAIN_S = 0.2  # before it is looked at again, if an owner was silent
_LONGEST_S = 10.0
_MOST = 20_000
_MOST_AT_ONCE = 500  # references, or one lease
_LETS_GO_S = 0.5  # then a round comes in between
_LOOKS_S = 0.02
_LEFT = 0.4  # of a shard's last time, for owners to hear of what it lets go of


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
        parted: called, under the lock, with what is about to go.
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
        # All guarded by the lock: what is new, and what has met a silent owner, each in the order in which it is due; what is being
        # asked about; how many references that is.
        self._new: deque[_Part] = deque()
        self._again: deque[_Part] = deque()
        self._in_hand: list[_Part] = []
        self.references = 0

    def __len__(self) -> int:
        return len(self._new) + len(self._again) + len(self._in_hand)

    def add(self, items: Sequence[Ref]) -> None:
        """A lease has ended that held these. Under the lock."""
        now = time.monotonic()
        self._new.append(_Part(now, now + _STAYS_S, items))
        self.references += len(items)

    def next_in_s(self) -> float | None:
        """Seconds until something is due; None if nothing is. Under the lock."""
        first = min((queue[0].due_at for queue in (self._again, self._new) if queue), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def items(self) -> Iterable[Ref]:
        """All that is here. Under the lock."""
        return (item for part in (*self._again, *self._new, *self._in_hand) for item in part.items)

    def let_go(self, within_s: float = _LETS_GO_S) -> None:
        """Let go of what is due, as far as the owners answer, and for so long at most, but for one pass."""
        until = time.monotonic() + within_s
        while self._let_some_go() and time.monotonic() < until:
            pass

    def close(self, timeout_s: float) -> None:
        """The shard ends: let go of all, of what silent owners own when they answer, or when most of that time is over."""
        now = time.monotonic()
        until, asks_until = now + timeout_s, now + (1 - _LEFT) * timeout_s
        with self._turn, self._lock:
            owners = {actors.id_of(ref): owner for ref in self.items() if (owner := workers.owner_of(ref))}
        while len(self) and time.monotonic() < asks_until:
            self._answering.hurry()
            with self._lock:
                self._again = deque(part._replace(due_at=now) for part in self._again)
            self.let_go(min(_LETS_GO_S, asks_until - time.monotonic()))
            time.sleep(_LOOKS_S)
        with self._turn, self._using, self._lock:
            self._again.clear()
            self._new.clear()
            self.references = 0
        if owners:
            self._forgotten(owners, until - time.monotonic())

    def _let_some_go(self) -> bool:
        """Whether there may be more."""
        with self._turn:
            owners = self._take()
            if not owners:
                return False
            stays = [True] * len(owners)  # unless it can be asked
            try:
                stays = self._are_silent(owners)
            finally:
                with self._using, self._lock:  # here the last references go; no variable of this thread has any
                    self._sort(stays)
        return True

    def _take(self) -> list[set[bytes]]:
        """Take what is due in hand; of each part its owners. A detached actor has none."""
        with self._lock:  # while counts are touched, Ray does not know the owner
            now, taken = time.monotonic(), 0
            for queue in (self._again, self._new):
                while queue and taken < _MOST_AT_ONCE and (queue[0].due_at <= now or self.references > _MOST):
                    self._in_hand.append(queue.popleft())
                    taken += len(self._in_hand[-1].items)
            return [set(filter(None, map(workers.owner_of, part.items))) for part in self._in_hand]

    def _are_silent(self, owners: Sequence[set[bytes]]) -> list[bool]:
        """For each part whether one of its owners is silent."""
        samples: dict[bytes, Ref] = {}
        with self._lock:
            for part, theirs in zip(self._in_hand, owners, strict=True):
                if theirs - samples.keys():
                    samples |= {owner: ref for ref in part.items if (owner := workers.owner_of(ref))}
        silent = self._answering.silent(samples)
        return [not silent.isdisjoint(theirs) for theirs in owners]

    def _sort(self, stays: Sequence[bool]) -> None:
        now = time.monotonic()
        gone: list[Ref] = []
        for part, is_to_stay in zip(self._in_hand, stays, strict=True):
            if is_to_stay and now - part.since <= _LONGEST_S and self.references <= _MOST:
                self._again.append(part._replace(due_at=now + _AGAIN_S))
            else:
                self.references -= len(part.items)
                gone += part.items
        self._in_hand.clear()
        if gone:
            self._parted(gone)

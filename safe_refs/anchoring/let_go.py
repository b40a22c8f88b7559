"""Objects that a shard has let go of a moment ago. Pure.

A shard that lets go of an object, as its last lease has ended, reports that to the owner. If somebody else has it then, and pins it
right after, that process reports the shard to the owner. The second report may be the first to arrive, as each goes its own way. Then
the owner takes the shard for one that has the object already, and when the first arrives, for one that has nothing; and as soon as
the borrower lets go, the object is gone, with the lease on it. So the shard says that it is unsure about such a pin, and the borrower
makes sure, before `dumps` returns.

What always holds: it knows every object of the last RECENT_S; or, if those were more than MOST, says so of any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

RECENT_S = 2.0  # by then an owner has the report, unless it does not respond
MOST = 100_000  # of some 100 bytes each


class LetGo:
    """Their ids. A shard uses it under its lock only.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: OrderedDict[bytes, float] = OrderedDict()  # the oldest first; at most MOST
        self._full_until = float("-inf")

    def __len__(self) -> int:
        return len(self._at)

    def note(self, ids: Iterable[bytes]) -> None:
        """No lease holds these any more."""
        now = self._clock()
        for id_ in ids:
            self._at.pop(id_, None)
            self._at[id_] = now
        while self._at and (len(self._at) > MOST or next(iter(self._at.values())) <= now - RECENT_S):
            if self._at.popitem(last=False)[1] > now - RECENT_S:
                self._full_until = now + RECENT_S

    def are_recent(self, ids: Iterable[bytes]) -> bool:
        """Whether that was a moment ago for one of these."""
        now = self._clock()
        return now < self._full_until or any(now - self._at.get(id_, float("-inf")) < RECENT_S for id_ in ids)

"""Whether readers have to wait, because a shard is behind with its anchoring. Pure.

A reference that somebody resolves is safe as soon as its owner knows the reader, which is to be within a second. A shard anchors some
thousands a second, and hands out more. So it refuses to hand out further ones while those that wait would take a quarter of a second,
or one has waited for half a second. The rest is for what a single call may bring, and for a machine that becomes slower meanwhile.

What always holds: if nothing is anchored for 3 s, because no relay can be had, say, nobody waits any more. Then readers depend on the
registry, as they would without anchoring. How long each may wait, `registry.behind` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_BEHIND_S = 0.25
_WAITED_S = 0.5
_STUCK_S = 3.0  # relays take a second or two to start
_FIRST_RATE = 2000.0  # references a second, before it was measured
_LEAST = 256  # references that may always wait
_FULL = 128  # a round of fewer shows how many there were, not how fast it could be
_FOLLOWS_S = 0.5
_MEASURED_S = 0.2  # over so long the rate is measured: rounds overlap, and may end right after one another
_WEIGHT = 0.5


class Pace:
    """How fast a shard anchors.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate = _FIRST_RATE
        self._anchored_at = -math.inf
        self._begun_at = -math.inf  # of what is measured, and how many since
        self._count = 0
        self._waits_since: float | None = None

    def anchored(self, references: int) -> None:
        """A round has ended in which owners have learned of so many references."""
        now = self._clock()
        if references < _FULL or now - self._anchored_at > _FOLLOWS_S:
            self._begun_at, self._count = now, 0
        else:
            self._count += references
            if now - self._begun_at >= _MEASURED_S:
                self._rate += _WEIGHT * (self._count / (now - self._begun_at) - self._rate)
                self._begun_at, self._count = now, 0
        if references:
            self._anchored_at = now

    def is_behind(self, waiting: int, waited_s: float) -> bool:
        """Whether nobody is to get references before some of the so many that wait are anchored; the oldest for so many seconds."""
        if waiting <= _LEAST or (waiting <= _BEHIND_S * self._rate and waited_s <= _WAITED_S):
            self._waits_since = None
            return False
        if self._waits_since is None:
            self._waits_since = self._clock()
        return self._clock() - max(self._anchored_at, self._waits_since) < _STUCK_S

"""Which owners answer a question just now: what others had sent them before has arrived there.

A shard reports to an owner who has got an object. A reader may have had the same object before, and have let go of it; that is
another report, which goes its own way. If the owner is slow, or was stopped, the shard's report may be read first. Then the owner
takes the reader for one that has the object already, and after the other report for one that has nothing: when the lease ends, the
object is gone, with a live reference to it. The same goes for another shard. So a shard reports only to an owner that has answered
since the object was handed out. An answer that took long may have been given in the middle of a backlog: then a second one counts.

What always holds: used by the rounds' thread only; one question an owner (see `_ray.objects`); all silent owners together hold up the
others for little more than a fifth of a second, and one that stays silent is asked ever more seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .._ray import objects

_PATIENCE_S = 0.2  # with all owners of a round together
_LEAST_S = 0.01  # then with each
_AT_ONCE_S = 0.05
_AGAIN_S = 0.5  # before one that was silent is asked again; then twice as long, and so on
_LONGEST_PAUSE_S = 5.0
_MOST_SILENT = 1_000

Ask = Callable[[Any, float], bool]


class Answering:
    """Asks owners.

    Args:
        ask: `objects.owner_answers`; for tests, another one.
        clock: monotonic seconds.
    """

    def __init__(self, ask: Ask = objects.owner_answers, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        # By owner, until when it is not asked, and for how long that was; at most _MOST_SILENT, then it begins anew.
        self._silent: dict[bytes, tuple[float, float]] = {}

    def silent(self, samples: Mapping[bytes, Any]) -> set[bytes]:
        """Those of these owners that don't answer now.

        Args:
            samples: by owner, one of its objects or actors. A dead owner is not silent: there is nothing to wait for.
        """
        found: set[bytes] = set()
        patience_s = _PATIENCE_S
        for owner, sample in samples.items():
            begun = self._clock()
            if not self._answers(owner, sample, max(patience_s, _LEAST_S)):
                found.add(owner)
                patience_s -= self._clock() - begun
        return found

    def _answers(self, owner: bytes, sample: Any, patience_s: float) -> bool:
        begun = self._clock()
        until, pause_s = self._silent.get(owner, (begun, 0.0))
        if until > begun:
            return False
        try:
            self._ask(sample, patience_s)
            if self._clock() - begun > _AT_ONCE_S:
                self._ask(sample, patience_s)
        except TimeoutError:
            if len(self._silent) >= _MOST_SILENT:
                self._silent.clear()
            pause_s = min(max(2 * pause_s, _AGAIN_S), _LONGEST_PAUSE_S)
            self._silent[owner] = (self._clock() + pause_s, pause_s)
            return False
        self._silent.pop(owner, None)
        return True

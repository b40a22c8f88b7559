"""Which owners answer a question just now: what others had sent them before has arrived there.

A shard reports to an owner who has got an object. A reader may have had the same object before, and have let go of it; that is
another report, which goes its own way. If the owner is slow, or was stopped, the shard's report may be read first. Then the owner
takes the reader for one that has the object already, and after the other report for one that has nothing: when the lease ends, the
object is gone, with a live reference to it. The same goes for another shard. So a shard reports only to an owner that has answered
since the object was handed out. An answer that took long may have been given in the middle of a backlog: then a second one counts.

What always holds: used by the rounds' thread only; one question an owner (see `_ray.objects`); one that was silent is not asked for a
while, so that it holds up the others for a fifth of a second, now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .._ray import objects

_PATIENCE_S = 0.2
_AT_ONCE_S = 0.05
_AGAIN_S = 0.5  # before one that was silent is asked again
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
        self._silent_until: dict[
            bytes, float
        ] = {}  # by owner; at most _MOST_SILENT, then those that are over go, or all

    def silent(self, samples: Mapping[bytes, Any]) -> set[bytes]:
        """Those of these owners that don't answer now.

        Args:
            samples: by owner, one of its objects or actors. A dead owner is not silent: there is nothing to wait for.
        """
        return {owner for owner, sample in samples.items() if not self._answers(owner, sample)}

    def _answers(self, owner: bytes, sample: Any) -> bool:
        begun = self._clock()
        if self._silent_until.get(owner, begun) > begun:
            return False
        try:
            self._ask(sample, _PATIENCE_S)
            if self._clock() - begun > _AT_ONCE_S:
                self._ask(sample, _PATIENCE_S)
        except TimeoutError:
            self._note_silent(owner)
            return False
        self._silent_until.pop(owner, None)
        return True

    def _note_silent(self, owner: bytes) -> None:
        now = self._clock()
        if len(self._silent_until) >= _MOST_SILENT:
            left = {each: until for each, until in self._silent_until.items() if until > now}
            self._silent_until = left if len(left) < _MOST_SILENT else {}
        self._silent_until[owner] = now + _AGAIN_S

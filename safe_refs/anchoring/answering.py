"""Which owners answer a question just now: what others had sent them before has arrived there.

A shard reports to an owner who has got an object. A reader may have had the same object before, and have let go of it; that is
another report, which goes its own way. If the owner is slow, or was stopped, the shard's report may be read first. Then the owner
takes the reader for one that has the object already, and after the other report for one that has nothing: when the lease ends, the
object is gone, with a live reference to it. The same goes for another shard. So a shard reports only to an owner that has answered
since the object was handed out. An answer that took long may have been given in the middle of a backlog: then a second one counts.

What always holds: one question an owner (see `_ray.objects`); what takes long, all together, holds up the others for a second at
most, as a rule for a fifth; an owner that stays silent is asked ever more seldom.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from .._ray import actors, objects

_PATIENCE_S = 0.2  # with those owners together that don't answer at once
_LEAST_S = 0.01  # then with each
_LONGEST_PATIENCE_S = 0.8  # with one that was silent before: it may be slow, on a machine that is very busy
_MOST_S = 1.0  # then no further one is asked
_AT_ONCE_S = 0.05
_AGAIN_S = 0.1  # before one that was silent is asked again; then twice as long, and so on
_LONGEST_PAUSE_S = 2.0
_MOST_SILENT = 1_000

logger = logging.getLogger("safe_refs.registry")

Ask = Callable[[Any, float], bool]


class Answering:
    """Asks owners.

    Args:
        using: held by threads of the shard while they have references in their hands: here, to ask about an actor.
        ask: `objects.owner_answers`; for tests, another one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        using: threading.Lock,
        ask: Ask = objects.owner_answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._using = using
        self._owner_answers = ask
        self._clock = clock
        # By owner, until when it is not asked, and for how long that was; the oldest first, at most _MOST_SILENT.
        self._silent: dict[bytes, tuple[float, float]] = {}

    def silent(self, samples: Mapping[bytes, Any]) -> set[bytes]:
        """Those of these owners that don't answer now, or could not be asked for want of time.

        Args:
            samples: by owner, one of its objects or actors. A dead owner is not silent: there is nothing to wait for.
        """
        found: set[bytes] = set()
        left_s, until = _PATIENCE_S, self._clock() + _MOST_S
        for owner in sorted(samples, key=self._silent.__contains__):  # those last
            begun = self._clock()
            patience_s = max(left_s, _LEAST_S)
            if owner in self._silent:
                patience_s = min(4 * self._silent[owner][1], _LONGEST_PATIENCE_S, max(until - begun, _LEAST_S))
            if begun > until or not self._answers(owner, samples[owner], patience_s):
                found.add(owner)
            if (took_s := self._clock() - begun) >= _LEAST_S:
                left_s -= took_s
        return found

    def forget(self) -> None:
        """Ask all of them at once the next time, however long they were silent."""
        self._silent.clear()

    def _ask(self, sample: Any, timeout_s: float) -> None:
        with self._using if actors.is_actor_handle(sample) else nullcontext():  # a reference is made for the question
            self._owner_answers(sample, timeout_s)

    def _answers(self, owner: bytes, sample: Any, patience_s: float) -> bool:
        begun = self._clock()
        until, pause_s = self._silent.get(owner, (begun, 0.0))
        if until > begun:
            return False
        try:
            self._ask(sample, patience_s)
            if (took_s := self._clock() - begun) > _AT_ONCE_S:
                self._ask(sample, max(patience_s - took_s, _LEAST_S))
        except TimeoutError:
            self._silent.pop(owner, None)
            while len(self._silent) >= _MOST_SILENT:
                del self._silent[next(iter(self._silent))]
            pause_s = min(max(2 * pause_s, _AGAIN_S), _LONGEST_PAUSE_S)
            self._silent[owner] = (self._clock() + pause_s, pause_s)
            return False
        except Exception:
            # Its object is being touched just now, so that Ray does not know it here; or Ray is gone from this process.
            logger.debug("an owner can't be asked", exc_info=True)
            return False
        self._silent.pop(owner, None)
        return True

"""Which owners answer a question just now: what others had sent them before has arrived there.

A shard reports to an owner who has got an object. A reader may have had the same object before, and have let go of it; that is
another report, which goes its own way. If the owner is slow, or was stopped, the shard's report may be read first. Then the owner
takes the reader for one that has the object already, and after the other report for one that has nothing: when the lease ends, the
object is gone, with a live reference to it. The same goes for another shard. So a shard reports only to an owner that has answered
since the object was handed out.

An owner that was stopped may answer before it has read all that had come meanwhile. And of what a reader has let go of, only the
first had come; the rest comes when the owner has asked for it, which takes as long as a second answer. So an answer that took long,
or comes after a silence, or after the owner did not ask for another report in time (`doubt`), counts only with a second one a little
later.

What always holds: one question an owner (see `_ray.objects`); what takes long, all together, holds up the others for some two seconds
at most, as a rule for a fifth; an owner that stays silent is asked ever more seldom.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from .._ray import actors, objects

_PATIENCE_S = 0.2  # with those owners together that don't answer at once
_LEAST_S = 0.01  # then with each
_LONGEST_PATIENCE_S = 0.8  # with one that was silent before: it may be slow, on a machine that is very busy
_MOST_S = 1.0  # then no further one is asked
_AT_ONCE_S = 0.05
_SLOW_S = 0.1  # before one that was slow is asked again
# The same after a silence: by then a reader's report of all that it has let go of is there. A tenth of a second was too little once
# in 400 silences, with three clusters on two cores.
_CATCHES_UP_S = 0.3
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
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        using: threading.Lock,
        ask: Ask = objects.owner_answers,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._using = using
        self._owner_answers = ask
        self._clock = clock
        self._sleep = sleep
        # By owner, until when it is not asked, and for how long that was; the oldest first, at most _MOST_SILENT.
        self._silent: dict[bytes, tuple[float, float]] = {}

    def silent(self, samples: Mapping[bytes, Any]) -> set[bytes]:
        """Those of these owners that don't answer now, or could not be asked for want of time.

        Args:
            samples: by owner, one of its objects or actors. A dead owner is not silent: there is nothing to wait for.
        """
        found: set[bytes] = set()
        back: dict[bytes, float] = {}  # with how long the first answer took
        left_s, until = _PATIENCE_S, self._clock() + _MOST_S
        for owner in sorted(samples, key=self._silent.__contains__):  # those last
            begun, known = self._clock(), self._silent.get(owner)
            patience_s = max(left_s, _LEAST_S)
            if known is not None and known[1]:  # else it is only doubted, or to be asked in a hurry
                patience_s = min(4 * known[1], _LONGEST_PATIENCE_S, max(until - begun, _LEAST_S))
            is_heard = begun <= until and self._answers(owner, samples[owner], patience_s)
            took_s = self._clock() - begun
            if not is_heard:
                found.add(owner)
            elif took_s > _AT_ONCE_S or known is not None:
                back[owner] = took_s
            if took_s >= _LEAST_S:
                left_s -= took_s
        if back:
            self._sleep(_SLOW_S if self._silent.keys().isdisjoint(back) else _CATCHES_UP_S)
            found |= self._still_silent(back, samples)
        return found

    def _still_silent(self, back: Mapping[bytes, float], samples: Mapping[bytes, Any]) -> set[bytes]:
        """Ask once more those that have answered slowly, or after a silence; who doesn't answer again, or isn't asked in time."""
        found: set[bytes] = set()
        left_s, until = _PATIENCE_S, self._clock() + _MOST_S
        for owner, first_s in back.items():
            begun = self._clock()
            patience_s = min(max(left_s, 3 * first_s, _LEAST_S), max(until - begun, _LEAST_S))
            if begun <= until and self._answers(owner, samples[owner], patience_s):
                self._silent.pop(owner, None)
            else:
                found.add(owner)
            left_s -= self._clock() - begun
        return found

    def doubt(self, owners: Iterable[bytes]) -> None:
        """These don't seem to respond, by something else than a question."""
        for owner in owners:
            if owner not in self._silent:
                self._note(owner, -math.inf, 0.0)

    def hurry(self) -> None:
        """Ask all of them at once the next time, however long they were silent."""
        for owner in list(self._silent):
            self._silent[owner] = (-math.inf, 0.0)

    def _ask(self, sample: Any, timeout_s: float) -> None:
        with self._using if actors.is_actor_handle(sample) else nullcontext():  # a reference is made for the question
            self._owner_answers(sample, timeout_s)

    def _answers(self, owner: bytes, sample: Any, patience_s: float) -> bool:
        """Whether it does so now. After a silence one answer is not enough, so that it still counts as silent then."""
        until, pause_s = self._silent.get(owner, (-math.inf, 0.0))
        if until > self._clock():
            return False
        try:
            self._ask(sample, patience_s)
        except TimeoutError:
            pause_s = min(max(2 * pause_s, _AGAIN_S), _LONGEST_PAUSE_S)
            self._note(owner, self._clock() + pause_s, pause_s)
            return False
        except Exception:
            # Its object is being touched just now, so that Ray does not know it here; or Ray is gone from this process.
            logger.debug("an owner can't be asked", exc_info=True)
            return False
        return True

    def _note(self, owner: bytes, until: float, pause_s: float) -> None:
        self._silent.pop(owner, None)
        while len(self._silent) >= _MOST_SILENT:
            self._silent.pop(next(iter(self._silent.copy())), None)
        self._silent[owner] = (until, pause_s)

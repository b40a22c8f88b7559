"""What a shard's couriers give back, and the proof that the owners have heard of it (step 3 of `couriers`).

Until an owner has heard from a courier that the shard has the reference again, the shard hangs on the couriers. And if the next
round took the same objects to the same couriers before that, Ray would forget there whom the first one was given back to: the answer
to `hold` hands that to who asks, which is the shard itself. So objects are *away* until a courier says that their owners have asked
it, which is when Ray forgets the object there.

What always holds: nothing here waits longer than told; an owner that doesn't answer holds up its own objects only, but for half a
second of a round.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence

from . import couriers

logger = logging.getLogger("safe_refs.registry")

_ANSWER_S = 1.0
_HEARD_S = 0.5  # an owner that was stopped is not to hold up all others
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05

Pair = tuple[int, ...]  # the couriers that a shard uses, by number


class Return:
    """One hand-over on its way back.

    Attributes:
        key: under which couriers hold it.
        pair: which couriers.
        ids: the objects whose owners know the shard by the couriers only.
        unheard: those of which it isn't sure, when all is over, that the owners know the shard again.
        over: set then.
    """

    def __init__(self, key: bytes, pair: Pair, ids: Sequence[bytes]) -> None:
        self.key = key
        self.pair = pair
        self.ids = ids
        self.unheard: Collection[bytes] = ids
        self.over = threading.Event()


class Returner:
    """What the returning thread of a shard does."""

    def __init__(self) -> None:
        self._queue: deque[Return] = deque()
        self._changed = threading.Condition()
        self._away: dict[bytes, Return] = {}

    def begin(self, key: bytes, pair: Pair, ids: Sequence[bytes]) -> Return:
        """Have the couriers give back what they hold under `key`; `ids` are away till then."""
        begun = Return(key, pair, ids)
        with self._changed:
            self._queue.append(begun)
            self._away.update(dict.fromkeys(ids, begun))
            self._changed.notify_all()
        return begun

    def wait_until_back(self, ids: Collection[bytes], timeout_s: float) -> bool:
        """Wait until none of these objects is away."""
        with self._changed:
            return self._changed.wait_for(lambda: self._away.keys().isdisjoint(ids), timeout_s)

    def run(self) -> None:
        """Take back what was begun, as long as the process lives."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue), couriers.STAYS_S)
            self._take_back()

    def _take_back(self) -> None:
        with self._changed:
            begun = list(self._queue)
            self._queue.clear()
        if not begun:
            return
        unheard = {id_ for each in begun for id_ in each.ids}
        try:
            for pair in {each.pair for each in begun}:
                theirs = [each for each in begun if each.pair == pair]
                away = {id_ for each in theirs for id_ in each.ids}
                unheard -= away - self._unheard(pair, [each.key for each in theirs], away)
        except Exception:
            # Couriers that die, or Ray shutting down, must not end all later rounds.
            logger.warning("couriers could not be asked to give back; what they hold is tried again", exc_info=True)
        finally:
            with self._changed:
                for each in begun:
                    each.unheard = unheard.intersection(each.ids)
                    for id_ in each.ids:
                        if self._away.get(id_) is each:
                            del self._away[id_]
                    each.over.set()
                self._changed.notify_all()

    def _unheard(self, pair: Pair, keys: list[bytes], ids: set[bytes]) -> set[bytes]:
        """Have the couriers give back; the objects whose owners have heard of it from none of them in time."""
        replies = {number: couriers.give(number, keys) for number in pair}
        given: dict[int, bytes] = {}
        for number, reply in replies.items():
            if life := couriers.answer(number, reply, _ANSWER_S):
                given[number] = life
        until, pause_s = time.monotonic() + _HEARD_S, _FIRST_PAUSE_S
        while ids and given:
            for number, life in given.items():
                ids = ids.intersection(couriers.unheard(number, life, sorted(ids), _ANSWER_S)) if ids else ids
            if not ids or time.monotonic() + pause_s > until:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if ids and not given:
            logger.error("both couriers died with %d reference(s) in their hands: leases may hold nothing", len(ids))
        return ids

"""What a shard's relays give back, and the proof that the owners know of it (step 3 in `relays`).

Until an owner has the relay's report that the shard has the reference again, the shard's hold depends on the relays. A second loan
of the same objects to the same relays before that would lose the first report: the answer to `hold` carries it to the caller, which
is the shard itself, and then Ray forgets it at the relay. So an object is *away* until a relay says that the owner has asked for
its report, which is when Ray forgets the object there.

    begin(key, ids) ──► the relays give back ──► do they still count the objects? ──► over
                             (1 s at most)         (asked again for 0.5 s at most)

What always holds: every wait has a deadline. An owner that does not respond delays only its own objects, and a round by half a second
at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence

from .relays import Given, Relays

logger = logging.getLogger("safe_refs.registry")

_ANSWER_S = 1.0
_CONFIRMED_S = 0.5  # an owner that was stopped is not to hold up all others
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05
_LOOKS_S = 1.0

Pair = tuple[int, ...]  # the relays that a shard uses, by number


class Return:
    """One loan on its way back.

    Attributes:
        key: under which relays hold it.
        pair: which relays.
        ids: the objects whose owners know the shard by the relays only.
        unconfirmed: those of which it isn't sure, when all is over, that the owners know the shard again.
        over: set then.
    """

    def __init__(self, key: bytes, pair: Pair, ids: Sequence[bytes]) -> None:
        self.key = key
        self.pair = pair
        self.ids = ids
        self.unconfirmed: Collection[bytes] = ids
        self.over = threading.Event()


class Returner:
    """What the returning thread of a shard does.

    Args:
        relays: the shard's relays.
    """

    def __init__(self, relays: Relays) -> None:
        self._relays = relays
        self._changed = threading.Condition()  # guards all that follows
        self._queue: deque[Return] = (
            deque()
        )  # loans to take back: of one round, and of pins since the thread last looked
        self._away: dict[bytes, Return] = {}  # by object; what is in `_queue` or being taken back
        self._is_closed = False

    def begin(self, key: bytes, pair: Pair, ids: Sequence[bytes]) -> Return:
        """Have the relays give back what they hold under `key`; the objects `ids` are away until that is over."""
        begun = Return(key, pair, ids)
        with self._changed:
            if self._is_closed:
                begun.over.set()  # nobody takes it back any more: the relays drop it by themselves
                return begun
            self._queue.append(begun)
            self._away.update(dict.fromkeys(ids, begun))
            self._changed.notify_all()
        return begun

    def wait_until_back(self, ids: Collection[bytes], timeout_s: float) -> bool:
        """Wait until none of these objects is away; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._away.keys().isdisjoint(ids), timeout_s)

    def run(self) -> None:
        """Take back what was begun, until `close`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._is_closed, _LOOKS_S)
                begun = list(self._queue)
                self._queue.clear()
                if self._is_closed and not begun:
                    return
            if begun:
                self._take_back(begun)

    def close(self) -> None:
        """Nothing is begun any more; the thread ends."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take_back(self, begun: list[Return]) -> None:
        unconfirmed = {id_ for each in begun for id_ in each.ids}
        try:
            for pair in {each.pair for each in begun}:
                theirs = [each for each in begun if each.pair == pair]
                away = {id_ for each in theirs for id_ in each.ids}
                unconfirmed -= away - self._unconfirmed(pair, [each.key for each in theirs], away)
        except Exception:
            # Relays that die, or Ray shutting down, must not end all later rounds.
            logger.warning("relays could not be asked to give back; what they hold is tried again", exc_info=True)
        finally:
            with self._changed:
                for each in begun:
                    each.unconfirmed = unconfirmed.intersection(each.ids)
                    for id_ in each.ids:
                        if self._away.get(id_) is each:
                            del self._away[id_]
                    each.over.set()
                self._changed.notify_all()

    def _unconfirmed(self, pair: Pair, keys: list[bytes], ids: set[bytes]) -> set[bytes]:
        """Have the relays give back; the objects whose owners have, in time, asked neither relay for its report."""
        replies = {number: self._relays.give(number, keys) for number in pair}
        lives: dict[int, bytes] = {}
        for number, reply in replies.items():
            if life := self._relays.answer(number, reply, _ANSWER_S):
                lives[number] = life
        until, pause_s = time.monotonic() + _CONFIRMED_S, _FIRST_PAUSE_S
        while ids and lives:
            for number, life in lives.items():
                if ids:
                    ids = ids.intersection(self._relays.unconfirmed(number, Given(life, sorted(ids)), _ANSWER_S))
            if not ids or time.monotonic() + pause_s > until:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if ids and not lives:
            logger.error(
                "both relays died with %d reference(s) in their hands: leases of these may hold nothing; make the payloads anew",
                len(ids),
            )
        return ids

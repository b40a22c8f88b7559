"""A loan of a shard's references to its two relays, and the touch: steps 1 and 2 of `relays`.

No call that brings the same object may be answered between the two steps. The answer would send everything that Ray knows here about
its borrowers, the relays included, to the process that called. So such a call touches first (`rounds.Rounds.finish`), and where it
lends by itself (`touch`), the wait must be short also if a relay is dead:

- Before a round lends, its own thread asks whether both relays answer, unless they have a moment ago (`find_pair`).
- A call waits for both together, 50 ms where they usually answer in 2 to 5 ms; longer, up to 0.25 s, only if they were slow of late,
  on a machine that is very busy.
- If one doesn't answer in time, nothing is lent until `find_pair` has two that do.

What always holds: a count goes to zero only while both relays hold the references.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._ray import actors, counts, workers
from .._ray.counts import Touch
from .._ray.objects import UnopenedActorError
from ..config import Deadline
from .relays import FOR_CLIENTS, FOR_SHARDS, MAY_HAVE_ENDED_S, STAYS_S, Relays
from .returning import Pair

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

KEEPS_RELAYS_S = STAYS_S / 3
_AT_ONCE = 2  # relays: one may die
_TURN_S = 0.05  # in the turn, for both relays together
_LONGEST_TURN_S = 0.25
_TURN_FACTOR = 4  # how many times as long as of late a relay may take
_ANSWERS_S = 1.0  # outside the turn
_STARTS_S = 5.0
_FRESH_S = 0.25  # relays that have not answered for longer are asked whether they are there, first
_BREATH_S = 0.0003
_BUSY_TRIES = 20
_BUSY_S = 0.01  # all calls wait meanwhile
BUSY_PAUSE_S = 0.01
_MOST_UNOPENED = 10_000


class Batch:
    """What one turn is to touch.

    Attributes:
        key: under which relays hold it.
        refs: the references, each object once.
        pair: the relays.
        ids: of the objects.
        begun_at: monotonic seconds; relays hold it from later on.
        is_lent: both relays hold it.
        is_over: `is_lent` doesn't change any more.
        touched: for each reference what came of the touch; None before.
    """

    def __init__(self, refs: list[Ref], pair: Pair) -> None:
        self.key = os.urandom(8)
        self.refs = refs
        self.pair = pair
        self.ids = [actors.id_of(ref) for ref in refs]
        self.begun_at = time.monotonic()
        self.is_lent = False
        self.is_over = threading.Event()
        self.touched: list[Touch] | None = None


class Touching:
    """The two relays of a shard, and how it lends to them.

    Args:
        relays: how to call relays.
        lock: the shard's.
        using: held by other threads of the shard while they have references in their hands.

    Attributes:
        pair: the two relays, by number. Replaced as a whole by `find_pair`, which the rounds' thread alone calls.
        is_doubtful: one of them may not be there. Then nothing is lent: all calls would wait for it, and references in a call that is
            not answered could not be touched.
        unopened: ids of actors whose job has ended, of leases that hold something else as well: no process can open their handles any
            more. At most _MOST_UNOPENED; then they are found again.
    """

    def __init__(self, relays: Relays, lock: threading.Lock, using: threading.Lock) -> None:
        self._relays = relays
        self._lock = lock
        self._using = using
        self.pair: Pair = FOR_SHARDS[:_AT_ONCE]
        self.is_doubtful = False
        self.unopened: set[bytes] = set()
        self._answered_at = float("-inf")
        self._turn_s = _TURN_S
        self._kept_at = float("-inf")

    @property
    def turn_s(self) -> float:
        """How long a call may wait for both relays."""
        return self._turn_s

    def keep_relays(self, *, for_clients: bool) -> None:
        """Start the relays, and keep them from ending; now and then.

        Args:
            for_clients: the clients' relay, too: processes on which leases depend need it when they end.
        """
        if time.monotonic() - self._kept_at >= KEEPS_RELAYS_S:
            self._kept_at = time.monotonic()
            for number in (*self.pair, *FOR_CLIENTS[: int(for_clients)]):
                self._relays.forget(number)  # it may have ended
                self._relays.hello(number)

    def find_pair(self) -> bool:
        """See to it that both relays answer, before a turn; if one doesn't, take the first two of all that do. Whether there are two.

        The spare is started by being asked.
        """
        if not self.is_doubtful and time.monotonic() - self._answered_at < _FRESH_S:
            return True
        missed = self.is_doubtful
        begun = time.monotonic()
        may_have_ended = begun - self._answered_at > MAY_HAVE_ENDED_S
        if may_have_ended:
            for number in self.pair:
                self._relays.forget(number)
        found = self._answering(self.pair, _STARTS_S if may_have_ended else _ANSWERS_S)
        if len(found) < _AT_ONCE:
            self.is_doubtful = True
            found = self._answering(FOR_SHARDS, _STARTS_S)
        elif missed:
            self._turn_s = min(2 * self._turn_s, _LONGEST_TURN_S)  # they were slow, not dead
        elif not may_have_ended:
            self._note_pace(time.monotonic() - begun)
        if len(found) >= _AT_ONCE:
            self.pair, self.is_doubtful = tuple(sorted(found)[:_AT_ONCE]), False
            self._answered_at = time.monotonic()
        return not self.is_doubtful

    def _note_pace(self, took_s: float) -> None:
        self._turn_s = min(max(_TURN_S, _TURN_FACTOR * took_s), _LONGEST_TURN_S)

    def _answering(self, numbers: Sequence[int], timeout_s: float) -> list[int]:
        """The relays of these that answer first, as many as are needed."""
        import ray

        deadline = Deadline(time.monotonic() + timeout_s, timeout_s)
        asked = {number: self._relays.hello(number) for number in numbers}
        waiting = {reply: number for number, reply in asked.items() if reply is not None}
        found: list[int] = []
        while waiting and len(found) < _AT_ONCE and not deadline.is_over():
            ready, _ = ray.wait(list(waiting), timeout=deadline.left_s())
            for reply in ready:
                number = waiting.pop(reply)
                if self._relays.answer(number, reply, _ANSWERS_S):
                    found.append(number)
        for number in waiting.values():
            self._relays.forget(number)
        return found

    def touch(self, key: bytes, refs: Sequence[Ref], pair: Pair) -> list[Touch]:
        """Lend references to both relays, and take their counts to zero and up again, in the middle of a call; what came of each.

        Only for the thread that answers the shard's calls. Whatever comes of it, the relays have to be asked to give back.
        """
        if self.is_doubtful or not self.lend(key, refs, pair, self._turn_s):
            return [Touch.BUSY] * len(refs)
        return self.touch_lent(refs)

    def touch_lent(self, refs: Sequence[Ref]) -> list[Touch]:
        """Take the counts of references that both relays hold to zero and up again; what came of each.

        Only for the thread that answers the shard's calls.
        """
        touched = [Touch.BUSY] * len(refs)
        until = time.monotonic() + _BUSY_S
        for _ in range(_BUSY_TRIES):
            left = [index for index, state in enumerate(touched) if state is Touch.BUSY]
            if not left:
                break
            if self._using.acquire(timeout=BUSY_PAUSE_S):
                try:
                    with self._lock:
                        found = counts.touch_held([refs[index] for index in left])
                finally:
                    self._using.release()
                for index, state in zip(left, found, strict=True):
                    touched[index] = state
            if time.monotonic() > until:
                break
            time.sleep(_BREATH_S if Touch.BUSY in touched else 0)
        return touched

    def lend(self, key: bytes, refs: Sequence[Ref], pair: Pair, timeout_s: float = _ANSWERS_S) -> bool:
        """Have both relays hold references; whether they do, in time."""
        begun = time.monotonic()
        deadline = Deadline(begun + timeout_s, timeout_s)
        replies = [self._relays.hold(number, key, list(refs), []) for number in pair]
        try:
            held = [self._relays.answer(number, replies.pop(0), deadline.left_s()) for number in pair]
        except UnopenedActorError:
            if len(self.unopened) > _MOST_UNOPENED:
                self.unopened.clear()
            dead = [ref for ref in actors.only_actors(refs) if workers.is_surely_dead(workers.owner_of(ref))]
            self.unopened.update(map(actors.id_of, dead))
            return False
        if None in held:
            self.is_doubtful = True
            return False
        self._answered_at = time.monotonic()
        self._note_pace(self._answered_at - begun)
        return True

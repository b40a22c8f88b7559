"""The rounds by which a shard anchors what it holds and has passed on: `relays` has the method, `unanchored` what is due when.

    the rounds' thread                              the thread that answers calls          the returning thread
      take what is due, up to 256 references
      do their owners answer? (answering.silent)
      do both relays answer? (touching.find_pair)
      call the shard's own `watch` ───────────────►  from now on, a call that brings one of them touches first
      lend to both relays
      call the shard's own `touch` ───────────────►  touch zero
      note nothing yet ◄────────────────────────────  for each: REPORTED, UNKNOWN or BUSY
      begin to return ──────────────────────────────────────────────────────────────────►  have the relays give back
      the next round, meanwhile
      note the outcome of each lease ◄──────────────────────────────────────────────────── which owners have confirmed it

What always holds: a round that fails for a lease is repeated, at growing intervals; a round that fails altogether leaves all of its
leases due; every wait has a deadline, and ends soon after the shard begins to close.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, counts, objects, workers
from .._ray.counts import Touch
from .answering import Answering
from .outcomes import Outcomes
from .pace import Pace
from .parting import Parting
from .relays import Relays
from .returning import Return, Returner
from .touching import BUSY_PAUSE_S, KEEPS_RELAYS_S, Batch, Touching
from .unanchored import GATHERS_S, Unanchored

if TYPE_CHECKING:
    import ray

    from ..registry.leases import LeaseTable

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_S = 0.3  # between two looks at whether the processes that leases depend on still live
_MOST_REFERENCES = 256  # in a turn: some four milliseconds of the shard's time
_MOST_UNDER_WAY = 3  # rounds whose loans are on their way back
_AWAY_S = 0.5  # a call waits no longer for objects that relays have
_TURN_COMES_S = 60.0
_LENT_S = 5.0  # relays drop what nobody asks back after twice as long
_LOOKS_S = 0.2
_BACK_S = 10.0  # far longer than `returning` takes for a loan


class UnderWay(NamedTuple):
    """A round whose outcome is not noted yet: its leases with their marks, what came of each object, and what comes back of whom."""

    leases: dict[bytes, int]
    touched: dict[bytes, Touch]
    back: list[tuple[Return, set[bytes]]]


class Rounds:
    """What the anchoring threads of a shard do.

    Args:
        table: what the shard holds.
        unanchored: what is to be anchored.
        pace: how fast that goes.
        lock: guards all three.
        using: held by threads of the shard while they have references in their hands. Taken before the lock.
        relays: how to call relays.
        call: has the shard carry out `watch` or `touch` in its turn, when no other call is; the reply to wait for.
        answering: asks owners.
        parting: what the shard holds a little longer than its leases.
    """

    def __init__(
        self,
        table: LeaseTable[Ref],
        unanchored: Unanchored,
        pace: Pace,
        lock: threading.Lock,
        using: threading.Lock,
        relays: Relays,
        call: Callable[[str], Any],
        answering: Answering,
        parting: Parting,
    ) -> None:
        self._table = table
        self._unanchored = unanchored
        self._pace = pace
        self._lock = lock
        self._using = using
        self._call = call
        self._answering = answering
        self._parting = parting
        self._touching = Touching(relays, lock, using)
        self._batch: Batch | None = None  # in the hands of the round
        self._watched: Batch | None = (
            None  # the same, from `watch` to `touch`; only the thread that answers calls uses it
        )
        self._watched_ids: frozenset[bytes] = frozenset()
        self._under_way: deque[UnderWay] = deque()  # at most _MOST_UNDER_WAY, and one
        self.returner = Returner(relays)
        self._outcomes = Outcomes(table, unanchored, lock, using)
        self._looked_at = -math.inf
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._sleeps_until = -math.inf  # monotonic seconds; while it is awake, it looks by itself what is due

    # For the thread that answers the shard's calls.

    def watch(self) -> None:
        """The round is about to lend its batch. From now on, a call that brings one of these objects touches them first."""
        self._watched = self._batch
        self._watched_ids = frozenset(() if self._batch is None else self._batch.ids)

    def finish(self, ids: Iterable[bytes]) -> tuple[list[Ref], list[Touch]]:
        """A call has brought these objects. If the round is lending some of them, end its turn now; as `touch_batch`."""
        return self.touch_batch() if self._watched_ids and not self._watched_ids.isdisjoint(ids) else ([], [])

    def touch_batch(self) -> tuple[list[Ref], list[Touch]]:
        """Touch what the round has lent, unless that is done; it, and for each what came of it."""
        batch, self._watched, self._watched_ids = self._watched, None, frozenset()
        if batch is None or batch.touched is not None:  # whoever calls `watch` meanwhile must not have it touched twice
            return [], []
        batch.is_over.wait(self._touching.turn_s)
        # If it isn't lent in time, it must not be touched any more: the answer to this call may carry what a later touch would
        # report.
        batch.touched = [Touch.BUSY] * len(batch.refs)
        # Nor if relays may have dropped it: this process was stopped, or its calls took long.
        if batch.is_lent and time.monotonic() - batch.begun_at < _LENT_S:
            batch.touched = self._touching.touch_lent(batch.refs)
        return batch.refs, batch.touched

    def anchor(self, refs: Sequence[Ref]) -> list[Touch]:
        """Anchor references in the middle of a call; step 3 is left to the returning thread."""
        self.returner.wait_until_back([actors.id_of(ref) for ref in refs], _AWAY_S)
        key, pair = os.urandom(8), self._touching.pair
        touched = [Touch.BUSY] * len(refs)
        try:
            touched = self._touching.touch(key, refs, pair)
        finally:
            self.returner.begin(key, pair, _reported(refs, touched))
        return touched

    def close(self, timeout_s: float) -> None:
        """The shard closes: drop what is in the hands of a round, here and at the relays."""
        self._closing.set()
        self._wake.set()
        self._watched, self._watched_ids = None, frozenset()
        if (batch := self._batch) is not None:
            self.returner.begin(batch.key, batch.pair, []).over.wait(timeout_s)

    # For any thread.

    def nudge(self) -> None:
        """Something is unanchored: wake the thread, if it sleeps longer than that may wait. Called under the lock.

        A thread that is woken at each call takes the interpreter from the one that answers it.
        """
        due_in_s = self._next_in_s()
        if due_in_s is not None and time.monotonic() + due_in_s < self._sleeps_until:
            self._wake.set()

    def wake(self) -> None:
        """Something is held, for the first time or again: relays are needed."""
        self._wake.set()

    def in_hand(self) -> list[bytes]:
        """The objects that a round has in its hands."""
        return [] if (batch := self._batch) is None else batch.ids

    # The rounds' thread.

    def run(self) -> None:
        """Anchor what is due, until the shard closes."""
        while not self._closing.is_set():
            try:
                self._keep_relays()
                self._look_for_dead()
                self._parting.let_go()
                if self._round():
                    continue
            except Exception:
                # Relays that die, or Ray shutting down, must not end all later rounds.
                logger.warning("a round of anchoring failed; the next one tries again", exc_info=True)
                self._closing.wait(GATHERS_S)
            with self._lock:
                pause = self._next_in_s()
                longest = _PROBE_S if self._unanchored.depended_on() else KEEPS_RELAYS_S
                pause = longest if pause is None else min(max(pause, BUSY_PAUSE_S), longest)
                self._sleeps_until = time.monotonic() + pause
            self._wake.wait(pause)
            self._sleeps_until = -math.inf
            self._wake.clear()
        self.returner.close()

    def _keep_relays(self) -> None:
        """Have the relays there while leases are held: who resolves one is to be anchored at once, not when a relay has started."""
        with self._lock:
            is_needed = bool(self._table.live) or len(self._unanchored) > 0
            depends = bool(self._unanchored.depended_on())
        if is_needed:
            self._touching.keep_relays(for_clients=depends)

    def _look_for_dead(self) -> None:
        """Look whether processes that leases depend on have died."""
        if time.monotonic() - self._looked_at < _PROBE_S:
            return
        self._looked_at = time.monotonic()
        with self._lock:
            processes = self._unanchored.depended_on()
        for process in processes:
            if workers.is_surely_dead(process):
                with self._lock:
                    self._unanchored.process_died(process)

    def _round(self) -> bool:
        """One loan to the relays, for as many leases as go together; whether there was something to do."""
        leases: dict[bytes, int] = {}
        under_way = UnderWay(leases, {}, [])
        try:
            waiting = self._gather(leases)
            # A large lease is taken in parts, so that calls come in between.
            size = part_size(len(waiting))
            while waiting and not self._closing.is_set():
                part, waiting = waiting[:size], waiting[size:]
                self._lend(*self._of_answering(part, leases), under_way)
        finally:
            if leases:
                self._under_way.append(under_way)
            self._note_outcomes(0 if not leases or self._closing.is_set() else _MOST_UNDER_WAY)
        return bool(leases)

    def _note_outcomes(self, most: int) -> None:
        """Note what came of rounds whose loans are back, and wait for that while more than so many are under way."""
        while self._under_way:
            under_way = self._under_way[0]
            if len(self._under_way) <= most and not all(back.over.is_set() for back, _ in under_way.back):
                return
            unconfirmed: set[bytes] = set()
            try:
                for back, owners in under_way.back:
                    back.over.wait(_BACK_S)
                    unconfirmed.update(back.unconfirmed)
                    if back.unconfirmed:
                        self._answering.doubt(owners)
                self._outcomes.note(under_way.leases, under_way.touched, unconfirmed, self._touching.unopened)
            finally:
                self._under_way.popleft()
                with self._lock:  # what the outcome didn't get to, as it met an error, is due again
                    for lease, marks in under_way.leases.items():
                        self._unanchored.outcome(lease, marks, Touch.BUSY)

    def _gather(self, leases: dict[bytes, int]) -> list[Ref]:
        """Take leases that are due, with their marks, and what they hold, each object once."""
        refs: dict[bytes, Ref] = {}
        with self._lock:
            for lease, marks in self._unanchored.take():
                leases[lease] = marks
                held = counts.touchable(self._table.items_of(lease))
                ids = map(actors.id_of, held)
                wanted, unopened = self._unanchored.wanted(lease, marks), self._touching.unopened
                refs.update(
                    (id_, ref)
                    for id_, ref in zip(ids, held, strict=True)
                    if id_ not in unopened and (wanted is None or id_ in wanted)
                )
                if len(refs) >= _MOST_REFERENCES:
                    break
        return list(refs.values())

    def _of_answering(self, refs: list[Ref], leases: Mapping[bytes, int]) -> tuple[list[Ref], set[bytes]]:
        """Those of these whose owners answer, and those owners. To the others nothing is reported; their leases are tried again."""
        with self._lock:  # while counts are touched, Ray does not know the owner
            owners = [workers.owner_of(ref) for ref in refs]
        silent = self._answering.silent(dict(zip(owners, refs, strict=True)))
        if not silent:
            return refs, set(owners)
        theirs = {actors.id_of(ref) for ref, owner in zip(refs, owners, strict=True) if owner in silent}
        with self._lock:
            for lease, marks in leases.items():
                wanted = self._unanchored.wanted(lease, marks)
                if not theirs.isdisjoint(map(actors.id_of, self._table.items_of(lease)) if wanted is None else wanted):
                    self._unanchored.meets_silence(lease)
        return [ref for ref, owner in zip(refs, owners, strict=True) if owner not in silent], set(owners) - silent

    def _next_in_s(self) -> float | None:
        """Seconds until there is something to do; None if there is nothing. Under the lock."""
        found = [seconds for each in (self._unanchored, self._parting) if (seconds := each.next_in_s()) is not None]
        return min(found, default=None)

    def _lend(self, refs: list[Ref], owners: set[bytes], under_way: UnderWay) -> None:
        """Steps 1 to 3 of `relays`, of which the last goes on in the background."""
        touched = [Touch.BUSY] * len(refs)
        if refs and self._touching.find_pair():
            batch = self._batch = Batch(refs, self._touching.pair)
            try:
                self._turn("watch")
                self.returner.wait_until_back(batch.ids, _AWAY_S)
                batch.begun_at = time.monotonic()
                batch.is_lent = not self._closing.is_set() and self._touching.lend(batch.key, refs, batch.pair)
                batch.is_over.set()
                self._turn("touch")
                touched = batch.touched or touched
                with self._lock:
                    self._pace.anchored(touched.count(Touch.REPORTED))
            finally:
                batch.is_over.set()
                self._batch = None
                under_way.back.append((self.returner.begin(batch.key, batch.pair, _reported(refs, touched)), owners))
        under_way.touched.update(zip(map(actors.id_of, refs), touched, strict=True))

    def _turn(self, method: str) -> None:
        """Have `watch` or `touch` run in its turn. Doesn't wait if the shard closes, which waits for this thread's references then.

        Raises:
            TimeoutError: no turn came.
        """
        import ray

        reply = self._call(method)
        until = time.monotonic() + _TURN_COMES_S
        while not ray.wait([reply], timeout=_LOOKS_S)[0]:
            if self._closing.is_set():
                return
            if time.monotonic() > until:
                raise TimeoutError(f"no turn came within {_TURN_COMES_S:g} s")
        objects.get(reply, _TURN_COMES_S)


def part_size(references: int) -> int:
    """How many of so many references go into a turn: nearly as many into each, so that each shows how fast that goes (`pace`)."""
    turns = -(-references // _MOST_REFERENCES)
    return -(-references // turns) if turns else 0


def _reported(refs: Sequence[Ref], touched: Sequence[Touch]) -> list[bytes]:
    return [actors.id_of(ref) for ref, state in zip(refs, touched, strict=True) if state is Touch.REPORTED]

"""The rounds by which a shard anchors what it holds and has passed on: `relays` has the method, `unanchored` what is due when.

    the rounds' thread                              the thread that answers calls          the returning thread
      take what is due, up to 128 references
      do both relays answer? (touching.find_pair)
      call the shard's own `touch` ───────────────►  lend to both relays, touch zero
      note nothing yet ◄────────────────────────────  for each: REPORTED, UNKNOWN or BUSY
      begin to return ──────────────────────────────────────────────────────────────────►  have the relays give back
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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, counts, objects, workers
from .._ray.counts import Touch
from .relays import Relays
from .returning import Pair, Returner
from .touching import BUSY_PAUSE_S, KEEPS_RELAYS_S, Touching
from .unanchored import GATHERS_S, Unanchored

if TYPE_CHECKING:
    import ray

    from ..registry.leases import LeaseTable
    from ..registry.records import Origin

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_S = 0.3  # between two looks at whether the processes that leases depend on still live
_MOST_REFERENCES = 128  # in a turn: a few milliseconds of the shard's time
_AWAY_S = 0.5  # a call waits no longer for objects that relays have
_OWNER_ANSWERS_S = 1.0
_TURN_COMES_S = 60.0
_LOOKS_S = 0.2
_BACK_S = 10.0  # far longer than `returning` takes for a loan
_ACTORS_TRIES = 10
_TIME_SHARE = 5  # a turn is followed by a pause of so many times its length


class Batch(NamedTuple):
    """What one turn is to touch: under which key, which references, by which relays."""

    key: bytes
    refs: list[Ref]
    pair: Pair


class Rounds:
    """What the anchoring threads of a shard do.

    Args:
        table: what the shard holds.
        unanchored: what is to be anchored.
        lock: guards both.
        using: held by threads of the shard while they have references in their hands. Taken before the lock.
        relays: how to call relays.
        call_touch: has the shard carry out `touch_batch` in its turn, when no other call is; the reply to wait for, which is for each
            reference what came of it.
    """

    def __init__(
        self,
        table: LeaseTable[Ref],
        unanchored: Unanchored,
        lock: threading.Lock,
        using: threading.Lock,
        relays: Relays,
        call_touch: Callable[[], Any],
    ) -> None:
        self._table = table
        self._unanchored = unanchored
        self._lock = lock
        self._using = using
        self._call_touch = call_touch
        self._touching = Touching(relays, lock, using)
        self._batch = Batch(b"", [], self._touching.pair)
        self.returner = Returner(relays)
        self._pause_s = BUSY_PAUSE_S
        self._looked_at = -math.inf
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._sleeps_until = -math.inf  # monotonic seconds; while it is awake, it looks by itself what is due

    # For the thread that answers the shard's calls.

    def touch_batch(self) -> tuple[list[Ref], list[Touch]]:
        """Touch what the rounds' thread has gathered; it, and for each what came of it."""
        key, refs, pair = self._batch
        begun = time.monotonic()
        try:
            return refs, self._touching.touch(key, refs, pair)
        finally:
            # Turns are to take a small part of the shard's time.
            self._pause_s = min(max(BUSY_PAUSE_S, _TIME_SHARE * (time.monotonic() - begun)), GATHERS_S)

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
        batch = self._batch
        self.returner.begin(batch.key, batch.pair, []).over.wait(timeout_s)

    # For any thread.

    def nudge(self) -> None:
        """Something is unanchored: wake the thread, if it sleeps longer than that may wait. Called under the lock.

        A thread that is woken at each call takes the interpreter from the one that answers it.
        """
        due_in_s = self._unanchored.next_in_s()
        if due_in_s is not None and time.monotonic() + due_in_s < self._sleeps_until:
            self._wake.set()

    def in_hand(self) -> list[bytes]:
        """The objects that a round has in its hands."""
        return [actors.id_of(ref) for ref in self._batch.refs]

    # The rounds' thread.

    def run(self) -> None:
        """Anchor what is due, until the shard closes."""
        while not self._closing.is_set():
            try:
                self._keep_relays()
                self._look_for_dead()
                if self._round():
                    self._closing.wait(self._pause_s)
                    continue
            except Exception:
                # Relays that die, or Ray shutting down, must not end all later rounds.
                logger.warning("a round of anchoring failed; the next one tries again", exc_info=True)
                self._closing.wait(GATHERS_S)
            with self._lock:
                pause = self._unanchored.next_in_s()
                longest = _PROBE_S if self._unanchored.depended_on() else KEEPS_RELAYS_S
                pause = longest if pause is None else min(max(pause, BUSY_PAUSE_S), longest)
                self._sleeps_until = time.monotonic() + pause
            self._wake.wait(pause)
            self._sleeps_until = -math.inf
            self._wake.clear()
        self.returner.close()

    def _keep_relays(self) -> None:
        """Have the relays there while something is to be anchored."""
        with self._lock:
            is_needed, depends = len(self._unanchored) > 0, bool(self._unanchored.depended_on())
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
        """One loan to the relays and back, for as many leases as go together; whether there was something to do."""
        leases: dict[bytes, int] = {}
        touched: dict[bytes, Touch] = {}
        unconfirmed: set[bytes] = set()
        try:
            waiting = self._gather(leases)
            # A large lease is taken in parts, so that calls come in between.
            while waiting and not self._closing.is_set():
                part, waiting = waiting[:_MOST_REFERENCES], waiting[_MOST_REFERENCES:]
                touched.update(self._lend(part, unconfirmed))
                if waiting:
                    self._closing.wait(self._pause_s)
            return bool(leases)
        finally:
            try:
                self._note_outcome(leases, touched, unconfirmed)
            finally:
                with self._lock:  # what the outcome didn't get to, as it met an error, is due again
                    for lease, marks in leases.items():
                        self._unanchored.outcome(lease, marks, Touch.BUSY)

    def _gather(self, leases: dict[bytes, int]) -> list[Ref]:
        """Take leases that are due, with their marks, and what they hold, each object once."""
        refs: dict[bytes, Ref] = {}
        with self._lock:
            for lease, marks in self._unanchored.take():
                leases[lease] = marks
                held = counts.touchable(self._table.items_of(lease))
                ids = map(actors.id_of, held)
                refs.update(pair for pair in zip(ids, held, strict=True) if pair[0] not in self._touching.unopened)
                if len(refs) >= _MOST_REFERENCES:
                    break
        return list(refs.values())

    def _note_outcome(
        self, leases: dict[bytes, int], touched: Mapping[bytes, Touch], unconfirmed: Collection[bytes]
    ) -> None:
        """Note what a round has found, and strike those leases off; those that it didn't get to are due again."""
        gone = self._gone(leases, touched) | self._touching.unopened
        self._put_off_verdicts(leases)
        lost = 0
        with self._lock:
            while leases:
                lease, marks = leases.popitem()
                ids = [actors.id_of(ref) for ref in counts.touchable(self._table.items_of(lease))]
                # To a dead owner there is nothing to report. A lease that holds objects of others, too, lives for those.
                found = {touched.get(id_, Touch.BUSY) for id_ in ids if id_ not in gone}
                worst = next((state for state in (Touch.UNKNOWN, Touch.BUSY) if state in found), Touch.REPORTED)
                from_shard, held = self._unanchored.is_from_shard(lease), self._table.find(lease)
                confirmed = not any(id_ in unconfirmed for id_ in ids)
                if self._unanchored.outcome(lease, marks, worst, confirmed=confirmed):
                    self._table.lose(lease, _why_lost(None if from_shard or held is None else held.origin))
                    lost += 1
        if lost:
            logger.warning(
                "%d lease(s) are lost with the processes that pinned them, as these only borrowed the references", lost
            )

    def _gone(self, leases: Iterable[bytes], touched: Mapping[bytes, Touch]) -> set[bytes]:
        """Of the objects whose owners don't know this shard, those whose owners are dead."""
        unknown = {id_ for id_, state in touched.items() if state is Touch.UNKNOWN}
        if not unknown:
            return set()
        with self._using:
            with self._lock:
                held = [ref for lease in leases for ref in counts.touchable(self._table.items_of(lease))]
                refs = [ref for ref in held if actors.id_of(ref) in unknown]
                held.clear()
            owners = {actors.id_of(ref): workers.owner_of(ref) for ref in refs}
            refs.clear()
        dead = {owner for owner in set(owners.values()) if workers.is_surely_dead(owner)}
        return {id_ for id_, owner in owners.items() if owner in dead}

    def _put_off_verdicts(self, leases: Iterable[bytes]) -> None:
        """An owner that was stopped, or is very busy, may not have processed a dead process's last report. So the verdict waits."""
        with self._lock:
            due = [lease for lease in leases if self._unanchored.is_verdict_due(lease)]
        for lease in due:
            with self._using:
                with self._lock:
                    items = counts.touchable(self._table.items_of(lease))
                    samples = {workers.owner_of(ref): ref for ref in items}
                    if actors.only_actors(items) and self._unanchored.tries(lease) < _ACTORS_TRIES:
                        self._unanchored.put_off_verdict(lease)  # it may only have been in the hands of a call
                    items.clear()
                try:
                    for ref in samples.values():
                        objects.owner_answers(ref, _OWNER_ANSWERS_S)
                except TimeoutError:
                    with self._lock:
                        self._unanchored.put_off_verdict(lease)
                ref = None  # a loop's variable is a reference, too
                samples.clear()

    def _lend(self, refs: list[Ref], unconfirmed: set[bytes]) -> dict[bytes, Touch]:
        """Steps 1 to 3 of `relays`; by object what came of it. Those that owners may not know of yet go to `unconfirmed`."""
        touched = [Touch.BUSY] * len(refs)
        self.returner.wait_until_back([actors.id_of(ref) for ref in refs], _AWAY_S)
        if self._touching.find_pair():
            key, pair = os.urandom(8), self._touching.pair
            self._batch = Batch(key, refs, pair)
            try:
                touched = self._turn() or touched
            finally:
                self._batch = Batch(b"", [], pair)
                back = self.returner.begin(key, pair, _reported(refs, touched))
            back.over.wait(_BACK_S)
            unconfirmed.update(back.unconfirmed)
        return {actors.id_of(ref): state for ref, state in zip(refs, touched, strict=True)}

    def _turn(self) -> list[Touch]:
        """Have `touch_batch` run in its turn. Nothing if the shard closes meanwhile: it waits for this thread's references, then.

        Raises:
            TimeoutError: no turn came.
        """
        import ray

        reply = self._call_touch()
        until = time.monotonic() + _TURN_COMES_S
        while not ray.wait([reply], timeout=_LOOKS_S)[0]:
            if self._closing.is_set():
                return []
            if time.monotonic() > until:
                raise TimeoutError(f"no turn came within {_TURN_COMES_S:g} s")
        found: list[Touch] = objects.get(reply, _TURN_COMES_S)
        return found


def _reported(refs: Sequence[Ref], touched: Sequence[Touch]) -> list[bytes]:
    return [actors.id_of(ref) for ref, state in zip(refs, touched, strict=True) if state is Touch.REPORTED]


def _why_lost(maker: Origin | None) -> str:
    """Why a lease is lost that depended on its maker, or (None) on the shard that this one had it from; and what to do."""
    if maker is None:
        return "it depended on the shard that had passed it on to another, which is dead; make the payload anew"
    return (
        f"it depended on {maker.process}, which is dead and had only borrowed the references; make the payload anew, in a process "
        "that owns the objects or has no other threads"
    )

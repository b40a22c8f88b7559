"""A shard's side of anchoring (see `couriers`): which leases are unsettled, and the rounds that settle them.

A lease is *unsettled* at a shard as long as the owners of its objects may not know the shard, or may not know to whom the shard
passed them: it was pinned by a process that only borrowed the references, it was resolved, or it came from or went to another shard.
A lease that came from a borrower *hangs* on that process until a round finds that the owners know this shard. If that process (or the
shard that it came from) dies before, the objects are gone, whatever the shard holds, and the lease is lost.

What always holds: `Unsettled` is pure, and is touched under the shard's lock only; a round never takes a count to zero unless both
couriers hold the references; what a round could not settle is tried again, ever more seldom.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import _ray
from .._ray import Told
from . import couriers
from .leases import LeaseTable
from .returning import Pair, Returner

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_GATHERS_S = 0.2  # how long a round waits for company
_LONGEST_PAUSE_S = 30.0
_GRACE_S = 2.0  # what a dead process had reported still reaches the owner
_PROBE_S = 0.3  # between two looks at whether the processes that leases hang on still live
_MOST_REFERENCES = 128  # in a round: a few milliseconds of the shard's time
_AWAY_S = 0.5  # a call waits no longer for objects that couriers have
_HOLD_S = 1.0  # the shard's calls wait meanwhile
_TOUCH_TIMEOUT_S = 60.0
_LOOKS_S = 0.2
_BREATH_S = 0.0003
_SOON_TRIES = 20
_BUSY_TRIES = 20
_ACTORS_TRIES = 10
_BUSY_PAUSE_S = 0.01
_KEEPS_COURIERS_S = couriers.STAYS_S / 3
_MOST_UNOPENED = 10_000
_AT_ONCE = 2  # couriers: one may die
_COURIER_STARTS_S = 5.0
_COURIER_FRESH_S = 1.0  # one that has not answered for longer is asked whether it is there, first


class _Entry:
    """An unsettled lease: on which process it hangs, if on one; when to try next; how often that was in vain."""

    __slots__ = ("copied", "doomed_at", "due_at", "hangs_on", "marks", "tries")

    def __init__(self) -> None:
        self.hangs_on = b""
        self.due_at = 0.0
        self.tries = 0
        self.marks = 0
        self.copied = False
        self.doomed_at: float | None = None  # when the process that it hangs on was found dead


class Unsettled:
    """The unsettled leases of one shard.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[bytes, _Entry] = {}
        self._queue: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, lease: bytes, hangs_on: bytes = b"", *, copied: bool = False, soon: bool = False) -> None:
        """A lease was passed on, or taken from a process that doesn't own its objects.

        Args:
            lease: its id.
            hangs_on: the address of that process.
            copied: it came from another shard.
            soon: without waiting for company.
        """
        entry = self._entries.get(lease)
        if entry is None:
            entry = self._entries[lease] = _Entry()
        elif not hangs_on and not soon and entry.due_at <= self._clock() + _GATHERS_S:
            entry.marks += 1
            return
        entry.marks += 1
        entry.tries = 0
        if hangs_on:
            entry.hangs_on, entry.doomed_at, entry.copied = hangs_on, None, copied
        self._put(lease, entry, 0.0 if soon else _GATHERS_S)

    def hangs_on(self, lease: bytes) -> bytes:
        """The address of the process that a lease hangs on; empty if it doesn't."""
        entry = self._entries.get(lease)
        return b"" if entry is None else entry.hangs_on

    def copies(self) -> int:
        """How many leases came from other shards, and hang on them still."""
        return sum(entry.copied for entry in self._entries.values())

    def tries(self, lease: bytes) -> int:
        """How often it was tried in vain to settle a lease."""
        entry = self._entries.get(lease)
        return 0 if entry is None else entry.tries

    def has(self, lease: bytes) -> bool:
        """Whether a lease is unsettled."""
        return lease in self._entries

    def forget(self, lease: bytes) -> None:
        """A lease isn't held any more."""
        self._entries.pop(lease, None)

    def keep_only(self, wanted: Callable[[bytes], bool]) -> None:
        """Forget all other leases."""
        self._entries = {lease: entry for lease, entry in self._entries.items() if wanted(lease)}

    def take(self) -> Iterator[tuple[bytes, int]]:
        """The leases that are due, soonest first, each with its marks, for `outcome`; those not taken stay due."""
        now = self._clock()
        while self._queue and self._queue[0][0] <= now:
            due_at, lease = heapq.heappop(self._queue)
            entry = self._entries.get(lease)
            if entry is not None and entry.due_at == due_at:
                entry.due_at = 0.0
                yield lease, entry.marks

    def next_in_s(self) -> float | None:
        """Seconds until a lease may be due; None if none is unsettled."""
        return max(0.0, self._queue[0][0] - self._clock()) if self._queue else None

    def outcome(self, lease: bytes, marks: int, told: Told, *, heard: bool = True) -> bool:
        """What a round found for a lease; True if what it holds is gone, as it hung on a process that is dead.

        Args:
            lease: its id.
            marks: as `take` gave them.
            told: whether the owners know this shard: the worst of them.
            heard: if they do, whether they are sure to know it after the round, too, or by couriers only as yet.
        """
        entry = self._entries.get(lease)
        if entry is None:
            return False
        if told is Told.YES:
            entry.hangs_on, entry.doomed_at = b"", None
            if heard and entry.marks == marks:
                del self._entries[lease]
            else:
                entry.copied = entry.copied and not heard
                entry.tries = 0
                self._put(lease, entry, _GATHERS_S)  # it was passed on again meanwhile, or is to be looked at again
        elif told is Told.BUSY:
            self._put(lease, entry, _GATHERS_S)
        elif self.is_verdict_due(lease):
            del self._entries[lease]
            return True
        else:
            entry.tries += 1
            # Another shard is anchoring a copy by now, or a verdict is due: both soon.
            patient = entry.doomed_at is None and not (entry.copied and entry.tries < _SOON_TRIES)
            self._put(lease, entry, min(_GATHERS_S * 2**entry.tries, _LONGEST_PAUSE_S) if patient else _GATHERS_S)
        return False

    def is_verdict_due(self, lease: bytes) -> bool:
        """Whether what a lease holds is gone if its owners don't know this shard by now."""
        entry = self._entries.get(lease)
        return entry is not None and entry.doomed_at is not None and self._clock() - entry.doomed_at > _GRACE_S

    def put_off_verdict(self, lease: bytes) -> None:
        """An owner doesn't answer just now: what the dead process told it may lie there unread."""
        entry = self._entries.get(lease)
        if entry is not None and entry.doomed_at is not None:
            entry.doomed_at = self._clock()

    def hung_on(self) -> set[bytes]:
        """The processes, not known to be dead, that leases hang on."""
        return {entry.hangs_on for entry in self._entries.values() if entry.hangs_on and entry.doomed_at is None}

    def doom(self, process: bytes) -> None:
        """A process is dead: what hangs on it is lost, unless it told the owners before."""
        now = self._clock()
        for lease, entry in self._entries.items():
            if entry.hangs_on == process and entry.doomed_at is None:
                entry.doomed_at = now
                self._put(lease, entry, 0.0)

    def _put(self, lease: bytes, entry: _Entry, pause_s: float) -> None:
        entry.due_at = self._clock() + pause_s
        heapq.heappush(self._queue, (entry.due_at, lease))


class Settler:
    """What the settling thread of a shard does.

    Args:
        me: the shard's own handle; its `touch` runs in between other calls, when nobody else is using references.
        table: what it holds.
        unsettled: what is to be settled.
        lock: guards both.
        using: held by other threads of the shard while they have references in their hands.
    """

    def __init__(
        self, me: Any, table: LeaseTable[Ref], unsettled: Unsettled, lock: threading.Lock, using: threading.Lock
    ) -> None:
        self._me = me
        self._table = table
        self._unsettled = unsettled
        self._lock = lock
        self._using = using
        self._pair: Pair = couriers.FOR_SHARDS[:_AT_ONCE]
        self._batch: tuple[bytes, list[Ref], Pair] = (b"", [], self._pair)
        self._returner = Returner()
        self._pause_s = _BUSY_PAUSE_S
        self._kept_couriers_at = -_KEEPS_COURIERS_S
        self._looked_at = 0.0
        # Whether one of the pair may not be there: that is not to make all calls wait, nor to keep references in a call that isn't
        # answered, as these can't be touched.
        self._doubtful = False
        self._answered_at = 0.0
        # Actors of jobs that have ended, while leases hold something else as well: nobody can open a handle of theirs.
        self._unopened: set[bytes] = set()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._sleeps_until = -math.inf  # monotonic seconds; while it is awake, it looks by itself what is due

    def touch_batch(self) -> tuple[list[Ref], list[Told]]:
        """Touch what the settling thread has gathered. Only for the thread that carries out the shard's calls."""
        key, refs, pair = self._batch
        begun = time.monotonic()
        try:
            return refs, self._touch(key, refs, pair)
        finally:
            # What it takes of the shard's time is to be a small part of it.
            self._pause_s = min(max(_BUSY_PAUSE_S, 5 * (time.monotonic() - begun)), _GATHERS_S)

    def run(self) -> None:
        """Settle what is due, until the shard closes."""
        threading.Thread(target=self._returner.run, name="safe_refs-returning", daemon=True).start()
        while not self._closing.is_set():
            try:
                self._keep_couriers()
                self._look_for_dead()
                if self._round():
                    time.sleep(self._pause_s)
                    continue
            except Exception:
                # Couriers that die, or Ray shutting down, must not end all later rounds.
                logger.warning("a round of anchoring failed; the next one tries again", exc_info=True)
                time.sleep(_GATHERS_S)
            with self._lock:
                pause = self._unsettled.next_in_s()
                longest = _PROBE_S if self._unsettled.hung_on() else _KEEPS_COURIERS_S
                pause = longest if pause is None else min(max(pause, _BUSY_PAUSE_S), longest)
                self._sleeps_until = time.monotonic() + pause
            self._wake.wait(pause)
            self._sleeps_until = -math.inf
            self._wake.clear()

    def nudge(self) -> None:
        """Something is unsettled: wake the thread, if it sleeps longer than that may wait. Called after, or under, the lock.

        A thread that is woken at each call takes the interpreter from the one that answers it.
        """
        due_in_s = self._unsettled.next_in_s()
        if due_in_s is not None and time.monotonic() + due_in_s < self._sleeps_until:
            self._wake.set()

    def _keep_couriers(self) -> None:
        """Start the couriers, and keep them from ending."""
        if time.monotonic() - self._kept_couriers_at >= _KEEPS_COURIERS_S:
            self._kept_couriers_at = time.monotonic()
            for number in (*self._pair, couriers.FOR_CLIENTS[0]):
                couriers.hello(number)

    def _find_pair(self) -> None:
        """See to it that both couriers are there; where one isn't, take the first two of all that are.

        The spare is started by being asked.
        """
        found = self._answering(self._pair, _HOLD_S)
        if len(found) < _AT_ONCE:
            self._doubtful = True
            found = self._answering(couriers.FOR_SHARDS, _COURIER_STARTS_S)
        if len(found) >= _AT_ONCE:
            self._pair, self._doubtful, self._answered_at = tuple(sorted(found)[:_AT_ONCE]), False, time.monotonic()

    def _answering(self, numbers: Sequence[int], timeout_s: float) -> list[int]:
        """The couriers of these that answer first, as many as are needed."""
        import ray

        asked = {number: couriers.hello(number) for number in numbers}
        waiting = {reply: number for number, reply in asked.items() if reply is not None}
        found: list[int] = []
        until = time.monotonic() + timeout_s
        while waiting and len(found) < _AT_ONCE and time.monotonic() < until:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
            for reply in ready:
                number = waiting.pop(reply)
                if couriers.answer(number, reply, _HOLD_S):
                    found.append(number)
        for number in waiting.values():
            couriers.forget(number)
        return found

    def _look_for_dead(self) -> None:
        """Whether processes that leases hang on have died."""
        if time.monotonic() - self._looked_at < _PROBE_S:
            return
        self._looked_at = time.monotonic()
        with self._lock:
            processes = self._unsettled.hung_on()
        for process in processes:
            if _ray.is_surely_dead(process):
                with self._lock:
                    self._unsettled.doom(process)

    def _round(self) -> bool:
        """One hand-over to the couriers and back, for as many leases as go together; whether there was something to do."""
        leases: dict[bytes, int] = {}
        refs: dict[bytes, Ref] = {}
        with self._lock:
            for lease, marks in self._unsettled.take():
                items = self._table.items_of(lease)
                if not items:
                    self._unsettled.forget(lease)
                    continue
                leases[lease] = marks
                refs.update(
                    (id_, ref) for ref in _ray.touchable(items) if (id_ := _ray.id_of(ref)) not in self._unopened
                )
                if len(refs) >= _MOST_REFERENCES:
                    break
        if not leases:
            return False
        told: dict[bytes, Told] = {}
        unheard: set[bytes] = set()
        waiting = list(refs.values())
        refs.clear()
        try:
            # A large lease is taken in parts, so that calls come in between.
            while waiting and not self._closing.is_set():
                part, waiting = waiting[:_MOST_REFERENCES], waiting[_MOST_REFERENCES:]
                told.update(self._hand_over(part, unheard))
                if waiting:
                    time.sleep(self._pause_s)
        finally:
            self._note_outcome(leases, told, unheard)
        return True

    def _note_outcome(self, leases: dict[bytes, int], told: dict[bytes, Told], unheard: set[bytes]) -> None:
        """What a round has found; what it didn't get to is due again."""
        lost = []
        gone = self._gone(leases, told) | self._unopened
        self._put_off_verdicts(leases)
        with self._lock:
            for lease, marks in leases.items():
                ids = [_ray.id_of(ref) for ref in _ray.touchable(self._table.items_of(lease))]
                # Of an object whose owner is dead there is nothing to tell, and a lease that holds others, too, lives for those.
                found = {told.get(id_, Told.BUSY) for id_ in ids if id_ not in gone}
                worst = next((state for state in (Told.UNKNOWN, Told.BUSY) if state in found), Told.YES)
                maker = self._unsettled.hangs_on(lease)
                if self._unsettled.outcome(lease, marks, worst, heard=unheard.isdisjoint(ids)):
                    self._table.lose(lease, f"it hung on {_ray.describe(maker)}, which is dead")
                    lost.append(lease)
        if lost:
            logger.warning(
                "%d lease(s) are lost with the processes that pinned them, as these only borrowed the references",
                len(lost),
            )

    def _gone(self, leases: Iterable[bytes], told: dict[bytes, Told]) -> set[bytes]:
        """Of the objects whose owners don't know this shard, those whose owners are dead."""
        unknown = {id_ for id_, state in told.items() if state is Told.UNKNOWN}
        if not unknown:
            return set()
        with self._using:
            with self._lock:
                held = [ref for lease in leases for ref in _ray.touchable(self._table.items_of(lease))]
                refs = [ref for ref in held if _ray.id_of(ref) in unknown]
                held.clear()
            owners = {_ray.id_of(ref): _ray.owner_of(ref) for ref in refs}
            refs.clear()
        dead = {owner for owner in set(owners.values()) if _ray.is_surely_dead(owner)}
        return {id_ for id_, owner in owners.items() if owner in dead}

    def _put_off_verdicts(self, leases: Iterable[bytes]) -> None:
        """An owner that was stopped, or is very busy, may not have read yet what a dead process told it."""
        with self._lock:
            due = [lease for lease in leases if self._unsettled.is_verdict_due(lease)]
        for lease in due:
            with self._using:
                with self._lock:
                    items = _ray.touchable(self._table.items_of(lease))
                    samples = {_ray.owner_of(ref): ref for ref in items}
                    if _ray.actors(items) and self._unsettled.tries(lease) < _ACTORS_TRIES:
                        self._unsettled.put_off_verdict(lease)  # it may only have been in the hands of a call
                    items.clear()
                try:
                    for ref in samples.values():
                        _ray.owner_answers(ref, _HOLD_S)
                except TimeoutError:
                    with self._lock:
                        self._unsettled.put_off_verdict(lease)
                ref = None  # a loop's variable is a reference, too
                samples.clear()

    def _touch(self, key: bytes, refs: Sequence[Ref], pair: Pair) -> list[Told]:
        """Steps 1 and 2 of `couriers`; for each reference what came of it. Only for the thread that carries out the shard's calls.

        Nothing else may run there between the two: the answer to a pin of the same object hands all that Ray knows here of who has
        it, the couriers among them, to whoever pinned.
        """
        told = [Told.BUSY] * len(refs)
        if self._doubtful:
            return told
        replies = [couriers.hold(number, key, list(refs)) for number in pair]
        try:
            held = [couriers.answer(number, replies.pop(0), _HOLD_S) for number in pair]
        except _ray.UnopenedActorError:
            if len(self._unopened) > _MOST_UNOPENED:
                self._unopened.clear()  # they are found again
            actors = [ref for ref in _ray.actors(refs) if _ray.is_surely_dead(_ray.owner_of(ref))]
            self._unopened.update(map(_ray.id_of, actors))
            return told
        if None in held:
            self._doubtful = True
            return told
        self._answered_at = time.monotonic()
        for _ in range(_BUSY_TRIES):
            left = [index for index, state in enumerate(told) if state is Told.BUSY]
            if not left:
                break
            if self._using.acquire(timeout=_BUSY_PAUSE_S):
                try:
                    with self._lock:
                        found = _ray.touch_zero([refs[index] for index in left])
                finally:
                    self._using.release()
                for index, state in zip(left, found, strict=True):
                    told[index] = state
            time.sleep(_BREATH_S if Told.BUSY in told else 0)
        return told

    def let_go(self, timeout_s: float) -> None:
        """The shard closes: drop what is in the hands of a round, here and at the couriers."""
        self._closing.set()
        self._wake.set()
        key, _, pair = self._batch
        self._returner.begin(key, pair, []).over.wait(timeout_s)

    def settle_now(self, refs: Sequence[Ref]) -> list[Told]:
        """Settle references in the middle of a call; step 3 is left to the returning thread."""
        self._returner.wait_until_back([_ray.id_of(ref) for ref in refs], _AWAY_S)
        key, pair = os.urandom(8), self._pair
        told = [Told.BUSY] * len(refs)
        try:
            told = self._touch(key, refs, pair)
        finally:
            self._returner.begin(key, pair, _ids(refs, told, Told.YES))
        return told

    def _hand_over(self, refs: list[Ref], unheard: set[bytes]) -> dict[bytes, Told]:
        """Steps 1 to 3 of `couriers`; by object what came of it. Those that owners may not have heard of yet go to `unheard`."""
        self._returner.wait_until_back([_ray.id_of(ref) for ref in refs], _AWAY_S)
        if self._doubtful or time.monotonic() - self._answered_at > _COURIER_FRESH_S:
            self._find_pair()
        key, pair = os.urandom(8), self._pair
        self._batch = (key, refs, pair)
        told = [Told.BUSY] * len(refs)
        try:
            told = self._touched() or told
        finally:
            self._batch = (b"", [], pair)
            back = self._returner.begin(key, pair, _ids(refs, told, Told.YES))
        back.over.wait()
        unheard.update(back.unheard)
        return {_ray.id_of(ref): state for ref, state in zip(refs, told, strict=True)}

    def _touched(self) -> list[Told]:
        """Have `touch` run in its turn. Nothing if the shard closes meanwhile: it waits for this thread's references, then."""
        import ray

        reply = self._me.touch.remote()
        until = time.monotonic() + _TOUCH_TIMEOUT_S
        while not ray.wait([reply], timeout=_LOOKS_S)[0]:
            if self._closing.is_set():
                return []
            if time.monotonic() > until:
                raise TimeoutError(f"no turn came within {_TOUCH_TIMEOUT_S:g} s")
        return [Told(state) for state in _ray.get(reply, _TOUCH_TIMEOUT_S)]


def _ids(refs: Sequence[Ref], told: Sequence[Told], which: Told) -> list[bytes]:
    return [_ray.id_of(ref) for ref, state in zip(refs, told, strict=True) if state is which]

"""The orderly end of a process on which leases depend, because it could not be anchored when it pinned: it is anchored then.

A process with threads of its own can't be anchored while they are at work: they would see Ray's error if they used a reference in
that millisecond. When the process ends, the risk is acceptable, and its other threads keep valid references. What this needs is a
hook that runs before Ray tells the owners that this process is gone:

    how it ends                      what safe_refs has                              where
    exit_actor, SIGTERM (worker)     Ray's function that ends the work, replaced     `_before_exit`, by `_ray.exits`
    end of a driver's script         `atexit`, before Ray's own                      `_before_exit`, by `_ray.exits`
    ray.shutdown                     Ray's function that disconnects, replaced       `_before_exit`, by `_ray.exits`
    last handle of an actor dropped  nothing is called: a thread looks               `OrderlyEnd._watch`, see `delaying`
    ray.kill, SIGKILL, a lost node   nothing: the leases are lost, and the registry says so

If the driver that ends has started the cluster, the cluster ends with it, and nothing is done.

The hook is registered once in a process, when the first lease depends on it, and asks all sessions that anchor. Pins that nobody
waited for are acknowledged before it runs.

What always holds: nothing here raises into the user's code. An end is delayed only in processes on which leases depend: by about
0.1 s, by a second or two if a relay has to start, and by at most _END_S: on a very busy machine, or while an owner is silent.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from .._ray import actors, counts, exits, workers
from .._ray.counts import Touch
from ..config import Deadline
from . import delaying
from .dependents import Dependents, Lease
from .holders import Holders, is_current
from .relays import FOR_CLIENTS, Relays

if TYPE_CHECKING:
    import ray

    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_END_S = 10.0
_NEWS_S = 0.3  # Ray reports an actor in the background, and nobody says when its owner has the report
_LOAN_S = 0.5  # a relay keeps one for longer; but others who pass on the same object wait for its end
_HOLDS_S = 2.0
_ANSWERS_S = 0.5
_BREATH_S = 0.001
_LONGEST_PAUSE_S = 0.25  # other threads get errors while they use a reference that is touched
# A relay that starts takes a second or two, more on a busy machine; then the other one is asked.
_RELAY_PATIENCE_S = (2.0, 4.0)
_TIDY_S = 5.0
_ASKS_S = 1.5
_BACKLOG_S = 2.0
_MOST_AT_ONCE = 100


class OrderlyEnd:
    """What one session does about it.

    Args:
        session: whose process it is.
        relays: how to call relays.
        holders: how to ask shards.

    Attributes:
        dependents: the leases that depend on this process.
    """

    def __init__(self, session: Session, relays: Relays, holders: Holders) -> None:
        self._session = session
        self._relays = relays
        self._holders = holders
        self.dependents = Dependents()
        # Held by the thread that anchors at the end: others that end the process wait for it, a while. Reentrant, because of signals.
        self._ending = threading.RLock()
        # The thread that watches, or tidies. Two at once may start one each; the one that isn't noted here ends by itself.
        self._thread: threading.Thread | None = None
        self._tidied_at = self._gave_backlog_at = self._noted_at = float("-inf")
        self._is_closed = False

    def note(self, refs: Sequence[Ref], registry: str, lease: bytes) -> None:
        """A lease of these references depends on this process."""
        self.dependents.note([actors.id_of(ref) for ref in refs], registry, lease)
        self._noted_at = time.monotonic()
        _register(self)
        is_actor = workers.is_actor()
        if not is_actor and not (self.dependents.is_full() and time.monotonic() - self._tidied_at >= _TIDY_S):
            return
        if not self._is_closed and (self._thread is None or not self._thread.is_alive()):
            if is_actor:
                watch = delaying.Watch(exits.has_called_exit, exits.is_marked_dead, delaying.Delays())
                watch.begin(time.monotonic())  # here, and not in the thread: from now on no end goes unseen
                thread = threading.Thread(target=self._watch, args=(watch,), name="safe_refs-exit", daemon=True)
            else:
                thread = threading.Thread(target=self._tidy_once, name="safe_refs-tidy", daemon=True)
            try:
                self._thread = thread
                thread.start()
            except BaseException as error:
                self._thread = None  # the machine has no more threads just now: the next note tries again
                if not isinstance(error, RuntimeError) or thread.ident is not None:
                    raise

    def backlog(self) -> list[Ref]:
        """Some references of leases that depend on this process, and that it still has; none if there were some a moment ago."""
        now = time.monotonic()
        if not len(self.dependents) or now - self._gave_backlog_at < _BACKLOG_S:
            return []
        self._gave_backlog_at = now
        return counts.references(islice(counts.still_counted(self.dependents.objects()), _MOST_AT_ONCE))

    def before_exit(self) -> None:
        """This process is about to end: have the owners know to whom it passed references."""
        if self._is_closed:
            return
        # Also if nothing is left to do: another thread may be in the middle of it, and this one must not end the process meanwhile.
        locked = self._ending.acquire(timeout=_END_S)
        try:
            if not len(self.dependents) or not is_current(self._session) or exits.ends_cluster():
                return
            taken = self.dependents.take()
            try:
                self._hand_over(list(frozenset().union(*taken.values())), taken)
            except BaseException:  # Ctrl-C: the process may live on, and end once more
                for (registry, lease), ids in taken.items():
                    self.dependents.note(ids, registry, lease)
                raise
        except Exception:
            logger.debug("the end of this process could not be prepared", exc_info=True)  # Ray is gone from it already
        finally:
            if locked:
                self._ending.release()

    def _hand_over(self, ids: Sequence[bytes], leases: Collection[Lease]) -> None:
        refs, known = counts.references(counts.still_counted(ids)), actors.known_actors(ids)
        for actor in known:
            counts.let_go_of_actor(actor)
        if refs:
            self._anchor(refs, leases)
        elif known:
            time.sleep(_NEWS_S)

    def close(self) -> None:
        """The connection is gone: threads end by themselves. Takes no lock, as a forked child may have it held for ever."""
        self._is_closed = True
        self.dependents = Dependents()

    def tidy(self) -> None:
        """Forget references that this process has dropped, and leases that don't depend on it any more; now and then."""
        if time.monotonic() - self._tidied_at < _TIDY_S:
            return
        self._tidied_at = time.monotonic()
        dependents = self.dependents
        asked, ids = dependents.leases(), dependents.objects()
        counted = counts.still_counted(ids) | actors.known_actors(ids)
        still: set[Lease] = set()
        deadline = Deadline(time.monotonic() + _ASKS_S, _ASKS_S)
        for registry, theirs in _by_registry(asked).items():
            answer = self._holders.unanchored(registry, theirs, deadline)
            still.update((registry, lease) for lease in (theirs if answer is None else answer))
        dependents.keep(asked, still, counted)

    def _anchor(self, refs: list[Ref], leases: Collection[Lease]) -> None:
        """Steps 1 to 3 of `relays`, until the owners of all have a report, or no lease needs it.

        A call in flight may have a reference as an argument. And an owner that has just passed one on, on a busy machine, may not
        have asked this process yet for whom it holds it: then there is nobody yet to whom Ray would report. So it is tried again.
        """
        deadline = Deadline(time.monotonic() + _END_S, _END_S)
        left, pause_s = refs, _BREATH_S
        while left and not deadline.is_over() and counts.can_anchor():
            key, relay, begun = os.urandom(8), self._find_relay(deadline), time.monotonic()
            if relay is None:
                break
            held = self._relays.answer(relay, self._relays.hold(relay, key, left, []), min(_HOLDS_S, deadline.left_s()))
            try:
                if held is not None:  # once at least, also if the answer took longer than a loan is to take
                    left = _touch(left)
                while held is not None and left and time.monotonic() + pause_s < begun + _LOAN_S:
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    left = _touch(left)
            finally:  # Ctrl-C leaves them to this process again
                given = self._relays.give(relay, [key])
            self._relays.answer(relay, given, min(_ANSWERS_S, deadline.left_s()))
            if not left or not self._depend(leases):
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        # Ray sends its reports in the background, and stops when this process ends: the registry says when the owners have them.
        for registry, theirs in _by_registry(leases).items():
            self._holders.anchor_now(registry, theirs, deadline)

    def _depend(self, leases: Collection[Lease]) -> bool:
        """Whether some of these leases are not anchored yet, or their shards are silent. Those that nobody holds any more are not."""
        soon = Deadline(time.monotonic() + _ANSWERS_S, _ANSWERS_S)
        return any(
            self._holders.unanchored(registry, theirs, soon) for registry, theirs in _by_registry(leases).items()
        )

    def _find_relay(self, deadline: Deadline) -> int | None:
        """A relay that answers, of those for clients; None if none does in time."""
        for relay, patience_s in zip(FOR_CLIENTS * 2, _RELAY_PATIENCE_S * 2, strict=True):
            if deadline.is_over():
                break
            self._relays.forget(relay)  # it may have ended since it was looked up
            if self._relays.answer(relay, self._relays.hello(relay), min(patience_s, deadline.left_s())):
                return relay
        return None

    def _tidy_once(self) -> None:
        try:
            if is_current(self._session):
                self.tidy()
        except Exception:
            logger.debug("could not look which leases depend on this process", exc_info=True)  # Ray is gone from it
        finally:
            self._thread = None

    def _watch(self, watch: delaying.Watch) -> None:
        """The thread that watches an actor on which leases depend. When the actor is told to end, it anchors, and delays the end."""
        while not self._is_closed:
            time.sleep(delaying.LOOKS_S)
            try:
                if not is_current(self._session):
                    break
                if watch.tick(time.monotonic()):
                    watch.delay(_END_S)
                    self.before_exit()
                    # What is not acknowledged yet may depend on this process as well. To wait for it may take longer than the delay.
                    exits.call_hooks()
                    break
                self.tidy()
            except Exception:
                logger.debug("could not look whether this actor ends", exc_info=True)  # Ray is gone from this process
            if self._thread is not threading.current_thread():
                break  # another one watches
            if not len(self.dependents) and time.monotonic() - self._noted_at > _TIDY_S:
                self._thread = None  # the next note starts another
                if not len(self.dependents):
                    break
                self._thread = threading.current_thread()  # there has been one just now
        watch.end()


def _touch(refs: Sequence[Ref]) -> list[Ref]:
    """Report to the owners of what a relay holds; those to which nothing was reported. In pieces, for the sake of other threads."""
    left: list[Ref] = []
    before = sys.getswitchinterval()
    for start in range(0, len(refs), _MOST_AT_ONCE):
        some = refs[start : start + _MOST_AT_ONCE]
        try:
            sys.setswitchinterval(1e-6)  # other threads are at work: they must not keep this one from coming to an end
            touched = counts.touch_zero(some)
        finally:
            sys.setswitchinterval(before)
        left += [ref for ref, state in zip(some, touched, strict=True) if state is not Touch.REPORTED]
        time.sleep(_BREATH_S if start + _MOST_AT_ONCE < len(refs) else 0)
    return left


def _by_registry(leases: Iterable[Lease]) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = {}
    for registry, lease in leases:
        found.setdefault(registry, set()).add(lease)
    return found


# The sessions of this process that anchor at its end: one, and at most as many as a process may have at once. Weakly held, so that
# one that is dropped goes. No lock: to add, to discard and to copy is one step each.
_all: set[weakref.ref[OrderlyEnd]] = set()


def _register(end: OrderlyEnd) -> None:
    _all.add(weakref.ref(end, _all.discard))
    exits.call_before_exit(_before_exit)


def _before_exit() -> None:
    for each in list(_all):
        if (end := each()) is not None:
            end.before_exit()


def _forget() -> None:
    """A forked child has no connection."""
    _all.clear()


os.register_at_fork(after_in_child=_forget)

"""The orderly end of a process on which leases hang, as it couldn't be anchored when it pinned: it is anchored then.

A process with threads of its own can't be anchored while they are at work: they would see Ray's error if they used a reference in
that millisecond. When the process ends anyhow, that is worth the risk, and the rest of its threads go on with references that are as
good as before. What this needs is a hook that runs before Ray tells the owners that this process is gone:

- `exit_actor` and SIGTERM in a worker: both go through one function of Ray's that ends the work; ours runs before it.
- The end of a driver: what was registered with `atexit` last runs first, so before Ray's own.
- An actor whose last handle is dropped: Ray calls nothing in the process before it tells the owners. But an actor ends only when the
  calls that it has made are answered. So a thread keeps a call open, to an *usher*, and looks whether the actor has been told to end.
- `ray.kill`, SIGKILL, a node that goes: nothing can be done; the leases are lost, and the registry says so.

What always holds: nothing here raises into the user's code; an end is delayed only in processes on which leases hang: by a tenth of a
second or so, by a second or two where a courier has to start, and by at most `_END_S` on a machine that is very busy.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from .. import _ray
from .._ray import Told
from . import contact, couriers

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_TIMEOUT_S = 1.5
_TRIES = 20
_LOOK_S = 0.1
_OPEN_S = 1.5  # how long an end is held up at most, so that the next look sees it; a new call is made halfway
_NEWS_S = 0.3  # Ray's news of an actor travel in the background, and nobody says when its owner has them
_END_S = 10.0
# One that starts takes a second or two, more on a busy machine; then the other one is asked.
_COURIER_PATIENCE_S = (2.0, 4.0)
_TIDY_S = 5.0
_BACKLOG_S = 2.0
_MOST_AT_ONCE = 100
_MANY = 1000

_hanging: dict[bytes, list[tuple[str, bytes]]] = {}  # by object, the leases of it: registry and id
_lock = threading.RLock()  # a signal may have come in the middle of `note`
_hooked = False
_backlog_at = 0.0
_tidied_at = 0.0
_watcher: threading.Thread | None = None


class Usher:
    """The actor's class: answers late, so that who asks does not end before. Async, as many may wait at once."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._leaving: asyncio.Task[None] | None = None

    async def wait(self, seconds: float) -> None:
        """Answer after so many seconds."""
        self._asked_at = time.monotonic()
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.sleep(seconds)

    async def end(self) -> None:
        """End, as nobody has asked for a while."""
        import ray

        ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped

    async def _leave(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        while time.monotonic() - self._asked_at < couriers.STAYS_S:
            await asyncio.sleep(_TIDY_S)
        me.end.remote()


def note(refs: Sequence[Ref], registry: str, lease: bytes) -> None:
    """A lease of these references hangs on this process."""
    global _hooked, _watcher
    if len(_hanging) >= _MANY:
        _tidy()
    with _lock:
        for ref in refs:
            _hanging.setdefault(_ray.id_of(ref), []).append((registry, lease))
        if not _hooked:
            _hooked = True
            _ray.call_before_exit(hand_over)
            atexit.register(hand_over)
        if _ray.is_actor() and (_watcher is None or not _watcher.is_alive()):
            watch = partial(_watch_own_actor, _open_call())  # made here, so that from now on no end goes unseen
            _watcher = threading.Thread(target=watch, name="safe_refs-exit", daemon=True)
            _watcher.start()


def backlog() -> list[Ref]:
    """Some references of leases that hang on this process, and that it still has; none if there were some a moment ago."""
    global _backlog_at
    if not _hanging or time.monotonic() - _backlog_at < _BACKLOG_S:
        return []
    _backlog_at = time.monotonic()
    _tidy()
    return _ray.references(islice(_ray.still_counted(_hanging), _MOST_AT_ONCE))


def forget(ids: Iterable[bytes]) -> None:
    """Leases of these objects don't hang on this process any more."""
    if _hanging:
        for id_ in ids:
            _hanging.pop(id_, None)


def hand_over() -> None:
    """This process is about to end: have the owners told to whom it passed references."""
    if not _hanging:
        return
    locked = _lock.acquire(timeout=_END_S)  # one that hands over is waited for by others
    try:
        refs = _ray.references(_ray.still_counted(_hanging))
        actors = _ray.known_actors(_hanging)
        leases = {lease for found in _hanging.values() for lease in found}
        _hanging.clear()
        for actor in actors:
            _ray.let_go_of_actor(actor)
        if refs:
            _anchor(refs, leases)
        elif actors:
            time.sleep(_NEWS_S)
    except Exception:
        logger.debug("the end of this process could not be prepared", exc_info=True)  # Ray is gone from it already
    finally:
        if locked:
            _lock.release()


def _anchor(refs: list[Ref], leases: set[tuple[str, bytes]]) -> None:
    key, until = os.urandom(8), time.monotonic() + _END_S
    courier = _find_courier(until)
    if courier is None or couriers.answer(courier, couriers.hold(courier, key, refs), _left(until)) is None:
        return
    pause = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # other threads are at work: they are not to keep us from coming to an end
    try:
        left = refs
        for _ in range(_TRIES):
            told = _ray.touch_zero(left)
            left = [ref for ref, state in zip(left, told, strict=True) if state is Told.BUSY]
            if not left:
                break
            time.sleep(0.001)
    finally:
        sys.setswitchinterval(pause)
    couriers.answer(courier, couriers.give(courier, [key]), _left(until))
    # Ray's news travel in the background, and would end with this process: the registry tells when the owners have them.
    for registry in {registry for registry, _ in leases}:
        contact.hurry(_ray.connection(), registry, [lease for other, lease in leases if other == registry], until)


def _find_courier(until: float) -> int | None:
    """A courier that answers, of those for clients; None if none does in time."""
    for courier, patience in zip(couriers.FOR_CLIENTS * 2, _COURIER_PATIENCE_S * 2, strict=False):
        if couriers.answer(courier, couriers.hello(courier), min(patience, _left(until))):
            return courier
    return None


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.001)


def _open_call(seconds: float = _OPEN_S) -> Any:
    """Begin a call that is open for a while; None if that can't be just now."""
    import ray

    try:
        return _ray.start_actor("usher", Usher, place=0).wait.remote(seconds)
    except (ValueError, ray.exceptions.RayError):
        return None  # it is being started, or has just died


def _watch_own_actor(first: Any) -> None:
    """The watching thread of an actor on which leases hang: hands over when it is told to end, and holds that up till then."""
    import ray

    calls: deque[Any] = deque([first], maxlen=4)  # each is dropped when its time has long been over
    opened_at = time.monotonic()
    while True:
        try:
            now = time.monotonic()
            if _ray.is_told_to_end():
                closing = _open_call(_END_S)
                hand_over()
                if closing is not None:
                    ray.cancel(closing)
                return
            if now - opened_at > _OPEN_S / 2 or calls[-1] is None:
                opened_at = now
                calls.append(_open_call())
            if not _tidy():
                return
        except Exception:
            logger.debug("could not look whether this actor ends", exc_info=True)  # Ray is gone from this process
        time.sleep(_LOOK_S)


def _tidy() -> bool:
    """Forget references that this process lost and leases that hang no longer, now and then; whether some are left."""
    global _tidied_at
    if time.monotonic() - _tidied_at < _TIDY_S:
        return True
    _tidied_at = time.monotonic()
    noted = list(_hanging)
    found = {
        lease for leases in list(_hanging.values()) for lease in leases
    }  # what is noted from here on is left alone
    counted = _ray.still_counted(noted) | _ray.known_actors(noted)
    connected, until = _ray.connection(), time.monotonic() + _TIMEOUT_S
    still: set[tuple[str, bytes]] = set()
    for registry in {registry for registry, _ in found}:
        theirs = {lease for other, lease in found if other == registry}
        answer = contact.unsettled(connected, registry, theirs, until)
        still.update((registry, lease) for lease in (theirs if answer is None else answer))
    with _lock:
        for id_, leases in list(_hanging.items()):
            left = [lease for lease in leases if lease not in found or (lease in still and id_ in counted)]
            if left:
                _hanging[id_] = left
            else:
                del _hanging[id_]
        return bool(_hanging)

"""A process that pins references which it only borrows: how the owners learn of the registry (see `couriers` for the method).

Where nothing else can be using references (a plain task, an actor without concurrency, a driver without threads of its own), the pin
is anchored within `dumps`. Elsewhere the lease hangs on the process, and the registry says so; when the process ends in order it lets
go of the references while Ray still tells owners (see `exits`).

What always holds: the counts of references are as before when `finish` returns or raises; a pin that can't be anchored is a pin all
the same.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray, config
from .._ray import Told
from ..envelope import LeaseAddress
from . import contact, couriers, exits
from .topology import Topology

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_COURIER_PATIENCE_S = 5.0  # a courier that starts takes a second or two
_DOWN_S = 30.0  # couriers that could not be had are not waited for by each and every call
_RECENT_S = 2.0  # by then Ray's news of a hand-over, and the registry's own anchoring, have long arrived
_MOST_RECENT = 4096
_TRIES = 8
_FIRST_PAUSE_S = 0.0005
_HURRY_PAUSE_S = 0.01
_WATCH_S = 0.5

# Objects that this process got, or anchored, a moment ago, so that their owners may not know it just now: when, and the lease that it
# resolved them from, if it did.
_recent: dict[bytes, tuple[float, LeaseAddress | None]] = {}
_down_until = 0.0
_loans: deque[_Loan] = deque()
_lent = threading.Event()
_returner_lock = threading.Lock()
_returner: threading.Thread | None = None


class HandOver(NamedTuple):
    """References on their way to a courier.

    Attributes:
        courier: which one.
        key: under which it holds them.
        refs: them, each object once.
        reply: its answer.
    """

    courier: int
    key: bytes
    refs: list[Ref]
    reply: Any


class _Loan(NamedTuple):
    """What a courier is to give back: its key there, and the lease that holds the same."""

    courier: int
    key: bytes
    registry: str
    lease: bytes


def begin(refs: Sequence[Ref]) -> HandOver | None:
    """Send borrowed references to a courier, without waiting; None where anchoring isn't possible, or isn't safe."""
    if time.monotonic() < _down_until or not config.anchors() or not _ray.can_anchor() or not _ray.is_alone():
        return None
    return _send(os.getpid() % couriers.COURIERS, list({ref.binary(): ref for ref in refs}.values()))


def finish(hand_over: HandOver | None, refs: Sequence[Ref], registry: str, lease: bytes, deadline: float) -> None:
    """The registry holds `refs` now: have their owners told, or note that the lease hangs on this process."""
    global _down_until
    if hand_over is not None and not _is_held(hand_over, deadline):
        hand_over = _send((hand_over.courier + 1) % couriers.COURIERS, hand_over.refs)
        if not _is_held(hand_over, deadline):
            _down_until = time.monotonic() + _DOWN_S
            hand_over = None
    if hand_over is not None:
        untold = _tell_owners(hand_over.refs, registry, lease, deadline)
        _return_later(_Loan(hand_over.courier, hand_over.key, registry, lease))
        if not untold:
            return
    exits.note(refs)


def abandon(hand_over: HandOver | None) -> None:
    """The pin has failed: the courier may drop what it holds."""
    if hand_over is not None:
        couriers.give(hand_over.courier, [hand_over.key])


def note_resolved(address: LeaseAddress, refs: Sequence[Ref]) -> None:
    """This process got references from the registry, which is known to their owners, while this process isn't yet."""
    now = time.monotonic()
    for ref in refs:
        _note_recent(ref.binary(), now, address)


def _send(number: int, refs: list[Ref]) -> HandOver:
    key = os.urandom(8)
    return HandOver(number, key, refs, couriers.hold(number, key, refs))


def _is_held(hand_over: HandOver, deadline: float) -> bool:
    left = min(max(deadline - time.monotonic(), 0.001), _COURIER_PATIENCE_S)
    return couriers.answered(hand_over.courier, hand_over.reply, left)


def _tell_owners(refs: list[Ref], registry: str, lease: bytes, deadline: float) -> list[Ref]:
    """Steps 2 of `couriers`; those references of which the owners could not be told.

    An owner that doesn't know this process can't be. It will know soon if this process anchored the same object, or resolved it, a
    moment ago; and it knows at the end of this task if the task brought the reference. So the former are waited for, a little.
    """
    pause_s = _FIRST_PAUSE_S
    for _ in range(_TRIES):
        told = _ray.touch_zero(refs)
        now = time.monotonic()
        untold = []
        again: dict[LeaseAddress, None] = {}
        soon = False
        for ref, state in zip(refs, told, strict=True):
            if state is Told.YES:
                _note_recent(ref.binary(), now, None)
                continue
            untold.append(ref)
            at, source = _recent.get(ref.binary(), (0.0, None))
            if state is Told.UNKNOWN and now - at < _RECENT_S and source is not None:
                again[source] = None
            soon = soon or state is Told.BUSY or now - at < _RECENT_S
        if not untold or not soon:
            return untold
        again = {each: None for each in again if _matters(each, registry, lease)}
        if again:
            _hurry(list(again), deadline)
        else:
            time.sleep(pause_s)
            pause_s *= 2
        refs = untold
    return refs


def _matters(source: LeaseAddress, registry: str, lease: bytes) -> bool:
    """Whether a lease of these objects is held elsewhere than the new one. Where it isn't, the holders have known them before."""
    if source.registry != registry:
        return True
    topology = _topology(registry)
    return not set(topology.holders(lease)) <= set(topology.holders(source.lease))


def _topology(registry: str) -> Topology:
    try:
        return contact.topology(_ray.connection(), registry, start=False)
    except (contact.NoRegistryError, ValueError):
        return Topology(0)


def _hurry(sources: list[LeaseAddress], deadline: float) -> None:
    """Have the registry make this process known as one that resolved from these leases."""
    until = min(deadline, time.monotonic() + 1.0)
    connected = _ray.connection()
    for source in sources:
        shards = _topology(source.registry).everywhere(source.lease)
        while True:
            replies = contact.ask_each(
                connected, source.registry, "hurry", dict.fromkeys(shards, ([source.lease],)), until, start=False
            )
            if True in replies.values() or False not in replies.values() or time.monotonic() > until:
                break
            time.sleep(_HURRY_PAUSE_S)


def _note_recent(object_id: bytes, now: float, source: LeaseAddress | None) -> None:
    _recent.pop(object_id, None)
    _recent[object_id] = (now, source)
    while len(_recent) > _MOST_RECENT:
        _recent.pop(next(iter(_recent)))


def _return_later(loan: _Loan) -> None:
    """Have a courier give references back, from a thread, so that the caller needn't wait. Until then the hold hangs on it."""
    global _returner
    _loans.append(loan)
    if _returner is None or not _returner.is_alive():
        with _returner_lock:
            if _returner is None or not _returner.is_alive():
                _returner = threading.Thread(target=_return_loans, name="safe_refs-anchoring", daemon=True)
                _returner.start()
    _lent.set()


def _return_loans() -> None:
    """The returning thread: asks couriers to give back, and sees to it that they do."""
    asked: deque[tuple[float, int, Any, list[_Loan]]] = deque()
    while True:
        _lent.wait(_WATCH_S if asked else None)
        _lent.clear()
        try:
            by_courier: dict[int, list[_Loan]] = {}
            while _loans:
                loan = _loans.popleft()
                by_courier.setdefault(loan.courier, []).append(loan)
            now = time.monotonic()
            for number, loans in by_courier.items():
                asked.append((now, number, couriers.give(number, [loan.key for loan in loans]), loans))
            while asked and now - asked[0][0] > _WATCH_S:
                _, number, reply, loans = asked.popleft()
                if not couriers.answered(number, reply, _COURIER_PATIENCE_S):
                    for loan in loans:
                        _ask_back(loan)
        except Exception:
            logger.debug("couriers could not be asked to give back", exc_info=True)  # Ray is gone from this process


def _ask_back(loan: _Loan) -> None:
    """A courier has died before it gave references back: whoever holds the lease does it in its stead, and anchors this process."""
    connected = _ray.connection()
    for shard in _topology(loan.registry).everywhere(loan.lease):
        # What comes back is dropped at once: that Ray has told this process of it is what counts.
        contact.known_handle(connected, loan.registry, shard).hand_back.remote(loan.lease)

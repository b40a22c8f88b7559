"""A process that pins references which it only borrows: how the owners learn of the registry (see `couriers` for the method).

Where nothing else can be using references (a plain task, an actor without concurrency, a driver without threads of its own), the pin
is anchored within `dumps`. Elsewhere the lease hangs on the process, and the registry says so; when the process ends in order it lets
go of the references while Ray still tells owners (see `exits`).

What always holds: the counts of references are as before when `finish` returns or raises; a pin that can't be anchored is a pin all
the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
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

_COURIER_PATIENCE_S = 10.0  # one that starts takes a second or two
_COURIER_ANSWERS_S = 1.0  # then the other one is asked, as Ray may take long to see that a node is gone
_COURIER_STARTS_S = 4.0
_COURIER_FRESH_S = 2.0  # one that has not answered for longer is asked whether it is there, first
_COURIER_PAUSE_S = 0.1
_DOWN_S = 5.0  # couriers that could not be had are not waited for by each and every call
_RECENT_S = 2.0  # by then Ray's news of a hand-over have long arrived
_MOST_RECENT = 4096
_TELL_S = 5.0  # until an owner that will know of this process does, on a machine that is very busy
_BUSY_S = 0.1  # an argument of a call in flight, which may go on for long
_LONGEST_PAUSE_S = 0.05
_FIRST_PAUSE_S = 0.0005
_HURRY_S = 5.0
_HEARD_S = 5.0  # likewise; an owner that was stopped for a while
_WATCH_S = 0.5

# Objects that this process got, or anchored, a moment ago, so that their owners may not know it just now: when, and the lease that it
# resolved them from, if it did.
_recent: dict[bytes, tuple[float, LeaseAddress | None]] = {}
# Objects of which owners were told, and may not have heard yet: when, and by which courier, in which life of it.
_said: dict[bytes, tuple[float, Life]] = {}
# Owners that have heard all that this process ever told them, as far as it knows, but for what is in `_said`.
_acquainted: dict[bytes, None] = {}
_MOST_ACQUAINTED = 1024
_which = 0  # of the clients' couriers, the one that is used
_answered_at: float | None = None  # when it last did
_down_until = 0.0
# Whether pins that nobody waits for are on their way: the thread that sends them uses references, so this process isn't alone.
sending = False
_loans: deque[_Loan] = deque()
_lent = threading.Event()
_returner_lock = threading.Lock()
_returner: threading.Thread | None = None


class HandOver(NamedTuple):
    """References on their way to the clients' courier.

    Attributes:
        courier: its number.
        key: under which it holds them.
        refs: them, each object once.
        sent: whether they have gone out; otherwise the courier was asked whether it is there. What is an argument of a call that
            isn't answered can't be anchored.
        reply: its answer.
    """

    courier: int
    key: bytes
    refs: list[Ref]
    sent: bool
    reply: Any


class Life(NamedTuple):
    """A courier's number, and what tells one life of it from the next."""

    courier: int
    mark: bytes


class _Loan(NamedTuple):
    """What a courier is to give back: its key there, and the lease that holds the same; by their ids, what that is."""

    courier: int
    key: bytes
    registry: str
    lease: bytes
    ids: tuple[bytes, ...]


def begin(refs: Sequence[Ref]) -> HandOver | None:
    """Send borrowed references to a courier, without waiting; None where anchoring isn't possible, or isn't safe."""
    if (
        sending
        or time.monotonic() < _down_until
        or not config.anchors()
        or not _ray.can_anchor()
        or not _ray.is_alone()
    ):
        return None
    found = {ref.binary(): ref for ref in _ray.objects(refs)}
    if not found:
        return None
    for ref in exits.backlog():  # what this process pinned when it was not alone, or no courier was there
        found.setdefault(ref.binary(), ref)
    if _answered_at is None or time.monotonic() - _answered_at > _COURIER_FRESH_S:
        return _knock(list(found.values()))
    return _send(list(found.values()))


def finish(hand_over: HandOver | None, refs: Sequence[Ref], registry: str, lease: bytes, deadline: float) -> None:
    """The registry holds `refs` now: have their owners told, or note that the lease hangs on this process."""
    held = None if hand_over is None else _wait_for_courier(hand_over, deadline)
    if held is not None:
        hand_over, life, behind = held
        actors, refs = _ray.actors(refs), _ray.objects(refs)
        mine = {ref.binary() for ref in refs}
        told, untold = _tell_owners(hand_over.refs, mine, registry, lease, deadline)
        courier, key = hand_over.courier, hand_over.key
        _return_later(_Loan(courier, key, registry, lease, tuple(ref.binary() for ref in hand_over.refs)))
        if told and (behind or not _listens(hand_over.refs)):
            unheard = _wait_for_owners(life, told, deadline)
            if unheard:
                _ask_back(_Loan(courier, key, registry, lease, tuple(unheard)))
            untold.update(unheard)
            _note_acquainted(ref for ref in hand_over.refs if ref.binary() in told and ref.binary() not in unheard)
        else:
            _said.update(dict.fromkeys(told, (time.monotonic(), life)))
        exits.forget(ref.binary() for ref in hand_over.refs if ref.binary() not in untold)
        refs = [ref for ref in refs if ref.binary() in untold] + actors
        if not refs:
            return
    if config.anchors() and _ray.can_anchor():
        exits.note(refs, registry, lease)


def abandon(hand_over: HandOver | None) -> None:
    """The pin has failed: the courier may drop what it holds."""
    if hand_over is not None and hand_over.sent:
        couriers.give(hand_over.courier, [hand_over.key])


def note_resolved(address: LeaseAddress, refs: Sequence[Ref]) -> None:
    """This process got references from the registry, which is known to their owners, while this process isn't yet."""
    now = time.monotonic()
    for ref in _ray.objects(refs):
        _note_recent(ref.binary(), now, address)


def _knock(refs: list[Ref]) -> HandOver:
    courier = couriers.FOR_CLIENTS[_which]
    return HandOver(courier, b"", refs, False, couriers.hello(courier))


def _send(refs: list[Ref]) -> HandOver:
    key = os.urandom(8)
    courier = couriers.FOR_CLIENTS[_which]
    lately = time.monotonic() - _RECENT_S
    said: dict[Life, list[bytes]] = {}
    for id_, (at, life) in list(_said.items()):
        if at > lately:
            said.setdefault(life, []).append(id_)
    _said.clear()
    again = {ref.binary() for ref in refs}
    for life, ids in said.items():
        if not again.isdisjoint(ids):
            # Who holds the same once more would be asked about this time only, and forgets whom it gave it back to last time.
            said[life] = _wait_for_owners(life, ids, time.monotonic() + _HEARD_S)
    given = [(life.mark, ids) for life, ids in said.items()]
    return HandOver(courier, key, refs, True, couriers.hold(courier, key, refs, *given))


def _wait_for_courier(hand_over: HandOver, deadline: float) -> tuple[HandOver, Life, list[bytes]] | None:
    """Wait until the courier holds the references, or else another one does; None if none can be had.

    With the hand-over come the courier's life, and what owners were told before and have not heard yet.
    """
    global _answered_at, _down_until, _which
    until = min(deadline, time.monotonic() + _COURIER_PATIENCE_S)
    patience = _COURIER_STARTS_S if _answered_at is None else _COURIER_ANSWERS_S
    first = hand_over.courier
    while True:
        left = max(min(until - time.monotonic(), patience), 0.001)
        answer = couriers.answer(hand_over.courier, hand_over.reply, left)
        if answer is not None:
            _answered_at = time.monotonic()
            if hand_over.sent:
                mark, behind = answer
                return hand_over, Life(hand_over.courier, mark), behind
            hand_over = _send(hand_over.refs)
            continue
        if time.monotonic() + _COURIER_PAUSE_S > until:
            _down_until = time.monotonic() + _DOWN_S
            return None
        time.sleep(_COURIER_PAUSE_S)
        _which = (_which + 1) % len(couriers.FOR_CLIENTS)
        # The other one may have to start, for which it has most of the time, also if the first is asked again in between.
        patience = _COURIER_ANSWERS_S if couriers.FOR_CLIENTS[_which] == first else _COURIER_STARTS_S
        hand_over = _knock(hand_over.refs)


def _tell_owners(
    refs: list[Ref], mine: set[bytes], registry: str, lease: bytes, deadline: float
) -> tuple[list[bytes], set[bytes]]:
    """Step 2 of `couriers`: the objects of which the owners were told, and those of which they had to be, and could not.

    An owner that doesn't know this process can't be. It will know soon if this process anchored the same object, or resolved it, a
    moment ago; and it knows at the end of this task if the task brought the reference. So the former are waited for, a little. If
    its question comes in the very moment in which the count is zero, it is told without this being seen here: the holders of `lease`,
    which is of the objects `mine`, see it, and these count as told.
    """
    pause_s = _FIRST_PAUSE_S
    hurried: set[LeaseAddress] = set()
    told: list[bytes] = []
    begun = time.monotonic()
    until = min(deadline, begun + _TELL_S)
    while True:
        states = _ray.touch_zero(refs)
        now = time.monotonic()
        untold: list[Ref] = []
        sources: dict[LeaseAddress, None] = {}
        soon = False
        for ref, state in zip(refs, states, strict=True):
            at, source = _recent.get(ref.binary(), (0.0, None))
            if state is Told.YES:
                told.append(ref.binary())
                _note_recent(ref.binary(), now, None)
            elif state is Told.UNKNOWN and source is not None and not _matters(source, registry, lease):
                pass  # who holds it now has held it before, and is known, or will be, by itself
            else:
                untold.append(ref)
                if state is Told.UNKNOWN and source is not None and source not in hurried:
                    sources[source] = None
                if state is Told.BUSY:
                    soon = soon or now - begun < _BUSY_S
                else:
                    soon = soon or source in hurried or (source is None and now - at < _RECENT_S)
        refs = untold
        if not untold or not (sources or (soon and now < until)):
            break
        for source in sources:
            contact.hurry(_ray.connection(), source.registry, [source.lease], min(deadline, now + _HURRY_S))
        if sources:
            hurried.update(sources)
            until = min(deadline, time.monotonic() + _TELL_S)
        elif pause_s < _LONGEST_PAUSE_S:
            time.sleep(pause_s)
            pause_s *= 2
        elif contact.unsettled(_ray.connection(), registry, [lease], until) == set():
            unseen = {ref.binary() for ref in refs}
            return [*told, *(unseen & mine)], unseen - mine
        else:
            time.sleep(pause_s)
    return told, {ref.binary() for ref in refs}


def _listens(refs: Sequence[Ref]) -> bool:
    """Whether the owners of `refs` hear one message of this process at once, even if it is killed in the next moment.

    Ray sends an owner one message when there is one, if the owner has asked for it, and the next when it has asked again. So this is
    so for a single object, of an owner that has heard all before. What else there may be to hear is that this process let go of
    others of its objects.
    """
    if len(refs) > 1 or _ray.owner_of(refs[0]) not in _acquainted:
        return False
    lately = time.monotonic() - _RECENT_S
    recent = {id_ for id_, (at, _) in list(_recent.items()) if at > lately}
    return len(_ray.still_counted(recent)) == len(recent)


def _note_acquainted(refs: Iterable[Ref]) -> None:
    for ref in refs:
        _acquainted[_ray.owner_of(ref)] = None
    while len(_acquainted) > _MOST_ACQUAINTED:
        _acquainted.pop(next(iter(_acquainted)))


def _wait_for_owners(life: Life, told: list[bytes], deadline: float) -> list[bytes]:
    """Wait until the owners have heard; those objects of which they have not in time.

    Ray sends an owner one message at once, and further ones when it has asked for more; till then they would be lost with this
    process. A single message for an owner that has heard all before needs no waiting.
    """
    pause_s = _FIRST_PAUSE_S
    until = min(deadline, time.monotonic() + _HEARD_S)
    while True:
        told = couriers.unheard(life.courier, life.mark, told, max(until - time.monotonic(), 0.001))
        if not told or time.monotonic() + pause_s > until:
            return told
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


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
    asked: deque[tuple[float, _ray.Connection, int, Any, list[_Loan]]] = deque()
    while True:
        _lent.wait(_WATCH_S if asked else None)
        _lent.clear()
        try:
            loans: dict[int, list[_Loan]] = {}
            while _loans:
                loan = _loans.popleft()
                loans.setdefault(loan.courier, []).append(loan)
            now = time.monotonic()
            for courier, theirs in loans.items():
                connected = _ray.connection()
                reply = couriers.give(courier, [loan.key for loan in theirs])
                asked.append((now, connected, courier, reply, theirs))
            while asked and now - asked[0][0] > _WATCH_S:
                _, connected, courier, reply, theirs = asked.popleft()
                if connected != _ray.connection():
                    continue  # that cluster is left
                if not couriers.answer(courier, reply, _COURIER_PATIENCE_S):
                    for loan in theirs:
                        _ask_back(loan)
        except Exception:
            logger.debug("the courier could not be asked to give back", exc_info=True)  # Ray is gone from this process


def _ask_back(loan: _Loan) -> None:
    """Have whoever holds the lease give references back in a courier's stead, and anchor this process.

    The courier has died before it did; or it waits in vain for its owner's question. That is so where the same object, from another
    process, came to it while its answer for the last time was on its way: an owner that reads this answer last believes it gone.
    """
    import ray

    connected = _ray.connection()
    for shard in _topology(loan.registry).everywhere(loan.lease):
        # What comes back is dropped at once: that Ray has told this process of it is what counts. A shard that is gone holds nothing.
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            contact.known_handle(connected, loan.registry, shard).hand_back.remote(loan.ids, loan.courier)

"""Pins: a lease begins at each of the shards that are to hold it.

What always holds: a pin that failed on the way leaves nothing held (one that wasn't answered is released, and the registry refuses it
should it arrive later). With replicas it returns when all holders have it, or all but those known to be dead, which get it from the
others later.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray
from ..errors import OwnerGoneError, SafeRefsError, UnsupportedReferenceError
from . import anchoring, contact
from .boxes import BOXED, Box, box
from .contact import Silence
from .records import Origin, Terms, Wish
from .releasing import release_later
from .shard import STALE
from .site import Site, generation_of, pause, remember_identity
from .wire import packed

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")


class Pin(NamedTuple):
    """A lease that is to begin: its id, what it is to hold, on what terms, and who makes it.

    With a wish it begins to become durable at once, if its maker owns all of it; whether it is, `adopting` asks.
    """

    lease: bytes
    refs: Sequence[Any]  # references of objects, and handles of actors
    terms: Terms
    maker: Origin
    wish: Wish | None = None


def pin(registry: str, wanted: Pin, timeout: float, here: Site, deadline: float | None = None) -> tuple[bytes, int]:
    """Have a registry hold references, and wait until it does: all replicas, or all but those known to be dead.

    Args:
        registry: its name.
        wanted: what it is to hold.
        timeout: seconds that it was given from the start, as errors tell.
        here: where this process stands.
        deadline: monotonic seconds, if a part of the time is over.

    Returns:
        Epoch and generation of the registry that holds them.

    Raises:
        RegistryFullError: a limit would be passed.
        OwnerGoneError: the job that made an actor has ended.
        RegistryUnavailableError: no answer in time. As with every error, nothing stays held.
    """
    lease, refs, terms, maker, wish = wanted
    deadline = time.monotonic() + timeout if deadline is None else deadline
    held: set[int] = set()
    answer = b""
    hand_over: anchoring.HandOver | None = None
    boxed: Box | None = None
    try:
        connected = here.connection
        borrowed = _borrowed(refs, here)
        if borrowed:
            hand_over = anchoring.begin(borrowed)
        borrower = here.address if borrowed or connected.client else b""
        while True:
            topology = contact.topology(connected, registry, start=True)
            # What is borrowed is copied when it is anchored: nothing that a call may still need is to end before.
            told = packed(lease, terms, maker, topology.version, borrower, None if borrowed else wish)
            call: tuple[Any, ...]
            if len(refs) < BOXED:
                call = ((told, list(refs)),)
            else:
                boxed = boxed or box(refs)
                call = ((told, ()), boxed.inside)
            holders = topology.holders(lease)
            if len(holders) == 1:
                replies = {
                    holders[0]: contact.ask(connected, registry, holders[0], "pin", call, timeout, deadline, start=True)
                }
            else:
                missing = [shard for shard in holders if shard not in held]
                replies = contact.ask_each(
                    connected, registry, "pin", dict.fromkeys(missing, call), deadline, start=True
                )
            for shard, reply in replies.items():
                if isinstance(reply, SafeRefsError):
                    raise reply
                if reply is Silence.LATE:
                    raise contact.late(registry, timeout)
                if isinstance(reply, bytes) and reply != STALE:
                    held.add(shard)
                    answer = max(answer, reply, key=generation_of)
            if None in replies.values():
                held.clear()  # the registry is being shut down, and whoever holds it already will be gone with it
            if STALE in replies.values() or None in replies.values():
                contact.forget_topology(connected, registry)
            elif held.issuperset(holders) or (held and _repair(connected, registry, lease, held, holders, deadline)):
                boxed = call = None  # type: ignore[assignment] # as long as there is a box, nothing in it can be anchored
                if borrowed:
                    anchoring.finish(hand_over, borrowed, registry, lease, deadline)
                return remember_identity(connected, registry, answer)
            if STALE not in replies.values():
                pause(registry, timeout, deadline)
    except BaseException as error:
        # The call may still be on its way (a timeout, Ctrl-C). Calls of one process arrive in order, and a registry that sees the
        # release first refuses the pin.
        release_later(registry, [lease])
        anchoring.abandon(hand_over)
        if isinstance(error, _ray.UnopenedActorError):
            raise OwnerGoneError.of(lease[:4].hex(), registry) from None
        raise


def _borrowed(refs: Sequence[Ref], here: Site) -> list[Ref]:
    """Those that other processes own. A client can't tell, nor anchor any: the shard sees what its server owns.

    Raises:
        UnsupportedReferenceError: Ray doesn't know whose one is.
    """
    if here.connection.client:
        return []
    try:
        return _ray.borrowed(refs)
    except ValueError as error:
        if "owner is unknown" not in str(error):
            raise
        raise UnsupportedReferenceError.of(
            _ray.ownerless(refs),
            "a reference of which Ray does not know the owner",
            "it was made from a bare id (by plain pickle, say), so nothing can be held by it; pass on the reference itself, or a "
            "payload",
            kind="ray.ObjectRef",
        ) from None


def pin_together(
    registry: str, wanted: Sequence[Pin], deadline: float, timeout: float, here: Site
) -> list[tuple[bytes, int] | SafeRefsError | None]:
    """Have a registry hold what several leases are to, in one call to each shard.

    Returns:
        For each what `pin` returns or raises; None where that isn't known yet: pin it again, by itself.

    Raises:
        RegistryUnavailableError: no answer in time.
    """
    connected = here.connection
    borrowed = [_borrowed(each.refs, here) for each in wanted]
    topology = contact.topology(connected, registry, start=True)
    holders = [topology.holders(each.lease) for each in wanted]
    calls: dict[int, tuple[Any, ...]] = {}
    places: dict[int, dict[int, int]] = {}  # by shard, where in its answer a lease stands
    for shard in dict.fromkeys(shard for each in holders for shard in each):
        theirs = [number for number, shards in enumerate(holders) if shard in shards]
        places[shard] = {number: place for place, number in enumerate(theirs)}
        refs: list[Ref] = [ref for number in theirs for ref in wanted[number].refs]
        rows = [
            (
                each.lease,
                len(each.refs),
                tuple(each.terms),
                tuple(each.maker),
                here.address if borrowed[number] or connected.client else b"",
                None if each.wish is None or borrowed[number] else tuple(each.wish),
            )
            for number, each in ((number, wanted[number]) for number in theirs)
        ]
        calls[shard] = (refs if len(refs) < BOXED else box(refs).inside, rows, topology.version)
        del refs
    try:
        replies = contact.ask_each(connected, registry, "pin_many", calls, deadline, start=True)
    except _ray.UnopenedActorError:
        return [None] * len(wanted)
    calls.clear()
    answers: list[tuple[bytes, int] | SafeRefsError | None] = []
    for number, shards in enumerate(holders):
        found = [
            reply[places[shard][number]] if isinstance(reply := replies[shard], list) else reply for shard in shards
        ]
        refusal = next((each for each in found if isinstance(each, SafeRefsError)), None)
        if refusal is not None:
            answers.append(refusal)
        elif all(isinstance(each, bytes) and each != STALE for each in found):
            if borrowed[number]:
                anchoring.finish(None, borrowed[number], registry, wanted[number].lease, deadline)
            answers.append(remember_identity(connected, registry, max(found, key=generation_of)))
        else:
            answers.append(None)
    return answers


def _repair(
    connected: _ray.Connection, registry: str, lease: bytes, held: set[int], holders: tuple[int, ...], deadline: float
) -> bool:
    """Some holders are dead: have those that are not pass the lease on to them when they are back; whether one will."""
    missing = [shard for shard in holders if shard not in held]
    replies = contact.ask_each(
        connected, registry, "repair", dict.fromkeys(held, ([lease], missing)), deadline, start=False
    )
    if True not in replies.values():
        held.clear()  # they are dead by now, too
        return False
    logger.warning(
        "lease %s is held by %d of %d replicas: shard(s) %s of registry %r are down, and get it when they are back",
        lease[:4].hex(),
        len(held),
        len(holders),
        ", ".join(map(str, missing)),
        registry,
    )
    return True

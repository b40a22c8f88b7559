"""What processes ask of the registry: pin, resolve, release, renew, list; each of the shards that hold the lease.

What always holds: every wait ends by its timeout; a call that failed on the way leaves nothing held (a pin that wasn't answered is
released, and the registry refuses it should it arrive later); a lease of another cluster is never asked for.

With replicas: a pin returns when all holders have it, or all but those known to be dead, which get it from the others later. A
resolve asks all holders at once, so that the references survive the crash of any one of them, and an end that one of them knows of
beats the lease that another still has. Uses, takes and renewals go to one holder after the other, so that the first decides; a load
succeeds only if every living holder grants it: at most once.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray
from ..config import Limits
from ..envelope import LeaseAddress
from ..errors import (
    LeaseError,
    LeaseLostError,
    LeaseNotFoundError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
    WrongClusterError,
)
from ..randomness import token
from . import anchoring, book, contact
from .boxes import BOXED, Box, box
from .contact import NoRegistryError, Silence
from .records import LeaseInfo, Origin, Query, RegistryStats, Terms
from .shard import DOUBTFUL, IN_TURN, RECOVERING, STALE, Yours
from .topology import Topology
from .wire import packed

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_FOLDER = str(Path(__file__).parent.parent) + os.sep  # of the package
_COMES_S = 5.0  # how long a reader waits for a pin that its maker didn't wait for
_COMES_PAUSE_S = 0.01
_PATIENCE_S = 2.0  # how long a replica that doesn't answer is waited for once another has

_identities: dict[tuple[_ray.Connection, str], tuple[bytes, int]] = {}
_sites: dict[_ray.Connection, Site] = {}


class Site(NamedTuple):
    """This process, as it is connected now."""

    connection: _ray.Connection
    node: str
    pid: int
    address: bytes


class Pin(NamedTuple):
    """A lease that is to begin: its id, what it is to hold, on what terms, and who makes it."""

    lease: bytes
    refs: Sequence[Ref]
    terms: Terms
    maker: Origin


class Wanted(NamedTuple):
    """A lease of which the references are wanted.

    Attributes:
        address: where it lives.
        slot: which of them; None for all.
        take: end it in the same step.
        asker: who asks, as an `Origin`.
        use: id of this use, the same whomever it is asked of, and however often.
    """

    address: LeaseAddress
    slot: int | None
    take: bool
    asker: tuple[Any, ...]
    use: bytes


def site() -> Site:
    """Where this process stands; asked for once a call, and passed on from there."""
    connected = _ray.connection()
    found = _sites.get(connected)
    if found is None:
        if len(_sites) > contact.MOST_CONTACTS:
            _sites.clear()
        found = _sites[connected] = Site(connected, *_ray.node_and_process(), _ray.own_address())
    return found


def origin(here: Site | None = None) -> Origin:
    """Who is calling: this job, node and process, and the nearest source line outside safe_refs."""
    here = here or site()
    return Origin(here.connection.job, here.node, here.pid, _source_line())


def cluster() -> bytes:
    """Id of the cluster that this process is connected to."""
    return _ray.connection().cluster


def knows(registry: str) -> bool:
    """Whether `identity` has nothing to ask."""
    return (_ray.connection(), registry) in _identities


def identity(registry: str, timeout: float, here: Site | None = None) -> tuple[bytes, int]:
    """Epoch and generation of a registry as this process last heard; asked for, and started if it must be, on first contact."""
    connected = here.connection if here else _ray.connection()
    known = _identities.get((connected, registry))
    if known is None:
        deadline = time.monotonic() + timeout
        topology = contact.topology(connected, registry, start=True)
        if topology.shards == 1:
            reply = contact.ask(connected, registry, 0, "hello", (), timeout, deadline, start=True)
            return _remember_identity(connected, registry, reply)
        while True:
            # All are started, as a shard that doesn't run can't be a replica; the first that answers will do.
            replies = contact.ask_each(
                connected, registry, "hello", dict.fromkeys(range(topology.shards), ()), deadline, start=True
            )
            for reply in replies.values():
                if isinstance(reply, bytes):
                    return _remember_identity(connected, registry, reply)
            _pause(registry, timeout, deadline)
    return known


def pin(registry: str, wanted: Pin, timeout: float, here: Site) -> tuple[bytes, int]:
    """Have a registry hold references, and wait until it does: all replicas, or all but those known to be dead.

    Returns:
        Epoch and generation of the registry that holds them.

    Raises:
        RegistryFullError: a limit would be passed.
        RegistryUnavailableError: no answer in time. As with every error, nothing stays held.
    """
    lease, refs, terms, maker = wanted
    deadline = time.monotonic() + timeout
    held: set[int] = set()
    answer = b""
    hand_over: anchoring.HandOver | None = None
    boxed: Box | None = None
    try:
        borrowed = _ray.borrowed(refs)
        if borrowed:
            hand_over = anchoring.begin(borrowed)
        borrower = here.address if borrowed else b""
        connected = here.connection
        while True:
            topology = contact.topology(connected, registry, start=True)
            told = packed(lease, terms, maker, topology.version, borrower)
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
                    answer = max(answer, reply, key=_generation)
            if STALE in replies.values() or None in replies.values():
                contact.forget_topology(connected, registry)
            elif held.issuperset(holders) or (held and _repair(connected, registry, lease, held, holders, deadline)):
                boxed = call = None  # type: ignore[assignment] # as long as there is a box, nothing in it can be anchored
                if borrowed:
                    anchoring.finish(hand_over, borrowed, registry, lease, deadline)
                return _remember_identity(connected, registry, answer)
            if STALE not in replies.values():
                _pause(registry, timeout, deadline)
    except BaseException as error:
        # The call may still be on its way (a timeout, Ctrl-C). Calls of one process arrive in order, and a registry that sees the
        # release first refuses the pin.
        release_later(registry, [lease])
        anchoring.abandon(hand_over)
        if isinstance(error, ValueError) and "owner is unknown" in str(error):
            raise UnsupportedReferenceError(
                "the object holds a reference of which Ray does not know the owner: it was made from a bare id (by plain pickle, "
                "say), so nothing can be held by it; pass the reference itself, or a payload",
                kind="ray.ObjectRef",
            ) from None
        raise


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
    borrowed = [_ray.borrowed(each.refs) for each in wanted]
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
                here.address if borrowed[number] else b"",
            )
            for number, each in ((number, wanted[number]) for number in theirs)
        ]
        calls[shard] = (refs if len(refs) < BOXED else box(refs).inside, rows, topology.version)
        del refs
    replies = contact.ask_each(connected, registry, "pin_many", calls, deadline, start=True)
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
            answers.append(_remember_identity(connected, registry, max(found, key=_generation)))
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


def wanted(address: LeaseAddress, here: Site, *, slot: int | None, take: bool) -> Wanted:
    """What is wanted of a lease, as one use of it."""
    # Which line it is that ends a lease is worth looking up; which lines only read it is not.
    asker = tuple(origin(here) if take else (here.connection.job, here.node, here.pid, "by loading"))
    return Wanted(address, slot, take, asker, token(8))


def resolve(wanted: Wanted, timeout: float, here: Site) -> list[Ref]:
    """The references of a lease, or the one in a slot; with `take`, end the lease in the same step.

    Raises:
        LeaseError: it has ended, was lost, or was never there.
        RegistryUnavailableError: no answer in time.
    """
    address, slot, take, asker, use = wanted

    def call(version: int, counts: bool, _: int) -> tuple[Any, ...]:
        use_id = use if counts else b""
        return (packed(version, address.lease, address.epoch, address.generation, slot, take, asker, use_id),)

    refs: list[Ref] = _ask_holders(here.connection, address, "resolve", call, timeout, in_turn=take)
    anchoring.note_resolved(address, refs)
    return refs


def resolve_together(registry: str, wanted: Sequence[Wanted], deadline: float, here: Site) -> list[list[Ref] | None]:
    """The references of several leases of one registry, in one call to each shard.

    Returns:
        For each its references; None where that call didn't settle it: resolve it again, by itself, with the same use.
    """
    connected = here.connection
    try:
        topology = contact.topology(connected, registry, start=False)
    except NoRegistryError:
        return [None] * len(wanted)
    holders = [topology.everywhere(each.address.lease) for each in wanted]
    calls: dict[int, tuple[Any, ...]] = {}
    places: dict[int, dict[int, int]] = {}
    for shard in dict.fromkeys(shard for each in holders for shard in each):
        # Who takes asks one replica after the other, and so by itself, where there are several.
        theirs = [
            number
            for number, shards in enumerate(holders)
            if shard in shards and (len(shards) == 1 or not wanted[number].take)
        ]
        places[shard] = {number: place for place, number in enumerate(theirs)}
        rows = [
            (
                *(each.address.lease, each.address.epoch, each.address.generation, each.slot, each.take, each.asker),
                each.use if len(holders[number]) == 1 else b"",
            )
            for number, each in ((number, wanted[number]) for number in theirs)
        ]
        if rows:
            calls[shard] = (rows, topology.version)
    replies = contact.ask_each(
        connected, registry, "resolve_many", calls, deadline, start=False, patience_s=_PATIENCE_S
    )
    given: dict[int, list[list[Ref] | None]] = {}
    for shard, reply in replies.items():
        if not isinstance(reply, tuple):
            continue
        answers, refs = reply
        at, theirs_given = 0, given.setdefault(shard, [])
        for answer in answers:
            count = answer if type(answer) is int else 0
            theirs_given.append(refs[at : at + count] if type(answer) is int else None)
            at += count
    found: list[list[Ref] | None] = []
    for number, shards in enumerate(holders):
        parts = [
            given[shard][places[shard][number]] if shard in given and number in places[shard] else None
            for shard in shards
        ]
        whole = None if None in parts else parts[0]
        if whole is not None:
            anchoring.note_resolved(wanted[number].address, whole)
        found.append(whole)
    return found


def _ask_holders(
    connected: _ray.Connection,
    address: LeaseAddress,
    method: str,
    call: Callable[[int, bool, int], tuple[Any, ...]],
    timeout: float,
    *,
    in_turn: bool,
) -> Any:
    """Ask whoever holds a lease, and make one answer of theirs.

    Args:
        connected: to which cluster.
        address: of the lease.
        method: of the shard.
        call: gives its arguments, from the topology's version, whether the holders are asked one after the other, and the last
            number that one of them has answered.
        timeout: seconds.
        in_turn: ask them one after the other from the start; otherwise only if they say so.

    Raises:
        LeaseError: the lease has ended, was lost, or was never there.
        RegistryUnavailableError: no answer in time.
    """
    registry, begun = address.registry, time.monotonic()
    deadline = begun + timeout
    comes_by = min(deadline, begun + _COMES_S) if address.soon else begun
    was_moving = False
    granted: dict[int, Any] = {}  # answers of those that were asked in turn, which are not to be asked twice
    while True:
        try:
            topology = contact.topology(connected, registry, start=False)
            shards = topology.everywhere(address.lease)
            replies: dict[int, Any] = {}
            if len(shards) == 1:
                args = call(topology.version, True, 0)
                replies[shards[0]] = contact.ask(
                    connected, registry, shards[0], method, args, timeout, deadline, start=False
                )
            elif in_turn:
                replies = _ask_in_turn(connected, registry, topology, shards, method, call, deadline, granted)
            else:
                calls = dict.fromkeys(shards, call(topology.version, False, 0))
                replies = contact.ask_each(
                    connected, registry, method, calls, deadline, start=False, patience_s=_PATIENCE_S
                )
        except NoRegistryError:
            forget_registry(connected, registry)
            if time.monotonic() < comes_by:
                time.sleep(_COMES_PAUSE_S)
                continue
            raise _lost(address) from None
        answers = [each.refusal if isinstance(each, Yours) and not granted else each for each in replies.values()]
        if STALE in answers:
            contact.forget_topology(connected, registry)
            if time.monotonic() > deadline:
                raise contact.late(registry, timeout)
            continue
        if IN_TURN in answers:
            in_turn = True
            continue
        refusals = [answer for answer in answers if isinstance(answer, SafeRefsError)]
        for refusal in refusals:
            if not isinstance(refusal, (LeaseNotFoundError, LeaseLostError)):
                raise refusal  # it has ended, whatever others have not heard of yet
        for answer in answers:
            if not isinstance(answer, (SafeRefsError, Silence, Yours)) and answer not in (RECOVERING, DOUBTFUL):
                return answer
        if all(answer is Silence.ABSENT for answer in answers):
            forget_registry(connected, registry)
            if time.monotonic() < comes_by:
                time.sleep(_COMES_PAUSE_S)
                continue
            raise _lost(address)
        if Silence.LATE in answers:
            raise contact.late(registry, timeout)
        unsure = RECOVERING in answers or DOUBTFUL in answers or Silence.DEAD in answers
        if not unsure and (was_moving or not topology.before):
            if time.monotonic() < comes_by:  # it was made without waiting, and may be on its way
                time.sleep(_COMES_PAUSE_S)
                continue
            raise next((each for each in refusals if isinstance(each, LeaseLostError)), refusals[0])
        # Somebody who may have it can't answer yet; or it is on its way from one shard to another, and is asked for once more.
        was_moving = bool(topology.before)
        _pause(registry, timeout, deadline)


def _ask_in_turn(
    connected: _ray.Connection,
    registry: str,
    topology: Topology,
    shards: Sequence[int],
    method: str,
    call: Callable[[int, bool, int], tuple[Any, ...]],
    deadline: float,
    granted: dict[int, Any],
) -> dict[int, Any]:
    """Ask one holder after the other, but for those that have granted it before, and stop at the first that refuses."""
    replies = dict(granted)
    number = max((each for each in granted.values() if isinstance(each, int)), default=0)
    for shard in shards:
        if shard in granted:
            continue
        args = call(topology.version, True, number)
        replies |= contact.ask_each(connected, registry, method, {shard: args}, deadline, start=False)
        reply = replies[shard]
        number = reply if isinstance(reply, int) else number
        if reply in (STALE, Silence.LATE) or (
            isinstance(reply, LeaseError) and not isinstance(reply, (LeaseNotFoundError, LeaseLostError))
        ):
            break
        if not isinstance(reply, (SafeRefsError, Silence, Yours)) and reply not in (RECOVERING, DOUBTFUL):
            granted[shard] = reply
    return replies


def release_ids(registry: str, rows: Sequence[tuple[Sequence[bytes], Origin]], timeout: float) -> set[bytes]:
    """End leases of a registry of this cluster by their bare ids, each row by whom it says; which ones that ended.

    All holders are told, but those that are dead, which hear it from the others when they come back.
    """
    connected, deadline = _ray.connection(), time.monotonic() + timeout
    makers = {lease: maker for leases, maker in rows for lease in leases}
    ended: set[bytes] = set()
    waiting: dict[int, list[bytes]] | None = None
    while True:
        try:
            topology = contact.topology(connected, registry, start=False)
            if waiting is None:
                waiting = _by_shard(topology, makers)
            calls = {shard: (_rows(theirs, makers), topology.version) for shard, theirs in waiting.items()}
            if topology.shards == 1 and calls:
                replies = {0: contact.ask(connected, registry, 0, "release", calls[0], timeout, deadline, start=False)}
            else:
                replies = contact.ask_each(connected, registry, "release", calls, deadline, start=False)
        except NoRegistryError:
            forget_registry(connected, registry)
            return ended
        if STALE in replies.values():
            contact.forget_topology(connected, registry)
            waiting = None
            continue
        if Silence.LATE in replies.values():
            raise contact.late(registry, timeout)
        told: set[bytes] = set()
        for shard, flags in replies.items():
            if isinstance(flags, list):
                told.update(waiting[shard])
                ended.update(lease for lease, flag in zip(waiting[shard], flags, strict=True) if flag)
        # A dead shard hears it from the others; where there are none it is told when it is back.
        untold = {
            shard: [lease for lease in waiting[shard] if lease not in told]
            for shard, reply in replies.items()
            if reply is Silence.DEAD
        }
        waiting = {shard: theirs for shard, theirs in untold.items() if theirs}
        if not waiting:
            return ended
        _pause(registry, timeout, deadline)


def _rows(leases: Iterable[bytes], makers: Mapping[bytes, Origin]) -> list[tuple[list[bytes], Origin]]:
    rows: list[tuple[list[bytes], Origin]] = []
    for lease in leases:
        if not rows or rows[-1][1] is not makers[lease]:
            rows.append(([], makers[lease]))
        rows[-1][0].append(lease)
    return rows


def release_later(registry: str, leases: Sequence[bytes]) -> None:
    """Ask for the end of leases without waiting for it; for clearing up after a failure. Never raises what Ray raises."""
    import ray

    try:
        connected = _ray.connection()
        topology = contact.topology(connected, registry, start=False)
        maker = origin()
        for shard, theirs in _by_shard(topology, leases).items():
            handle = contact.known_handle(connected, registry, shard)
            handle.release.remote([(theirs, maker)], topology.version)
    except (NoRegistryError, RegistryUnavailableError, ValueError, ray.exceptions.RayError):
        pass  # Ray is gone from this process, or the registry is, and with it every call that was still on its way


def renew(address: LeaseAddress, ttl: float | None, timeout: float) -> None:
    """Let a lease live `ttl` seconds from now, or without a limit.

    Raises:
        WrongClusterError: the lease is another cluster's.
        LeaseError: it has ended, was lost, or was never there.
    """
    check_cluster(address, site())

    def call(version: int, _: bool, number: int) -> tuple[Any, ...]:
        return (address.lease, address.epoch, address.generation, ttl, number, version)

    # The first holder counts the renewals, and tells the others: two that renew at once can't be taken in different orders.
    _ask_holders(_ray.connection(), address, "renew", call, timeout, in_turn=True)


def expires_in_s(address: LeaseAddress, timeout: float) -> float | None:
    """Seconds until a lease's ttl runs out; None without one.

    Raises:
        WrongClusterError: the lease is another cluster's.
        LeaseError: it has ended, was lost, or was never there.
    """
    check_cluster(address, site())

    def call(version: int, _: bool, __: int) -> tuple[Any, ...]:
        return (address.lease, address.epoch, address.generation, version)

    left: float | None = _ask_holders(_ray.connection(), address, "expires_in_s", call, timeout, in_turn=False)
    return left


def leases(registry: str, query: Query, most: int | None, with_sizes: bool, timeout: float) -> list[LeaseInfo]:
    """Live leases, each once, at most so many (None: all); nothing where no registry runs. Asked for a page at a time."""
    connected = _ray.connection()
    found: dict[bytes, tuple[LeaseInfo, float]] = {}
    try:
        topology = contact.topology(connected, registry, start=False)
        for shard in range(topology.shards):
            rows, after = 0, query.after
            while True:
                limit = query.limit if most is None else min(query.limit, most - rows)
                args = (tuple(query._replace(after=after, limit=limit)), with_sizes)
                page = _ask_any(connected, registry, topology, shard, "leases", args, timeout)
                if page is None:
                    break  # its leases are other shards', too
                infos, marks, after, now = page
                rows += len(infos)
                for mark, info in zip(marks, infos, strict=True):
                    found.setdefault(mark, (info, now))
                if after is None or rows == most:
                    break
    except NoRegistryError:
        forget_registry(connected, registry)
        return []
    rows_found = list(found.values())
    if topology.shards > 1:
        rows_found.sort(key=lambda row: _ORDERS[query.sort](*row))
    return [info for info, _ in rows_found[:most]]


# Shards are asked one after the other, and leases grow older meanwhile: so they are put in order by the time of day.
_ORDERS: dict[str, Callable[[LeaseInfo, float], float]] = {
    "age": lambda info, now: now - info.age_s,
    "expires": lambda info, now: math.inf if info.expires_in_s is None else now + info.expires_in_s,
    "references": lambda info, _: -info.references,
    "bytes": lambda info, _: -(info.size_bytes or 0),
}


def _ask_any(
    connected: _ray.Connection,
    registry: str,
    topology: Topology,
    shard: int,
    method: str,
    args: tuple[Any, ...],
    timeout: float,
) -> Any:
    """Ask one shard; None if it is dead or doesn't exist and there are replicas, so that others know what it would say."""
    deadline = time.monotonic() + timeout
    if topology.replicas == 1:
        return contact.ask(connected, registry, shard, method, args, timeout, deadline, start=False)
    reply = contact.ask_each(connected, registry, method, {shard: args}, deadline, start=False)[shard]
    if reply is Silence.LATE:
        raise contact.late(registry, timeout)
    return None if isinstance(reply, Silence) else reply


def stats(registry: str, timeout: float) -> RegistryStats | None:
    """Figures of a registry, of all its shards together; None where none runs."""
    connected = _ray.connection()
    try:
        topology = contact.topology(connected, registry, start=False)
        answers = [
            _ask_any(connected, registry, topology, shard, "stats", (), timeout) for shard in range(topology.shards)
        ]
    except NoRegistryError:
        forget_registry(connected, registry)
        return None
    shards: list[RegistryStats] = [answer for answer in answers if answer is not None]
    if not shards:
        forget_registry(connected, registry)
        return None
    return dataclasses.replace(
        shards[0],
        generation=max(each.generation for each in shards),
        uptime_s=max(each.uptime_s for each in shards),
        recovering=sum(each.recovering for each in shards) + topology.shards - len(shards),
        **{
            name: math.ceil(sum(getattr(each, name) for each in shards) / topology.replicas)
            for name in (
                *("live_leases", "live_references", "pinned", "resolved", "released", "expired"),
                *("used_up", "owner_gone", "tombstones"),
            )
        },
        **{name: sum(getattr(each, name) for each in shards) for name in ("lost", "unsettled")},
    )


def set_limits(registry: str, limits: Limits, timeout: float) -> None:
    """Give a registry other limits; it is started if it doesn't run."""
    connected, deadline = _ray.connection(), time.monotonic() + timeout
    for shard in range(contact.topology(connected, registry, start=True).shards):
        contact.ask(connected, registry, shard, "set_limits", (tuple(limits),), timeout, deadline, start=True)


def ensure(registry: str, shards: int | None, replicas: int | None, timeout: float) -> None:
    """Start a registry if it doesn't run, and let it grow if it has fewer shards; return when all is in its place.

    Raises:
        ValueError: it runs with more shards or other replicas than wanted; or with fewer shards than replicas were wanted.
        RegistryUnavailableError: no answer in time; a growth that is under way goes on by itself.
    """
    connected, deadline = _ray.connection(), time.monotonic() + timeout
    contact.forget_topology(connected, registry)
    found = book.topology(registry)
    if found is not None:
        if shards is not None and shards < found.shards:
            raise ValueError(
                f"registry {registry!r} runs with shards={found.shards}, and can't have fewer (shards={shards}) without losing "
                "leases: leave shards out, or shut it down first"
            )
        contact.fits(found, registry, None, replicas)
        if shards is not None and shards > found.shards:
            _grow(connected, registry, shards, timeout, deadline)
    topology = contact.topology(connected, registry, start=True, wishes=(shards, replicas))
    for shard in range(topology.shards):
        contact.ask(connected, registry, shard, "hello", (), timeout, deadline, start=True)


def _grow(connected: _ray.Connection, registry: str, shards: int, timeout: float, deadline: float) -> None:
    """Let a registry grow. The new shards start first; then all go by the new topology, and the old ones move what isn't theirs."""
    while True:
        found = book.topology(registry)
        if found is None or (found.shards >= shards and not found.before):
            return
        if found.shards < shards and not found.before:
            for shard in range(found.shards, shards):
                contact.ask(connected, registry, shard, "hello", (), timeout, deadline, start=True)
            book.change(registry, found._replace(shards=shards, before=found.shards))
            for shard in range(shards):
                contact.ask(connected, registry, shard, "look_again", (), timeout, deadline, start=True)
        _pause(registry, timeout, deadline)


def shutdown(registry: str, timeout: float) -> int:
    """End every lease of a registry, in order, and then the registry; how many leases that were.

    Raises:
        RegistryUnavailableError: it didn't answer in time; it still runs.
    """
    import ray

    connected, deadline = _ray.connection(), time.monotonic() + timeout
    contact.forget_topology(connected, registry)
    try:
        topology = contact.topology(connected, registry, start=False)
    except NoRegistryError:
        return 0
    except ValueError:
        topology = book.topology(registry) or Topology(0)  # it isn't the one that this process wants, but it is to end
    ended = 0
    handles = []
    for shard in range(topology.shards):
        try:
            ended += contact.ask(connected, registry, shard, "close", (origin(),), timeout, deadline, start=False)
        except NoRegistryError:
            continue
        handles.append(contact.forget_handle(connected, registry, shard))
    book.close(registry)
    forget_registry(connected, registry)
    for handle in handles:
        if handle is not None:
            ray.kill(handle, no_restart=True)
    return math.ceil(ended / topology.replicas)


def forget_registry(connected: _ray.Connection, registry: str) -> None:
    """Nobody runs under that name: look again, next time."""
    contact.forget_topology(connected, registry)
    _identities.pop((connected, registry), None)


def forget_identity(registry: str) -> None:
    """Ask for the registry's epoch and topology anew, next time."""
    forget_registry(_ray.connection(), registry)


def _remember_identity(connected: _ray.Connection, registry: str, packed: bytes) -> tuple[bytes, int]:
    """Unpack the answer to `hello` or `pin`, and keep it: the epoch's 8 bytes and the generation. Ray passes bytes quickest."""
    identity = (packed[:8], int.from_bytes(packed[8:], "big"))
    if len(_identities) > contact.MOST_CONTACTS:
        _identities.clear()
    _identities[(connected, registry)] = identity
    return identity


def _generation(packed: bytes) -> int:
    """A shard may not have heard yet that another has begun a new epoch."""
    return int.from_bytes(packed[8:], "big")


def _by_shard(topology: Topology, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Leases by the shards that may hold them."""
    found: dict[int, list[bytes]] = {}
    for lease in leases:
        for shard in topology.everywhere(lease):
            found.setdefault(shard, []).append(lease)
    return found


def _pause(registry: str, timeout: float, deadline: float) -> None:
    """Wait a little before asking again.

    Raises:
        RegistryUnavailableError: the time is over.
    """
    if time.monotonic() + contact.RETRY_PAUSE_S >= deadline:
        raise RegistryUnavailableError(
            f"registry {registry!r} could not be reached within {timeout:g} s: shards of it are down or recovering; try again, or "
            "allow a longer timeout"
        )
    time.sleep(contact.RETRY_PAUSE_S)


def check_cluster(address: LeaseAddress, here: Site) -> None:
    """Never ask for a lease of another cluster.

    Raises:
        WrongClusterError: it is one.
    """
    if address.cluster != here.connection.cluster:
        raise WrongClusterError.of(address.short_id, address.cluster, here.connection.cluster)


def _lost(address: LeaseAddress) -> LeaseLostError:
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


def _source_line() -> str:
    """`file:line in function` of the nearest caller outside this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_FOLDER):
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return "unknown"

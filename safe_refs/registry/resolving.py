"""What a lease holds, asked of the shards that hold it.

A resolve asks all holders at once, so that the references survive the crash of any one of them, and an end that one of them knows of
beats the lease that another still has. Uses, takes and renewals go to one holder after the other, so that the first decides; a load
succeeds only if every living holder grants it: at most once.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray
from ..envelope import LeaseAddress
from ..errors import LeaseError, LeaseLostError, LeaseNotFoundError, OwnerGoneError, SafeRefsError
from ..randomness import token
from . import anchoring, contact
from .contact import NoRegistryError, Silence
from .shard import DOUBTFUL, IN_TURN, RECOVERING, STALE, Yours
from .site import Site, check_cluster, forget_registry, lost, origin, pause, site
from .topology import Topology
from .wire import packed

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_COMES_S = 5.0  # how long a reader waits for a pin that its maker didn't wait for
_COMES_PAUSE_S = 0.01
_PATIENCE_S = 2.0  # how long a replica that doesn't answer is waited for once another has


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


def wanted(address: LeaseAddress, here: Site, *, slot: int | None, take: bool) -> Wanted:
    """What is wanted of a lease, as one use of it."""
    # Which line it is that ends a lease is worth looking up; which lines only read it is not.
    asker = tuple(origin(here) if take else (here.connection.job, here.node, here.pid, "by loading"))
    return Wanted(address, slot, take, asker, token(8))


def resolve(wanted: Wanted, timeout: float, here: Site, deadline: float | None = None) -> list[Ref]:
    """The references of a lease, or the one in a slot; with `take`, end the lease in the same step.

    Args:
        wanted: the lease, and how.
        timeout: seconds that it was given from the start, as errors tell.
        here: where this process stands.
        deadline: monotonic seconds, if a part of the time is over.

    Raises:
        LeaseError: it has ended, was lost, or was never there.
        OwnerGoneError: or the job that made an actor in it has just ended, which the registry needn't know yet.
        RegistryUnavailableError: no answer in time.
    """
    address, slot, take, asker, use = wanted

    def call(version: int, counts: bool, _: int) -> tuple[Any, ...]:
        use_id = use if counts else b""
        return (packed(version, address.lease, address.epoch, address.generation, slot, take, asker, use_id),)

    try:
        refs: list[Ref] = _ask_holders(
            here.connection, address, "resolve", call, timeout, in_turn=take, deadline=deadline
        )
    except _ray.UnopenedActorError:
        raise OwnerGoneError.of(address.short_id, address.registry) from None
    if not here.connection.client:  # which can't anchor what it pins
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
    try:
        replies = contact.ask_each(
            connected, registry, "resolve_many", calls, deadline, start=False, patience_s=_PATIENCE_S
        )
    except _ray.UnopenedActorError:
        return [None] * len(wanted)  # each finds out whether it is its own
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
        if whole is not None and not connected.client:
            anchoring.note_resolved(wanted[number].address, whole)
        found.append(whole)
    return found


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


def _ask_holders(
    connected: _ray.Connection,
    address: LeaseAddress,
    method: str,
    call: Callable[[int, bool, int], tuple[Any, ...]],
    timeout: float,
    *,
    in_turn: bool,
    deadline: float | None = None,
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
        deadline: monotonic seconds, if a part of the time is over.

    Raises:
        LeaseError: the lease has ended, was lost, or was never there.
        RegistryUnavailableError: no answer in time.
    """
    registry, begun = address.registry, time.monotonic()
    deadline = begun + timeout if deadline is None else deadline
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
            raise lost(address) from None
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
            raise lost(address)
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
        pause(registry, timeout, deadline)


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

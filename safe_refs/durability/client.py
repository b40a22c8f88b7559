"""Leases become durable: asked of all their holders, until each has copies of its own.

What always holds: nothing is copied in this process; who stops asking (it has died, or its time is over) leaves a lease as it was.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from .. import _ray
from ..envelope import LeaseAddress
from ..errors import (
    LeaseLostError,
    LeaseNotFoundError,
    OwnerGoneError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
)
from . import contact
from .adoption import Adopter, adopter_name
from .contact import NoRegistryError, Silence
from .copying import Unfit, Why
from .pinning import Pin
from .shard import RECOVERING, STALE
from .site import Site, check_cluster, epoch_of, lost, site
from .topology import Topology

logger = logging.getLogger("safe_refs")

# Set by who waits in another thread, when nobody waits for that any more.
given_up: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("safe_refs_given_up", default=None)
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05
_LONGEST_PAUSE_IN_VAIN_S = 1.0
_AT_ONCE = 1000  # leases in one call
_MOST_BESIDE = 100  # references of a lease that an adopter is told of by its maker
_COMES_S = 5.0  # how long a pin that its maker didn't wait for is waited for
_READS_S = 5.0
_ASKS_S = 3.0  # how often a shard hears that somebody still waits

# References that show that an adopter is done: of which shard, and with which lease.
Bells: TypeAlias = dict[Any, tuple[int, bytes]]

_adopters: dict[tuple[_ray.Connection, str, int], Any] = {}


def begin(registry: str, wanted: Pin, here: Site) -> tuple[Pin, Bells]:
    """Tell the adopters themselves what a pin is about to bring, so that they copy while it is on its way.

    Only of what this process owns: what it borrowed may have to be anchored, which can't be while it is in a call. And only if they
    run: where one doesn't, its shard starts it.

    Args:
        registry: where the pin goes to.
        wanted: the pin, with a wish.
        here: where this process stands.

    Returns:
        The pin, which says so; and what shows that they are done, for `make_durable`.
    """
    import ray

    connected, wish = here.connection, wanted.wish
    bells: Bells = {}
    told: list[int] = []
    if wish is None or connected.client or len(wanted.refs) > _MOST_BESIDE:
        return wanted, bells
    try:
        if _ray.borrowed(wanted.refs):
            return wanted, bells
        topology = contact.topology(connected, registry, start=False)
        objects = _ray.objects(wanted.refs)
        ready = not objects or len(_ray.wait(objects, len(objects), 0)) == len(objects)
        for shard in topology.holders(wanted.lease):
            adopter = _adopter(connected, registry, shard)
            bell = adopter.adopt.remote(wanted.lease, list(wanted.refs), wish.env, topology.replicas > 1, ready)
            bells[bell] = (shard, wanted.lease)
            told.append(shard)
    except (NoRegistryError, ValueError, ray.exceptions.RayError):
        logger.debug("an adopter can't be told", exc_info=True)  # its shard tells it, or the pin says what is wrong
    return wanted._replace(wish=wish._replace(told=tuple(told))), bells


def _adopter(connected: _ray.Connection, registry: str, shard: int) -> Any:
    """A shard's adopter.

    Raises:
        ValueError: it doesn't run.
    """
    found = _adopters.get((connected, registry, shard))
    if found is None:
        found = _ray.named_actor(adopter_name(registry, shard), Adopter)
        if len(_adopters) > contact.MOST_CONTACTS:
            _adopters.clear()
        _adopters[(connected, registry, shard)] = found
    return found


def make_durable(
    addresses: Iterable[LeaseAddress], timeout: float, ttl: float | None = None, begun: Bells | None = None
) -> None:
    """Have the registry hold copies of its own in place of what some leases hold now, and wait until it does.

    Args:
        addresses: the leases.
        timeout: seconds for all together.
        ttl: seconds that each is to live from then on; None for what it has.
        begun: what `begin` has begun, if there is but one lease.

    Raises:
        WrongClusterError: a lease is another cluster's.
        LeaseError: one has ended, was lost, or was never there; `OwnerGoneError` if the owner of an object is dead.
        UnsupportedReferenceError: what it holds can't be copied.
        RegistryUnavailableError: the copies don't exist in time, or could not be made.
    """
    here = site()
    by_registry: dict[str, list[LeaseAddress]] = {}
    for address in addresses:
        check_cluster(address, here)
        by_registry.setdefault(address.registry, []).append(address)
    deadline = time.monotonic() + timeout
    try:
        for registry, theirs in by_registry.items():
            for start in range(0, len(theirs), _AT_ONCE):
                some = theirs[start : start + _AT_ONCE]
                _Waiting(here.connection, registry, some, ttl, timeout, deadline, begun or {}).wait()
    except SafeRefsError as error:
        raise error.with_traceback(None) from None  # the frames below know it, and so would keep what they know


class _Waiting:
    """Somebody waits until some leases of a registry are durable.

    An adopter's bell that rings with the identity that the lease was pinned under: its shard holds the copies. Anything else (it
    failed, it died, the registry is another by now, it takes long): the shard is asked, which says that it does, or why it can't, or
    tells its adopter (again, if that was told in vain) and gives the bell. A lease is done when all that may hold it hold copies.
    """

    def __init__(
        self,
        connected: _ray.Connection,
        registry: str,
        addresses: Sequence[LeaseAddress],
        ttl: float | None,
        timeout: float,
        deadline: float,
        begun: Bells,
    ) -> None:
        self._connected = connected
        self._registry = registry
        self._ttl = ttl
        self._timeout = timeout
        self._deadline = deadline
        self._bells = dict(begun)
        self._left = {address.lease: address for address in addresses}
        self._done: dict[bytes, set[int]] = {lease: set() for lease in self._left}
        self._in_vain: set[tuple[int, bytes]] = set()  # shards whose adopters were told of a lease, and gave nothing
        self._comes_by = time.monotonic() + _COMES_S

    def wait(self) -> None:
        """Return when all are durable.

        Raises:
            SafeRefsError: as `make_durable`.
        """
        pause_s, env = _FIRST_PAUSE_S, None
        while True:
            gone = given_up.get()
            if gone is not None and gone.is_set():
                raise RegistryUnavailableError("who waited for copies waits no more")
            try:
                topology = contact.topology(self._connected, self._registry, start=False)
            except NoRegistryError:
                raise lost(next(iter(self._left.values()))) from None
            self._listen(topology)
            if not self._left:
                return
            env = env or _ray.surroundings()
            failed = bool(self._in_vain)
            replies = self._ask(topology, env)
            if not self._left:
                return
            if time.monotonic() > self._deadline:
                raise self._late(replies)
            if STALE in replies.values():
                contact.forget_topology(self._connected, self._registry)
            if failed or not self._bells:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S if not failed else _LONGEST_PAUSE_IN_VAIN_S)

    def _listen(self, topology: Topology) -> None:
        """Hear which adopters are done."""
        for bell, rung in _rung(self._bells, max(0.0, min(self._deadline - time.monotonic(), _ASKS_S))).items():
            shard, lease = self._bells.pop(bell)
            address = self._left.get(lease)
            if address is None:
                continue
            if rung and epoch_of(rung) == address.epoch:
                self._done[lease].add(shard)
                if self._done[lease].issuperset(topology.everywhere(lease)):
                    del self._left[lease]
            else:
                self._in_vain.add((shard, lease))
                _adopters.pop((self._connected, self._registry, shard), None)

    def _ask(self, topology: Topology, env: str) -> dict[int, Any]:
        """Ask the shards that are not known to hold copies yet; what they reply."""
        theirs: dict[int, list[LeaseAddress]] = {}
        for address in self._left.values():
            for shard in topology.everywhere(address.lease):
                if shard not in self._done[address.lease]:
                    theirs.setdefault(shard, []).append(address)
        calls = {}
        for shard, asked in theirs.items():
            rows = [
                (each.lease, each.epoch, each.generation, self._ttl, (shard, each.lease) in self._in_vain)
                for each in asked
            ]
            calls[shard] = (rows, env, topology.version)
        replies = contact.ask_each(
            self._connected, self._registry, "make_durable", calls, self._deadline, start=False, patience_s=_ASKS_S
        )
        if STALE in replies.values():
            return replies
        found: dict[bytes, list[Any]] = {lease: [True] * len(self._done[lease]) for lease in self._left}
        for shard, asked in theirs.items():
            reply = replies[shard]
            answers, bells = reply if isinstance(reply, tuple) else ([reply] * len(asked), [None] * len(asked))
            for address, answer, bell in zip(asked, answers, bells, strict=True):
                found[address.lease].append(answer)
                if isinstance(reply, tuple):
                    self._in_vain.discard((shard, address.lease))
                if answer is True:
                    self._done[address.lease].add(shard)
                elif bell is not None:
                    self._bells[bell] = (shard, address.lease)
        for lease, answers in found.items():
            address = self._left[lease]
            if _is_done(address, answers, comes=address.soon and time.monotonic() < self._comes_by):
                del self._left[lease]
        return replies

    def _late(self, replies: dict[int, Any]) -> RegistryUnavailableError:
        silent = sorted(shard for shard, reply in replies.items() if isinstance(reply, Silence))
        why = f"shard(s) {silent} don't answer" if silent else "the objects don't exist yet, or copying takes longer"
        return RegistryUnavailableError(
            f"{len(self._left)} lease(s) of registry {self._registry!r} are not durable after {self._timeout:g} s: {why}; "
            "allow a longer time (init(durable_timeout=...))"
        )


def _rung(bells: Iterable[Any], timeout_s: float) -> dict[Any, bytes]:
    """Wait until all of these have rung, or the time is over: of those that have, the identity of the shard that holds the copies.

    Nothing where no shard does, or where the adopter has died.
    """
    found: dict[Any, bytes] = {}
    waiting = list(bells)
    for bell in _ray.wait(waiting, len(waiting), timeout_s) if waiting else ():
        try:
            found[bell] = _ray.get(bell, _READS_S) or b""
        except Exception:
            logger.debug("an adopter has died; its shard is asked", exc_info=True)
            found[bell] = b""
    return found


def _is_done(address: LeaseAddress, answers: Sequence[Any], *, comes: bool) -> bool:
    """Whether a lease is durable, by what its holders say; False if it is not yet, or if its pin may still come."""
    for answer in answers:
        if isinstance(answer, Unfit):
            raise _error(address, answer)
        if isinstance(answer, SafeRefsError) and not isinstance(answer, (LeaseNotFoundError, LeaseLostError)):
            raise answer
    if False in answers or Silence.LATE in answers:
        return False
    if True in answers:
        if not all(answer is True for answer in answers):
            # They get the lease from the others when they are back, and copies then.
            logger.warning("lease %s is durable at some of its replicas only; the others are down", address.short_id)
        return True
    refusals = [answer for answer in answers if isinstance(answer, SafeRefsError)]
    if comes:
        return False
    if refusals and RECOVERING not in answers:
        raise refusals[0]
    if all(answer is Silence.ABSENT for answer in answers):
        raise lost(address)
    return False


def _error(address: LeaseAddress, unfit: Unfit) -> SafeRefsError:
    if unfit.why is Why.GONE:
        return OwnerGoneError.of(address.short_id, address.registry, time.time())
    if unfit.why is Why.UNSUPPORTED:
        return UnsupportedReferenceError(
            f"lease {address.short_id} can't be made durable: {unfit.reason}", kind="durable"
        )
    return RegistryUnavailableError(
        f"lease {address.short_id} could not be made durable, as its objects could not be copied: {unfit.reason}"
    )

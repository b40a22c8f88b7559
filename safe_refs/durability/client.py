"""The client's part for durable leases: asks all shards that may hold a lease for copies, until each holds copies of its own.

What always holds: this process copies nothing. If it stops asking (it died, or its deadline passed), the lease stays as it was.

Raises everywhere: `RegistryUnavailableError` if there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from .. import _settings
from .._ray import actors, environments, objects
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import RegistryUnavailableError, SafeRefsError, UnsupportedReferenceError
from ..registry.calls import NoRegistryError
from ..registry.hooks import ClientPart
from ..registry.records import Identity
from ..registry.requests import Plan
from ..registry.sessions import Session
from . import owner
from .waiting import Completions, Waiting
from .wire import WING, CopyCall, CopyMaker, CopyRequest

logger = logging.getLogger("safe_refs")

# Set by a caller that waits in another thread, when nobody waits for the copies any more.
given_up: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("safe_refs_given_up", default=None)

_AT_ONCE = 1000  # leases in one call
_MOST_BESIDE = 100  # references of a lease that its maker sends to copy owners itself
_MOST_OWNERS = 64  # handles that are kept


class Copies(ClientPart):
    """Has registries make copies.

    Args:
        session: of this process.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # By registry and shard: at most _MOST_OWNERS, then all are looked up anew. No lock: each step on it is atomic.
        self._owners: dict[tuple[str, int], CopyMaker] = {}
        self._is_closed = False

    def before_pin(self, registry: str, plan: Plan) -> None:
        """Have the copies begun while the pin is on its way, by sending the copy request to the copy owners at once.

        Only for objects that this process owns: what it borrowed may have to be anchored, which can't be while it is in a call. And
        only if the copy owners run: if one doesn't, its shard starts it.

        Raises:
            UnsupportedReferenceError: an actor would die with its creator.
        """
        if not plan.durable:
            return
        self._prepare(plan)
        if plan.borrowed:
            return  # the request comes after the pin, when the owners know who holds the objects
        request = CopyRequest(environments.surroundings(), plan.notes[WING].ttl)
        sent_to = self._send(registry, plan, request.env) if len(plan.refs) <= _MOST_BESIDE else []
        plan.extras[WING] = tuple(request._replace(sent_to=sent_to))

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """The same for several, whose requests go to their shards: the copies would often be there before the pins."""
        plans = [plan for plan in plans if plan.durable]
        env = environments.surroundings() if plans else ""
        for plan in plans:
            self._prepare(plan)
            if not plan.borrowed:
                plan.extras[WING] = tuple(CopyRequest(env, plan.notes[WING].ttl))

    def after_pin(self, registry: str, plan: Plan, held: Identity | None, deadline: Deadline) -> None:
        """Wait until the copies exist, which has a deadline of its own; errors as of `make_durable`."""
        self.after_pins(registry, [(plan, held)], deadline)

    def after_pins(self, registry: str, pins: Sequence[tuple[Plan, Identity | None]], deadline: Deadline) -> None:
        """The same for several: all at once, as a request that nobody repeats for a while is given up."""
        durable = [(plan, held) for plan, held in pins if plan.durable]
        asked: dict[LeaseAddress, float | None] = {}
        begun: Completions = {}
        for plan, held in durable:
            note = plan.notes.pop(WING, None)
            if held is None or note is None:
                return  # the pin has failed, and the lease, if there is one, is released
            address = LeaseAddress(registry, self._session.connection.cluster, *held, plan.lease)
            asked[address] = note.ttl
            begun |= note.completions
        given = next((plan.deadline for plan, _ in durable), None)
        self._wait(asked, begun, (given or _settings.durable_deadline()) if asked else deadline)

    def make_durable(self, addresses: Iterable[LeaseAddress], deadline: Deadline, ttl: float | None = None) -> None:
        """Have the registry hold copies of its own in place of what some leases hold now, and wait until it does.

        Args:
            addresses: the leases.
            deadline: for all together.
            ttl: seconds that each is to live from then on; None for the ttl that it has.

        Raises:
            WrongClusterError: a lease is another cluster's.
            LeaseError: one has ended, was lost, or was never there; `OwnerGoneError` if the owner of an object is dead.
            UnsupportedReferenceError: what it holds can't be copied.
            RegistryUnavailableError: the copies don't exist in time, or could not be made.
        """
        asked: dict[LeaseAddress, float | None] = dict.fromkeys(addresses, ttl)
        for address in asked:
            self._session.check_cluster(address)
        self._wait(asked, {}, deadline)

    def shut_down(self, registry: str, shards: int) -> None:
        """A copy owner ends when nobody has a copy any more: a process that has resolved one keeps it."""
        import ray

        for shard in range(shards):
            self._owners.pop((registry, shard), None)
            try:
                owner.find(registry, shard).retire()
            except (ValueError, RegistryUnavailableError, ray.exceptions.RayActorError):
                continue  # it doesn't run: nothing was durable there; or it ends when nobody asks for copies any more

    def close(self) -> None:
        """Nobody waits for copies any more."""
        self._is_closed = True
        self._owners.clear()

    def _prepare(self, plan: Plan) -> None:
        """Refuse what can't be copied. The lease gets its own ttl when it is durable; until then another, in case its maker dies."""
        refuse_mortals(plan.refs)
        ttl = plan.terms.ttl
        plan.notes[WING] = _Note(ttl)
        if ttl is not None:
            plan.terms = plan.terms._replace(ttl=max(ttl, _settings.current().durable_timeout_s))

    def _send(self, registry: str, plan: Plan, env: str) -> list[int]:
        """Send copy requests to the copy owners of a lease's holders; to those of which shards."""
        import ray

        sent_to: list[int] = []
        if self._session.connection.client:
            return sent_to
        completions: Completions = plan.notes[WING].completions
        try:
            holders = self._session.registry(registry).verbs(start=False).holders(plan.lease)
            waited = list(dict.fromkeys(actors.only_objects(plan.refs)))
            ready = not waited or len(objects.wait(waited, len(waited), 0)) == len(waited)
            call = CopyCall(plan.lease, env, at_home=len(holders) > 1, ready=ready)
            for shard in holders:
                completions[self._owner(registry, shard).make_copies(call, plan.refs)] = (shard, plan.lease)
                sent_to.append(shard)
        except (NoRegistryError, ValueError, RegistryUnavailableError, ray.exceptions.RayError):
            # Its shard sends it the request, or the pin says what is wrong.
            logger.debug("a copy owner can't be reached", exc_info=True)
        return sent_to

    def _owner(self, registry: str, shard: int) -> CopyMaker:
        """A shard's copy owner.

        Raises:
            ValueError: it doesn't run.
        """
        found = self._owners.get((registry, shard))
        if found is None:
            found = owner.find(registry, shard)
            if len(self._owners) >= _MOST_OWNERS:
                self._owners.clear()
            self._owners[(registry, shard)] = found
        return found

    def _wait(self, asked: dict[LeaseAddress, float | None], begun: Completions, deadline: Deadline) -> None:
        """Wait until leases are durable; see `make_durable`. For each the ttl that it then gets."""
        by_registry: dict[str, list[LeaseAddress]] = {}
        for address in asked:
            by_registry.setdefault(address.registry, []).append(address)
        try:
            for registry, theirs in by_registry.items():
                for start in range(0, len(theirs), _AT_ONCE):
                    some = {address: asked[address] for address in theirs[start : start + _AT_ONCE]}
                    Waiting(self._session.registry(registry), some, begun, deadline, self._check, self._forget).wait()
        except SafeRefsError as error:
            raise error.with_traceback(None) from None  # the frames below know it, and so would keep what they know

    def _check(self) -> None:
        """Whether somebody still waits.

        Raises:
            RegistryUnavailableError: nobody does.
        """
        gone = given_up.get()
        if gone is not None and gone.is_set():
            raise RegistryUnavailableError("the caller no longer waits for copies")
        if self._is_closed:
            raise RegistryUnavailableError(
                "Ray was shut down in this process while it waited for copies: make the payload anew after ray.init()"
            )

    def _forget(self, registry: str, shard: int) -> None:
        """A shard's copy owner did not deliver: it may have died."""
        self._owners.pop((registry, shard), None)


class _Note:
    """What is kept of a durable lease between `before_pin` and `after_pin`.

    Attributes:
        ttl: the ttl that it gets when it is durable; None for none.
        completions: of the copy requests that were sent already.
    """

    def __init__(self, ttl: float | None) -> None:
        self.ttl = ttl
        self.completions: Completions = {}


def refuse_mortals(references: Iterable[Any]) -> None:
    """Refuse actors that die with their creators.

    Raises:
        UnsupportedReferenceError: there is one.
    """
    for handle in actors.only_actors(references):
        if actors.is_mortal(handle):
            raise UnsupportedReferenceError.of(
                handle,
                f"{handle!r}, which can't be made durable, as it dies with the process that created it, and actors can't be copied",
                'create it with lifetime="detached", or pass it without durable=True',
                kind="ray.actor.ActorHandle",
            )

"""The transaction by which leases begin, for `dumps`, `dumps_many`, `pin` and `aio` alike; and what belongs into a payload's slots.

    prepare ── pin ──┬── finish     prepare: all that can fail before the pin: the owners, the payload's bytes, the scope. On first
                     │                       contact it asks the registry for its identity, and starts it if none runs
                     │              pin:     the registry holds the leases; if it has restarted, their addresses change
                     │              finish:  give the leases; inside another pickling, tie them to that
                     └── undo                end them all

What always holds: whatever can fail before the pin is done before it; whatever fails from there on ends the lease again. One lease or
several: all are held when `finish` returns, or none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import callers, envelope, terms
from ._ray import serializing, workers
from .config import Deadline
from .engine import Pickled
from .envelope import Header, LeaseAddress
from .errors import UnsupportedReferenceError
from .registry import known
from .registry.records import NO_TERMS
from .slots import Opened, Writing, lately, register, state
from .terms import Asked

if TYPE_CHECKING:
    from .registry.records import Identity
    from .registry.requests import Plan
    from .registry.sessions import Session

outside = serializing.outside  # for the functions that users call, too


def client() -> Session:
    """This process's session. The registry's rooms are imported when the first reference needs them.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    found = known.sessions.get(workers.connection())
    if found is None:
        from . import assembly

        register()  # a process that only loads hasn't yet; by it we see Ray's serialization
        found = assembly.connect()
    return found


class Prepared(NamedTuple):
    """A lease that is to begin.

    Attributes:
        plan: what is to be held.
        address: where, if the registry is still the one that this process knows.
        header: of its payload, and `payload` the bytes of that; None for a lease without one.
        writing: of the pickling, if there was one.
    """

    plan: Plan
    address: LeaseAddress
    header: Header | None
    payload: bytes
    writing: Writing | None


class Transaction:
    """Leases that begin together: `prepare` each, `pin`, `finish`; and `undo` if one of these raises.

    Args:
        asked: on what terms, and whether to wait.
        writings: of all picklings that it is for: the leases that they made inside end if this comes to nothing.
    """

    __slots__ = ("_asked", "_client", "_registry", "_writings", "deadline", "prepared")

    def __init__(self, asked: Asked, writings: Sequence[Writing] = ()) -> None:
        self._asked = asked
        self._writings = writings
        self._client = known.sessions.get(workers.connection()) or client()
        self._registry = asked.registry
        self.deadline = Deadline(time.monotonic() + asked.timeout_s, asked.timeout_s)
        self.prepared: list[Prepared] = []

    def undo(self) -> None:
        """Nothing of it is to stay held. Never raises."""
        try:
            # A call may still be on its way (a timeout, Ctrl-C). Calls of one process arrive in order, and a registry that sees the
            # release first refuses the pin.
            self._client.registry(self._registry).release_later([each.plan.lease for each in self.prepared])
            self._client.after_pins(self._registry, [(each.plan, None) for each in self.prepared], self.deadline)
        finally:
            for writing in self._writings:
                writing.discard()

    def prepare(self, refs: Sequence[Any], pickled: Pickled | None = None) -> None:
        """Prepare a lease of these references. The payload is made first, so that running out of memory here leaves nothing pinned.

        Raises:
            ValueError: they are more than a payload can name.
            UnsupportedReferenceError: Ray doesn't know the owner of one.
            RegistryUnavailableError: the registry can't be reached.
        """
        session, asked = self._client, self._asked
        if len(refs) > envelope.MOST_REFERENCES:
            raise ValueError(
                f"a lease has at most {envelope.MOST_REFERENCES} references, not {len(refs)}: make several payloads"
            )
        registry = session.registries.get(self._registry) or session.registry(self._registry)
        epoch, generation = registry.identity or registry.identify(self.deadline)
        lease = (b"" if pickled is None else pickled.writing.lease) or os.urandom(16)  # drawn with the first reference
        borrowed: list[Any] = []
        # A Ray Client doesn't know what it borrows: the shard sees what the client's server owns.
        if not session.connection.client:
            try:
                borrowed = workers.borrowed(refs)
            except ValueError as error:
                raise _ownerless(error, refs) from None
        borrower = session.address if borrowed or session.connection.client else b""
        plan = session.plan(lease, refs, asked.terms, session.origin(), borrowed, borrower, asked.durable)
        if asked.given_s is not None:
            plan.deadline = self.deadline
        address = LeaseAddress(
            self._registry, session.connection.cluster, epoch, generation, lease, soon=not asked.waits
        )
        header, payload = None, b""
        if pickled is not None:
            said: dict[str, Any] = {"durable": True} if asked.durable else {}
            if asked.terms is not NO_TERMS:
                said.update(item for item in zip(asked.terms._fields, asked.terms, strict=True) if item[1] is not None)
            size = sum(map(len, pickled.pieces))
            header = Header(
                address,
                pickled.writing.tag,
                pickled.writing.kinds,
                said,
                time.time(),
                size,
                pickled.buffers,
                signed=False,
            )
            payload = envelope.wrap(header, pickled.pieces)
            pickled.pieces.clear()
        if terms.current.get() is not None:
            terms.note(self._registry, lease)
        writing = None if pickled is None else pickled.writing
        self.prepared.append(Prepared(plan, address, header, payload, writing))

    def pin(self) -> None:
        """Have the registry hold all of it: before this returns, or soon after."""
        session, plans = self._client, [each.plan for each in self.prepared]
        timeout_s = self._asked.timeout_s
        if self._asked.given_s is None:  # to prepare takes time of its own, to start a registry too
            self.deadline = Deadline(time.monotonic() + timeout_s, timeout_s)
        if not self._asked.waits:
            for plan in plans:
                session.post(self._registry, plan, self.deadline)
            return
        if any(plan.borrowed or plan.durable for plan in plans):
            session.before_pins(self._registry, plans)
        if len(plans) == 1:
            self._acknowledged([session.sender.pin(self._registry, plans[0], self.deadline)])
        elif plans:
            self._acknowledged(session.sender.pin_many(self._registry, plans, self.deadline))

    async def pin_async(self) -> None:
        """`pin` of one lease, awaited. A thread of the session calls the wings, as they may wait."""
        plan = self.prepared[0].plan
        if self._asked.waits:
            self._use_identities([await self._client.pin_async(self._registry, plan, self.deadline)])
        else:
            await self._client.post_async(self._registry, plan, self.deadline)

    def _acknowledged(self, identities: Sequence[Identity]) -> None:
        """The registries of these identities hold the leases. Wings finish what they have begun."""
        self._use_identities(identities)
        pins = [(each.plan, identity) for each, identity in zip(self.prepared, identities, strict=True)]
        self._client.after_pins(self._registry, pins, self.deadline)

    def _use_identities(self, identities: Sequence[Identity]) -> None:
        """Put the identity that holds each lease into its address: the registry may have restarted since this process last asked."""
        for number, (each, identity) in enumerate(zip(self.prepared, identities, strict=True)):
            if identity.epoch != each.address.epoch:
                address = each.address._replace(epoch=identity.epoch, generation=identity.generation)
                self.prepared[number] = each._replace(address=address)

    def finish(self) -> list[Prepared]:
        """The leases as the registry holds them. Inside another pickling, note how to end them, in case that pickling fails."""
        if state.writing is not None:
            for each in self.prepared:
                lease = each.plan.lease
                state.writing.note(lease, partial(self._client.registry(self._registry).release_later, [lease]))
                if each.writing is not None:
                    each.writing.hand_on()
        return self.prepared


def payload_of(prepared: Prepared) -> bytes:
    """The payload of a lease that is held."""
    header = prepared.header
    assert header is not None  # noqa: S101 # it was prepared with a pickled object
    lately.add(header.tag, Opened(prepared.address, header.kinds, resolve=True))
    if header.address is prepared.address:
        return prepared.payload
    return envelope.wrap(header._replace(address=prepared.address), [envelope.find(prepared.payload).inner])


def hold(pickled: Sequence[Pickled], asked: Asked) -> list[bytes]:
    """Make the payloads of pickled objects; the registry holds their references from before this returns, unless `asked` says not."""
    transaction = None
    try:
        if any(map(vars(serializing.local).get, serializing.MARKS)):
            with serializing.put_aside():
                return hold(pickled, asked)
        transaction = Transaction(asked, [each.writing for each in pickled])
        for each in pickled:
            transaction.prepare(each.writing.refs or (), each)
        transaction.pin()
        return [payload_of(each) for each in transaction.finish()]
    except BaseException:
        if transaction is not None:
            transaction.undo()
        else:
            for each in pickled:
                each.writing.discard()
        raise


async def hold_async(pickled: Pickled, asked: Asked) -> bytes:
    """`hold` of one object, awaited."""
    try:
        transaction = Transaction(asked, [pickled.writing])
    except BaseException:
        pickled.writing.discard()
        raise
    try:
        transaction.prepare(pickled.writing.refs or (), pickled)
        await transaction.pin_async()
        return payload_of(transaction.finish()[0])
    except GeneratorExit:
        transaction.undo()  # the loop is gone, and can't be blocked any more
        raise
    except BaseException:
        # A thread does it, as it may have to look for the registry, which has perhaps just died.
        import asyncio

        try:
            undone = asyncio.get_running_loop().run_in_executor(None, transaction.undo)
        except RuntimeError:  # the loop's threads have ended
            transaction.undo()
        else:
            await asyncio.wait([undone], timeout=callers.MARGIN_S)  # it goes on, if the loop's threads are busy
        raise


def _ownerless(error: ValueError, refs: Sequence[Any]) -> Exception:
    """The error for references of which Ray doesn't know the owner of one."""
    if "owner is unknown" not in str(error):
        return error
    return UnsupportedReferenceError.of(
        workers.ownerless(refs),
        "a reference of which Ray does not know the owner",
        "it was made from a bare id (by plain pickle, say), so nothing can be held by it; pass on the reference itself, or a "
        "payload",
        kind="ray.ObjectRef",
    )

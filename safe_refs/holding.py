"""From a pickled object to a payload whose references are held, and back from a payload's header to what belongs into its slots.

What always holds: whatever can fail before the pin is done before it, and whatever fails after it ends the lease again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _ray, config, envelope, scopes
from .envelope import Header, LeaseAddress
from .errors import EnvelopeError
from .handle import SafeRef, refuse_mortals, to_pin
from .randomness import token
from .registry import late
from .registry.records import Terms
from .slots import KINDS, Writing, state

if TYPE_CHECKING:
    from .registry.adopting import Bells
    from .registry.pinning import Pin
    from .registry.site import Site

_NO_TERMS = Terms()


class Pickled(NamedTuple):
    """An object pickled, but not yet anybody's payload: the pieces, its references, and how many buffers went out of band."""

    pieces: list[bytes]
    writing: Writing
    buffers: int


class Prepared(NamedTuple):
    """A payload whose references are not held yet.

    Attributes:
        registry: the name of the one that is to hold them.
        timeout: seconds to wait for it.
        here: where this process stands.
        pin: what is to be held.
        header: of the payload.
        payload: its bytes, if the registry is still the one that this process knows.
        writing: of the pickling.
    """

    registry: str
    timeout: float
    here: Site
    pin: Pin
    header: Header
    payload: bytes
    writing: Writing


def hold(pickled: Pickled, terms: Terms, waits: bool = True, durable: bool = False) -> bytes:
    """Make the payload of a pickled object, and have the registry hold its references, if `waits`, before returning it.

    Args:
        pickled: the object.
        terms: of the lease.
        waits: whether it is held before this returns.
        durable: whether copies are; then it waits, too.
    """
    prepared = prepare(pickled, terms, soon=not waits, env=_ray.surroundings() if durable else None)
    begun: Bells | None = None
    try:
        if durable:
            wanted, begun = late.adopting.begin(prepared.registry, prepared.pin, prepared.here)
            prepared = prepared._replace(pin=wanted)
        if not waits:
            late.posting.post(prepared.registry, prepared.pin, prepared.timeout, prepared.here)
            return finished(prepared, None)
        identity = late.outbox.pin(prepared.registry, prepared.pin, prepared.timeout, prepared.here)
    except BaseException:
        discard(prepared.writing)
        raise
    return finished(prepared, identity, durable, begun)


def hold_many(pickled: Sequence[Pickled], terms: Terms, waits: bool, durable: bool) -> list[bytes]:
    """The same for several: all are held, or none."""
    done: list[Prepared] = []
    try:
        env = _ray.surroundings() if durable else None
        done += [prepare(each, terms, soon=not waits, env=env) for each in pickled]
        if not done:
            return []
        registry, timeout, here = done[0].registry, done[0].timeout, done[0].here
        identities: list[tuple[bytes, int] | None] = [None] * len(done)
        if waits:
            identities = list(late.outbox.pin_many(registry, [each.pin for each in done], timeout, here))
        else:
            for each in done:
                late.posting.post(registry, each.pin, timeout, here)
        if durable:
            addresses = [_held_by(each, identity) for each, identity in zip(done, identities, strict=True)]
            late.adopting.make_durable(addresses, config.durable_timeout_s(), terms.ttl)
        return [finished(each, identity) for each, identity in zip(done, identities, strict=True)]
    except BaseException:
        for prepared in done:
            late.releasing.release_later(prepared.registry, [prepared.pin.lease])
        for failed in pickled:
            discard(failed.writing)
        raise


def prepare(pickled: Pickled, terms: Terms, *, soon: bool, env: str | None = None) -> Prepared:
    """Make the payload first, so that running out of memory here leaves nothing pinned.

    Args:
        pickled: the object.
        terms: of the lease.
        soon: whether it is held later only.
        env: of one that is to be durable, in which surroundings the copies are to be made.
    """
    refs = pickled.writing.refs or []
    try:
        if env is not None:
            refuse_mortals(refs)
        said: dict[str, Any] = {} if env is None else {"durable": True}
        if terms != _NO_TERMS:
            said.update((name, value) for name, value in zip(Terms._fields, terms, strict=True) if value is not None)
        registry, timeout = config.registry_name(), config.timeout_s()
        here = late.site.site()
        maker = late.site.origin(here)
        epoch, generation = late.site.identity(registry, timeout, here)
        address = LeaseAddress(registry, here.connection.cluster, epoch, generation, token(16), soon)
        header = Header(
            address=address,
            tag=pickled.writing.tag,
            kinds=pickled.writing.kinds,
            terms=said,
            made_at=time.time(),
            inner_size=envelope.total_size(pickled.pieces),
            buffers=pickled.buffers,
            signed=False,
        )
        wanted = to_pin(address.lease, refs, terms, maker, env)
        payload = envelope.wrap(header, pickled.pieces)
        pickled.pieces.clear()
        scopes.note(registry, address.lease)
    except BaseException:
        discard(pickled.writing)
        raise
    return Prepared(
        registry,
        timeout,
        here,
        wanted,
        header,
        payload,
        pickled.writing,
    )


def _held_by(prepared: Prepared, identity: tuple[bytes, int] | None) -> LeaseAddress:
    """Where a lease lives, being held by the registry of that identity; None: it is not known yet which that will be."""
    address = prepared.header.address
    if identity is not None and identity[0] != address.epoch:
        # The registry has restarted since this process last heard of it: name the one that holds the lease.
        return address._replace(epoch=identity[0], generation=identity[1])
    return address


def finished(
    prepared: Prepared, identity: tuple[bytes, int] | None, durable: bool = False, begun: Bells | None = None
) -> bytes:
    """The payload, its references being held by the registry of that identity (see `_held_by`), or if `durable` copies of them.

    Of these some may have been `begun` to be made; see `adopting.begin`.
    """
    payload, address = prepared.payload, _held_by(prepared, identity)
    try:
        if durable:
            ttl = prepared.header.terms.get("ttl")
            late.adopting.make_durable([address], config.durable_timeout_s(), ttl, begun)
        if address is not prepared.header.address:
            payload = envelope.wrap(prepared.header._replace(address=address), [envelope.find(payload).inner])
        if state.writing is not None:
            for nested in [(prepared.registry, address.lease), *(prepared.writing.nested or ())]:
                state.writing.note(*nested)
    except BaseException:
        late.releasing.release_later(prepared.registry, [address.lease])
        discard(prepared.writing)
        raise
    return payload


def discard(writing: Writing) -> None:
    """A pickling came to nothing: end the leases that code called by it has made."""
    for registry, lease in writing.nested or ():
        late.releasing.release_later(registry, [lease])


def slot_values(header: Header, resolve: bool, take: bool, timeout: float | timedelta | None) -> Sequence[Any]:
    """What belongs into a payload's slots: references from the registry, or handles."""
    check_kinds(header)
    if not resolve:
        return handles(header, take)
    return late.outbox.resolve(header.address, config.timeout_s(timeout), take=take)


def slot_values_many(
    headers: Sequence[Header], resolve: bool, take: bool, timeout: float | timedelta | None
) -> Sequence[Sequence[Any]]:
    """The same for several payloads."""
    for header in headers:
        check_kinds(header)
    if not resolve:
        return [handles(header, take) for header in headers]
    if not headers:
        return []
    return late.outbox.resolve_many([header.address for header in headers], config.timeout_s(timeout), take=take)


def handles(header: Header, take: bool) -> list[SafeRef[Any]]:
    """What belongs into a payload's slots where nothing is resolved."""
    if take:
        raise ValueError("take=True needs resolve=True: handles are made without asking the registry")
    return [SafeRef[Any](header.address, number, kind) for number, kind in enumerate(header.kinds)]


def check_kinds(header: Header) -> None:
    """Refuse references that this release doesn't know.

    Raises:
        EnvelopeError: the payload holds some.
    """
    unknown = set(header.kinds) - KINDS
    if unknown:
        raise EnvelopeError(
            f"the payload holds references of kind {', '.join(sorted(unknown))!r}, which this release of safe_refs doesn't "
            "know: install the release that wrote it, or a newer one"
        )

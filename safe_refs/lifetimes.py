"""Ending, renewing and looking at leases: `release`, `renew`, `expires_in_s`, `inspect`, `scope`, `keepalive`.

What always holds: a target is read from its envelope, never by unpickling.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from . import asks, config, envelope, terms
from .envelope import LeaseAddress
from .errors import EnvelopeError
from .handle import TEXT_PREFIX, SafeRef
from .scopes import KeepAlive, Scope

_DEEPEST = 10  # lists in lists, when leases are released

Target: TypeAlias = "bytes | bytearray | memoryview | str | SafeRef[Any] | PayloadInfo"


@dataclass(frozen=True)
class PayloadInfo:
    """What a payload says of itself, read without unpickling anything and without Ray.

    Attributes:
        lease_id: id of its lease, 32 hexadecimal digits, as secret as the payload; None for a plain pickle without references.
        registry: name of the registry that holds the lease; None likewise.
        generation: which start of that registry, from 1; None likewise.
        cluster: Ray's id of the cluster, 56 hexadecimal digits; None likewise.
        terms: the terms it was made with: `ttl` in seconds, `uses`, `label`; only those that were given.
        made_at: seconds since the epoch by the maker's clock; None for a plain pickle.
        size: bytes of the payload.
        pickle_size: bytes of the pickle inside it.
        buffers: out-of-band buffers that belong to it.
        address: where its lease lives, as secret as the payload; None for a plain pickle.
        kinds: one letter for each reference: `o` is an `ObjectRef`, `a` an `ActorHandle`.
    """

    lease_id: str | None
    registry: str | None
    generation: int | None
    cluster: str | None
    terms: Mapping[str, Any]
    made_at: float | None
    size: int
    pickle_size: int
    buffers: int
    address: LeaseAddress | None = field(default=None, repr=False, compare=False)
    kinds: str = ""

    @cached_property
    def handles(self) -> tuple[SafeRef[Any], ...]:
        """One `SafeRef` for each reference, in the order of their slots."""
        if self.address is None:
            return ()
        return tuple(SafeRef(self.address, number, kind) for number, kind in enumerate(self.kinds))

    def __repr__(self) -> str:
        lease = "no lease" if self.lease_id is None else f"lease {self.lease_id[:8]}, {len(self.kinds)} reference(s)"
        return f"<PayloadInfo {lease}, {self.size} bytes>"


def inspect(payload: bytes | bytearray | memoryview) -> PayloadInfo:
    """Read a payload's envelope: no Ray, no unpickling.

    A plain pickle, as `dumps` gives for an object without references, has no lease and no handles.

    Raises:
        EnvelopeError: the payload is cut, altered, of an unknown version, or no pickle at all.
    """
    view = memoryview(payload)
    if not _has_lease(view):
        return PayloadInfo(None, None, None, None, {}, None, view.nbytes, view.nbytes, 0)
    header = envelope.find(view).header
    address = header.address
    return PayloadInfo(
        lease_id=address.lease.hex(),
        registry=address.registry,
        generation=address.generation,
        cluster=address.cluster.hex(),
        terms=header.terms,
        made_at=header.made_at,
        size=view.nbytes,
        pickle_size=header.inner_size,
        buffers=header.buffers,
        address=address,
        kinds=header.kinds,
    )


def release(target: Target | Iterable[Target], *, timeout: float | timedelta | None = None) -> int:
    """End leases. Releasing one that has ended before, or was lost, does nothing and counts 0.

    Args:
        target: a payload, a `SafeRef` or its text, a `PayloadInfo`, a lease id (32 hexadecimal digits, looked up in this process's
            registry), or an iterable of these. A payload without references has no lease, and counts 0.
        timeout: seconds to wait for the registry; default from `init` or `SAFE_REFS_TIMEOUT`.

    Returns:
        How many leases this call ended. References that were resolved from them stay good.

    Raises:
        EnvelopeError: a target is cut or altered; nothing was released.
        WrongClusterError: a target is another cluster's; nothing was released.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    addresses: dict[LeaseAddress, None] = {}
    ids: dict[bytes, None] = {}
    for each in _each(target):
        if isinstance(each, str) and not each.startswith(TEXT_PREFIX):
            ids[_lease_id(each)] = None
        else:
            address = _address(each)
            if address is not None:
                addresses[address] = None
    ended = asks.release(addresses, timeout) if addresses else 0
    return ended + asks.release_ids(list(ids), timeout) if ids else ended


def renew(
    target: bytes | bytearray | memoryview | SafeRef[Any] | str | PayloadInfo,
    ttl: float | timedelta,
    *,
    timeout: float | timedelta | None = None,
) -> None:
    """Let a lease live `ttl` seconds from now, be that longer or shorter than it had.

    Args:
        target: a payload, a `SafeRef` or its text, or a `PayloadInfo`.
        ttl: seconds, or a `timedelta`.
        timeout: seconds to wait for the registry.

    Raises:
        LeaseError: the lease has ended; the class says how.
        EnvelopeError: the target is cut, altered, or has no lease.
        WrongClusterError: it is another cluster's.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    asks.renew(address_of(target), ttl, timeout)


def expires_in_s(
    target: bytes | bytearray | memoryview | SafeRef[Any] | str | PayloadInfo,
    *,
    timeout: float | timedelta | None = None,
) -> float | None:
    """Seconds until a lease's ttl runs out, by the registry's clock; None for one without a ttl.

    Args:
        target: a payload, a `SafeRef` or its text, or a `PayloadInfo`.
        timeout: seconds to wait for the registry.

    Raises:
        LeaseError: the lease has ended; the class says how.
        EnvelopeError: the target is cut, altered, or has no lease.
        WrongClusterError: it is another cluster's.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    return asks.expires_in_s(address_of(target), timeout)


def scope(*, ttl: float | timedelta | None = None, label: str | None = None, durable: bool | None = None) -> Scope:
    """A context manager: leases that this thread or task makes inside, in whatever code it calls, are released when it closes.

    Also when it closes by an exception. Scopes nest, and asyncio tasks started inside belong to it (`async with` works, too); what a
    worker or another process makes does not. `keep` exempts a lease. A process that is killed inside can release nothing: give a
    `ttl` for that.

    Args:
        ttl: seconds to live of leases made inside without a ttl of their own.
        label: label of those made without one of their own.
        durable: default for `durable` of `dumps` and `pin` inside.

    Returns:
        The scope, with `keep(target)`.

    Raises:
        ValueError: `ttl` isn't above zero.
        RegistryUnavailableError: on closing, if the registry doesn't answer in time, unless the block raised something itself.
    """
    asked = terms.ask(ttl, None, label, None, None)
    return Scope(None if ttl is None else asked.terms.ttl, label, durable, _addresses)


def keepalive(
    target: Target | Iterable[Target],
    ttl: float | timedelta,
) -> KeepAlive:
    """A context manager that renews leases in the background for as long as the block runs and this process lives.

    If the process crashes, the leases run out after `ttl`, and what they hold goes. When the block ends they have up to `ttl` left:
    release them, or let them run out.

    Args:
        target: a payload, a `SafeRef` or its text, a `PayloadInfo`, or an iterable of these.
        ttl: seconds (or a `timedelta`) that each renewal gives; every third of it there is one.

    Returns:
        The context manager, whose `error` says how a lease has ended meanwhile.

    Raises:
        LeaseError: on entering, if a lease has ended; at the end of the block, if one has ended under way.
        EnvelopeError: a target is cut or altered.
        WrongClusterError: a target is another cluster's.
        RegistryUnavailableError: on entering: no Ray connection, or no answer in time.
    """
    return KeepAlive(_addresses(target), config.seconds(ttl, "ttl"))


def _addresses(target: Any) -> list[LeaseAddress]:
    """The leases that a target, or an iterable of them, names."""
    found = (_address(each) for each in _each(target))
    return [address for address in found if address is not None]


def _each(target: Any, depth: int = 0) -> Iterator[Any]:
    """The targets in a target, which may be an iterable of them, and these may be iterables in turn."""
    if isinstance(target, (str, SafeRef, PayloadInfo)):
        yield target
    elif _is_buffer(target):
        yield memoryview(target)
    elif isinstance(target, Iterable) and depth < _DEEPEST:
        for each in target:
            yield from _each(each, depth + 1)
    else:
        raise TypeError(
            f"a lease is named by a payload, a SafeRef, its text or a lease id, or by an iterable of these, not by "
            f"{type(target).__name__}{' nested so deep' if depth >= _DEEPEST else ''}"
        )


def _is_buffer(target: Any) -> bool:
    try:
        memoryview(target).release()
    except TypeError:
        return False
    return True


def address_of(target: Any) -> LeaseAddress:
    """The lease that a target names.

    Raises:
        EnvelopeError: the target is cut, altered, or has no lease.
        TypeError: it is nothing that names a lease.
    """
    address = _address(target)
    if address is None:
        raise EnvelopeError("a plain pickle without references has no lease")
    return address


def _address(target: Any) -> LeaseAddress | None:
    """The lease that a target names; None for a payload without one."""
    if isinstance(target, SafeRef):
        return target.address
    if isinstance(target, PayloadInfo):
        return target.address
    if isinstance(target, str):
        return SafeRef.parse(target).address
    if _is_buffer(target):
        return envelope.find(target).header.address if _has_lease(target) else None
    raise TypeError(f"a lease is named by a payload, a SafeRef or its text, not by {type(target).__name__}")


def _has_lease(payload: Any) -> bool:
    """Whether bytes are a payload with an envelope, rather than a plain pickle.

    Raises:
        EnvelopeError: they are neither.
    """
    if envelope.is_payload(payload):
        return True
    view = memoryview(payload).cast("B")
    first, last = bytes(view[:1]), bytes(view[-1:])
    # From protocol 2 on a pickle starts with PROTO; before, with any opcode. The last one is STOP.
    if first == b"\x80" or (last == b"." and first in _first_bytes_of_pickles()):
        return False
    raise EnvelopeError(
        "these bytes are neither a payload of safe_refs nor a pickle: get them again, whole and unchanged"
    )


@lru_cache
def _first_bytes_of_pickles() -> frozenset[bytes]:
    import pickletools  # rarely wanted, and takes a while to import

    return frozenset(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)


def _lease_id(text: str) -> bytes:
    if len(text) != 32 or not set(text) <= set(string.hexdigits):
        raise EnvelopeError(
            "this text is neither a SafeRef nor a lease id of 32 hexadecimal digits (short ids name no lease for good)"
        )
    return bytes.fromhex(text)

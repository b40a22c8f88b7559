"""Ending, prolonging and looking at leases, and the registry as a whole.

What always holds: a target is read from its envelope, never by unpickling; what is listed never includes anything that resolves.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from . import config, envelope
from .config import Limits
from .envelope import LeaseAddress
from .errors import EnvelopeError
from .handle import TEXT_PREFIX, SafeRef
from .registry import client
from .registry.leases import LeaseInfo, RegistryStats

Target: TypeAlias = "bytes | bytearray | memoryview | str | SafeRef[Any] | PayloadInfo"


@dataclass(frozen=True)
class PayloadInfo:
    """What a payload says of itself, read without unpickling anything and without Ray.

    Attributes:
        lease_id: id of its lease, 32 hexadecimal digits, as secret as the payload; None for a plain pickle without references.
        registry: name of the registry that holds the lease; None likewise.
        generation: which start of that registry, from 1; None likewise.
        cluster: Ray's id of the cluster, 56 hexadecimal digits; None likewise.
        handles: one `SafeRef` for each reference, in the order of their slots.
        terms: the terms it was made with: `ttl` in seconds, `uses`, `label`; only those that were given.
        made_at: seconds since the epoch by the maker's clock; None for a plain pickle.
        size: bytes of the payload.
        pickle_size: bytes of the pickle inside it.
        buffers: out-of-band buffers that belong to it.
    """

    lease_id: str | None
    registry: str | None
    generation: int | None
    cluster: str | None
    handles: tuple[SafeRef[Any], ...]
    terms: Mapping[str, Any]
    made_at: float | None
    size: int
    pickle_size: int
    buffers: int

    def __repr__(self) -> str:
        lease = "no lease" if self.lease_id is None else f"lease {self.lease_id[:8]}, {len(self.handles)} reference(s)"
        return f"<PayloadInfo {lease}, {self.size} bytes>"


def inspect(payload: bytes | bytearray | memoryview) -> PayloadInfo:
    """Read a payload's envelope: no Ray, no unpickling.

    A plain pickle, as `dumps` gives for an object without references, has no lease and no handles.

    Raises:
        EnvelopeError: the payload is cut, altered, of an unknown version, or no pickle at all.
    """
    view = memoryview(payload)
    if not _has_lease(view):
        return PayloadInfo(None, None, None, None, (), {}, None, view.nbytes, view.nbytes, 0)
    header = envelope.find(view).header
    address = header.address
    return PayloadInfo(
        lease_id=address.lease.hex(),
        registry=address.registry,
        generation=address.generation,
        cluster=address.cluster.hex(),
        handles=tuple(SafeRef(address, number, kind) for number, kind in enumerate(header.kinds)),
        terms=header.terms,
        made_at=header.made_at,
        size=view.nbytes,
        pickle_size=header.inner_size,
        buffers=header.buffers,
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
    wait = config.timeout_s(timeout)
    ended = client.release(addresses, wait) if addresses else 0
    if ids:
        ended += client.release_ids(config.registry_name(), list(ids), wait)
    return ended


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
    address = _address(target)
    if address is None:
        raise EnvelopeError("a plain pickle without references has no lease that could be renewed")
    client.renew(address, config.seconds(ttl, "ttl"), config.timeout_s(timeout))


def leases(
    *,
    label: str | None = None,
    limit: int = 1000,
    sizes: bool = True,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> list[LeaseInfo]:
    """Live leases, oldest first: who made them, where, how long ago, and what they hold.

    Args:
        label: only those with this label.
        limit: at most so many.
        sizes: look up the objects' sizes too; costs a question to each owner.
        registry: name of the registry; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for the registry.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    name = config.registry_name(registry)
    return client.leases(name, label, config.positive(limit, "limit"), sizes, config.timeout_s(timeout))


def stats(*, registry: str | None = None, timeout: float | timedelta | None = None) -> RegistryStats | None:
    """Figures of the registry since it started; None if it doesn't run.

    Args:
        registry: its name; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    return client.stats(config.registry_name(registry), config.timeout_s(timeout))


def init(
    registry: str | None = None,
    *,
    timeout: float | timedelta | None = None,
    max_leases: int | None = None,
    max_references: int | None = None,
    max_tombstones: int | None = None,
    sweep_s: float | timedelta | None = None,
) -> RegistryStats:
    """Choose the registry for this process and start it if it doesn't run. Without this, the first `dumps` does so.

    Args:
        registry: name of the registry that this process's leases go to; several may run in a cluster.
        timeout: seconds that calls wait for the registry, where they aren't told otherwise.
        max_leases: the most live leases it will hold; past it, `dumps` raises `RegistryFullError`.
        max_references: the most references in live leases together.
        max_tombstones: how many ended leases it remembers, to say how they ended.
        sweep_s: seconds between two looks at whether owners still live.

    The limits are the registry's: giving any sets them all (those not given to their defaults), on a running registry too.

    Returns:
        The registry's figures.

    Raises:
        ValueError: a limit isn't above zero.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    given: dict[str, Any] = {}
    for name, value in (
        ("max_leases", max_leases),
        ("max_references", max_references),
        ("max_tombstones", max_tombstones),
    ):
        if value is not None:
            given[name] = config.positive(value, name)
    if sweep_s is not None:
        given["sweep_s"] = config.seconds(sweep_s, "sweep_s")
    config.tell(
        registry=registry,
        timeout=None if timeout is None else config.seconds(timeout, "timeout"),
        limits=Limits(**given) if given else None,
    )
    name, wait = config.registry_name(registry), config.timeout_s()
    client.identity(name, wait)
    if given:
        client.set_limits(name, config.limits(), wait)
    figures = client.stats(name, wait)
    if figures is None:  # killed by somebody in between
        return init(registry)
    return figures


def shutdown(registry: str | None = None, *, timeout: float | timedelta | None = None) -> int:
    """Release every lease of the registry, of all jobs, and end it. References already resolved stay good.

    Args:
        registry: its name; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it.

    Returns:
        How many leases that ended; 0 if it wasn't running.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    return client.shutdown(config.registry_name(registry), config.timeout_s(timeout))


def _each(target: Any) -> Iterator[Any]:
    if isinstance(target, (bytes, bytearray, memoryview, str, SafeRef, PayloadInfo)):
        yield target
    elif isinstance(target, Iterable):
        for each in target:
            yield from _each(each)
    else:
        raise TypeError(
            f"a lease is named by a payload, a SafeRef, its text or a lease id, not by {type(target).__name__}"
        )


def _address(target: Any) -> LeaseAddress | None:
    """The lease that a target names; None for a payload without one."""
    if isinstance(target, SafeRef):
        return target.address
    if isinstance(target, PayloadInfo):
        return target.handles[0].address if target.handles else None
    if isinstance(target, str):
        return SafeRef.parse(target).address
    if isinstance(target, (bytes, bytearray, memoryview)):
        return envelope.find(target).header.address if _has_lease(target) else None
    raise TypeError(f"a lease is named by a payload, a SafeRef or its text, not by {type(target).__name__}")


def _has_lease(payload: Any) -> bool:
    """Whether bytes are a payload with an envelope, rather than a plain pickle.

    Raises:
        EnvelopeError: they are neither.
    """
    if envelope.is_payload(payload):
        return True
    head = bytes(memoryview(payload)[:2])
    # Every pickle of protocol 2 and later starts so, and pickles are all that `dumps` makes.
    if head[:1] == b"\x80" or head[:1] in (b"(", b"]", b"}", b")", b"c", b"I", b"L", b"F", b"V", b"S", b"N"):
        return False
    raise EnvelopeError(
        "these bytes are neither a payload of safe_refs nor a pickle: get them again, whole and unchanged"
    )


def _lease_id(text: str) -> bytes:
    if len(text) != 32 or not set(text) <= set(string.hexdigits):
        raise EnvelopeError(
            "this text is neither a SafeRef nor a lease id of 32 hexadecimal digits (short ids name no lease for good)"
        )
    return bytes.fromhex(text)

"""Ending and renewing leases: `release`, `renew`, `expires_in_s`, `scope`, `keepalive`.

What always holds: a target is read from its envelope, never by unpickling.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from . import asks, checks, config, envelope, terms
from .envelope import LeaseAddress
from .errors import EnvelopeError
from .handle import TEXT_PREFIX, SafeRef
from .inspecting import PayloadInfo, has_lease, is_buffer
from .kinds import kind_of
from .registry.records import LeaseInfo
from .scopes import KeepAlive, Scope

if TYPE_CHECKING:
    pass

_DEEPEST = 10  # lists in lists, when leases are released
_THE_PAYLOAD = "give the payload (the bytes that dumps returned), not what was loaded from it"

Target: TypeAlias = "bytes | bytearray | memoryview | str | SafeRef[object] | PayloadInfo"
Ended: TypeAlias = "Target | LeaseInfo"  # what `release` takes


def release(
    target: Ended | Iterable[Ended] | None = None,
    *,
    label: str | None = None,
    job: str | None = None,
    older_than: float | timedelta | None = None,
    dry_run: bool = False,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> int:
    """End leases: those of a target, or all of a registry that have this label, job and age.

    Releasing a lease that has ended before, or was lost, does nothing and counts 0.

    Args:
        target: a payload, a `SafeRef` or its text, a `PayloadInfo`, a row of `leases()`, a lease id (32 hexadecimal digits), or an
            iterable of these, but no set or dict. A payload without references has no lease, and counts 0.
        label: leases with this label, whoever made them.
        job: leases that this job made (its id, 8 hexadecimal digits).
        older_than: leases that the registry took longer ago than so many seconds (or a `timedelta`).
        dry_run: end nothing, and return how many leases would end; without a target only.
        registry: whose leases are chosen, or ids looked up; other targets name theirs. Default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for the registry; default from `init` or `SAFE_REFS_TIMEOUT`.

    Returns:
        How many leases this call ended, or would end. References that were resolved from them stay good.

    Raises:
        TypeError: neither a target nor one of `label`, `job` and `older_than` was given, or both; or something of a wrong type.
        ValueError: `job` or `older_than` can't be, or a target names another registry than `registry`; nothing was released.
        EnvelopeError, WrongClusterError: a target is cut or altered, or another cluster's; nothing was released.
        RegistryUnavailableError: no Ray connection, or no answer in time. Some of the leases may have ended.
    """
    dry_run = dry_run if dry_run is False else config.flag(dry_run, "dry_run")
    registry = None if registry is None else config.checked_name(registry)
    timeout = None if timeout is None else config.seconds(timeout, "timeout")
    if label is not None or job is not None or older_than is not None:
        if target is not None:
            raise TypeError("release takes a target, or label, job and older_than, not both: call it twice")
        return asks.release_where(asks.query(label, job, older_than=older_than), registry, timeout, dry_run=dry_run)
    if target is None:
        raise TypeError("release needs a target (a payload, say), or label=, job= or older_than=; shutdown() ends all")
    if dry_run:
        raise TypeError("dry_run goes with label, job and older_than; expires_in_s(target) says whether a lease lives")
    addresses: dict[LeaseAddress, None] = {}
    ids: dict[bytes, None] = {}
    rows: list[LeaseInfo] = []
    for each in _each(target):
        if isinstance(each, str) and not each.startswith(TEXT_PREFIX):
            ids[_lease_id(each)] = None
        elif isinstance(each, LeaseInfo):
            rows.append(each)
        elif (address := _address(each)) is not None:
            addresses[address] = None
    named = {each.registry for each in addresses}.union(row.registry for row in rows)
    if registry is not None and not named <= {registry}:
        raise ValueError(f"targets name the registries {sorted(named)}, and not {registry!r}: leave registry out")
    ended = asks.release(addresses, timeout) if addresses else 0
    ended += asks.release_rows(rows, timeout) if rows else 0
    return ended + asks.release_ids(list(ids), registry, timeout) if ids else ended


def renew(
    target: Target,
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
    target: Target,
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


def scope(
    *,
    ttl: float | timedelta | None = None,
    label: str | None = None,
    durable: bool | None = None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> Scope:
    """A context manager: leases that this thread or task makes inside, in whatever code it calls, are released when it closes.

    Also when it closes by an exception. Scopes nest, and asyncio tasks started inside belong to it (`async with` works, too); what a
    worker or another process makes does not. `keep` exempts a lease. A process that is killed inside can release nothing: give a
    `ttl` for that.

    Args:
        ttl: seconds to live of leases made inside without a ttl of their own.
        label: label of those made without one of their own.
        durable: default for `durable` of `dumps` and `pin` inside.
        registry: default for their `registry`.
        timeout: default for their `timeout`; and seconds to wait for the registry on closing.

    Returns:
        The scope, with `keep(target)`.

    Raises:
        ValueError: `ttl` isn't above zero.
        RegistryUnavailableError: on closing, if the registry doesn't answer in time, unless the block raised something itself.
    """
    return Scope(
        terms.checked(ttl, None, label)[0],
        label,
        None if durable is None else config.flag(durable, "durable"),
        _addresses,
        None if registry is None else config.checked_name(registry),
        None if timeout is None else config.seconds(timeout, "timeout"),
    )


def keepalive(
    target: Target | Iterable[Target],
    ttl: float | timedelta,
    *,
    timeout: float | timedelta | None = None,
) -> KeepAlive:
    """A context manager: leases with a ttl don't run out while the block runs and this process lives. `async with` works, too.

    A thread renews them. A renewal takes no time from a lease, and leaves its terms as they are. When the block ends, or the process
    is killed in it, a lease has what is left of its own time, or of `ttl` since the last renewal, whichever is more. A lease without
    a ttl stays without: to have it end when the process is killed, make it with one.

    Args:
        target: a payload, a `SafeRef` or its text, a `PayloadInfo`, or an iterable of these, but no set or dict.
        ttl: seconds (or a `timedelta`) that each lease has left after a renewal, at least; every third of it there is one.
        timeout: seconds that each renewal waits for the registry; default from `init` or `SAFE_REFS_TIMEOUT`.

    Returns:
        The context manager, whose `error` says how a lease has ended meanwhile.

    Raises:
        LeaseError: on entering, if a lease has ended; at the end of the block, if one has ended under way.
        EnvelopeError: a target is cut or altered.
        WrongClusterError: a target is another cluster's.
        RegistryUnavailableError: on entering: no Ray connection, or no answer in time.
    """
    limit_s = None if timeout is None else config.seconds(timeout, "timeout")
    return KeepAlive(_addresses(target), config.seconds(ttl, "ttl"), limit_s)


def _addresses(target: object) -> list[LeaseAddress]:
    """The leases that a target, or an iterable of them, names."""
    found = (_address(each) for each in _each(target))
    return [address for address in found if address is not None]


def _each(target: object, depth: int = 0) -> Iterator[Any]:
    """The targets in a target, which may be an iterable of them, and these may be iterables in turn."""
    if isinstance(target, (str, SafeRef, PayloadInfo, LeaseInfo)):
        yield target
    elif is_buffer(target):
        yield memoryview(target)
    elif isinstance(target, Iterable) and depth < _DEEPEST:
        if isinstance(target, Mapping) and any(kind_of(value) is not None for value in target.values()):
            raise TypeError(f"a {type(target).__name__} with references names no lease: {_THE_PAYLOAD}")
        checks.check_ordered(target)
        for each in target:
            yield from _each(each, depth + 1)
    else:
        raise TypeError(
            f"a lease is named by a payload, a SafeRef, its text or a lease id, or by an iterable of these, not by "
            f"{type(target).__name__}{' nested so deep' if depth >= _DEEPEST else ''}{_meant(target)}"
        )


def address_of(target: object) -> LeaseAddress:
    """The lease that a target names.

    Raises:
        EnvelopeError: the target is cut, altered, or has no lease.
        TypeError: it is nothing that names a lease.
    """
    address = _address(target)
    if address is None:
        raise EnvelopeError(
            "a plain pickle without references has no lease: put(value, payload=True) makes a payload that has one"
        )
    return address


def _address(target: object) -> LeaseAddress | None:
    """The lease that a target names; None for a payload without one."""
    if isinstance(target, SafeRef):
        return target.address
    if isinstance(target, PayloadInfo):
        return target.address
    if isinstance(target, str):
        return SafeRef.parse(target).address
    if is_buffer(target):
        return envelope.find(target).header.address if has_lease(target) else None
    raise TypeError(
        f"a lease is named by a payload, a SafeRef or its text, not by {type(target).__name__}{_meant(target, one=True)}"
    )


def _meant(target: object, *, one: bool = False) -> str:
    """What is probably meant by something that names no lease."""
    if kind_of(target) is not None:
        return f": {_THE_PAYLOAD}"
    return ": give one at a time" if one and isinstance(target, Iterable) else ""


def _lease_id(text: str) -> bytes:
    if len(text) != 32 or not set(text) <= set(string.hexdigits):
        raise EnvelopeError(
            "this text is neither a SafeRef nor a lease id of 32 hexadecimal digits (short ids name no lease for good)"
        )
    return bytes.fromhex(text)

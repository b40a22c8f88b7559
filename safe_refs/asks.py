"""What a process asks of leases that exist: resolve, release, renew, or make them durable, at whichever registry they are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from . import config, terms
from .config import Deadline
from .envelope import Header, LeaseAddress
from .errors import EnvelopeError
from .payloads import client
from .registry import known
from .slots import KINDS


def release_later(address: LeaseAddress) -> None:
    """Ask for a lease's end without waiting for it, for clearing up after a failure. Never raises."""
    try:
        here = client()
    except Exception:  # Ray is gone from this process, and with it all that it asked for
        return
    here.registry(address.registry).release_later([address.lease])


def resolve(address: LeaseAddress, timeout: float | timedelta | None, *, slot: int | None, take: bool) -> list[Any]:
    """The references of a lease, or the one in a slot; errors as of `registry.verbs.resolve`."""
    from .registry.verbs import wanted

    here = client()
    refs = here.sender.resolve(wanted(address, here, slot=slot, take=take), config.deadline(timeout))
    if take:
        terms.ended(address.registry, [address.lease])
    return refs


def resolve_many(
    addresses: Sequence[LeaseAddress], timeout: float | timedelta | None, *, take: bool
) -> list[list[Any]]:
    """The references of several leases, in one call to each shard that holds some."""
    if not addresses:
        return []
    from .registry.verbs import wanted

    here = client()
    rows = [wanted(address, here, slot=None, take=take) for address in addresses]
    found = here.sender.resolve_many(rows, config.deadline(timeout))
    for address in addresses if take else ():
        terms.ended(address.registry, [address.lease])
    return found


async def reach(settings: config.Settings) -> None:
    """See to it that this process knows its registry, so that nothing has to wait for that in an event loop."""
    import asyncio  # takes a while, and most processes never need it

    here = known.current() if known.sessions else None
    if here is None or here.registry(settings.registry).identity is None:
        deadline = Deadline(time.monotonic() + settings.timeout_s, settings.timeout_s)
        await asyncio.to_thread(lambda: client().registry(settings.registry).identify(deadline))


async def resolve_async(
    address: LeaseAddress, timeout: float | timedelta | None, *, slot: int | None, take: bool
) -> list[Any]:
    """`resolve`, awaited."""
    import asyncio

    from .registry.verbs import wanted

    here = known.current() if known.sessions else None
    if here is None:
        here = await asyncio.to_thread(client)
    refs = await here.resolve_async(wanted(address, here, slot=slot, take=take), config.deadline(timeout))
    if take:
        terms.ended(address.registry, [address.lease])
    return refs


def release(addresses: Iterable[LeaseAddress], timeout: float | timedelta | None) -> int:
    """End leases; how many that ended. Those that had ended before, or were lost, count 0.

    Raises:
        WrongClusterError: one is another cluster's; nothing was released.
    """
    here, deadline = client(), config.deadline(timeout)
    by_registry: dict[str, list[bytes]] = {}
    for address in addresses:
        if address.cluster != here.connection.cluster:
            here.check_cluster(address)
        by_registry.setdefault(address.registry, []).append(address.lease)
    count = 0
    for registry, leases in by_registry.items():
        count += here.sender.release(registry, leases, deadline)
        terms.ended(registry, leases)
    return count


def release_ids(leases: Sequence[bytes], timeout: float | timedelta | None) -> int:
    """End leases of this process's registry by their bare ids; how many that ended."""
    registry = config.registry_name()
    count = client().sender.release(registry, leases, config.deadline(timeout))
    terms.ended(registry, leases)
    return count


def renew(address: LeaseAddress, ttl: float | timedelta, timeout: float | timedelta | None) -> None:
    """Let a lease live so long from now; errors as of `registry.verbs.renew`."""
    from .registry import verbs

    seconds, here = config.ttl_s(ttl), client()
    here.check_cluster(address)
    verbs.renew(here.registry(address.registry), address, seconds, config.deadline(timeout))


def expires_in_s(address: LeaseAddress, timeout: float | timedelta | None) -> float | None:
    """Seconds until a lease's ttl runs out; None without one; errors as of `registry.verbs.expires_in_s`."""
    from .registry import verbs

    here = client()
    here.check_cluster(address)
    return verbs.expires_in_s(here.registry(address.registry), address, config.deadline(timeout))


def make_durable(addresses: Sequence[LeaseAddress], timeout: float | timedelta | None) -> None:
    """Have the registry hold copies in place of what leases hold; errors as of `durability.client.Copies`."""
    from . import assembly

    assembly.client().copies.make_durable(addresses, config.durable_deadline(timeout))


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

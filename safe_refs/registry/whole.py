"""The registry as a whole, asked by processes: what it holds, its limits and topology, its end.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from .. import _ray
from ..config import Limits
from . import book, contact
from .adoption import Adopter, adopter_name
from .contact import NoRegistryError, Silence
from .records import LeaseInfo, Query, RegistryStats
from .site import forget_registry, origin, pause
from .topology import Topology

_CLOSES_WITHIN = 0.8  # of the time that is left, so that the answer comes in time, too


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
        pause(registry, timeout, deadline)


def shutdown(registry: str, timeout: float) -> int:
    """End every lease of a registry, in order, and then the registry; how many leases that were.

    Raises:
        RegistryUnavailableError: it didn't answer in time. What did has let go of its leases, and refuses new ones until the next
            `shutdown` ends it.
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
    ended: dict[int, int] = {}
    waiting = set(range(topology.shards))
    while waiting:
        patience_s = max(0.0, deadline - time.monotonic()) * _CLOSES_WITHIN
        replies = contact.ask_each(
            connected, registry, "close", dict.fromkeys(waiting, (origin(), patience_s)), deadline, start=False
        )
        if Silence.LATE in replies.values():
            raise contact.late(registry, timeout)
        ended |= {shard: reply for shard, reply in replies.items() if isinstance(reply, int)}
        # One that is dead comes back in a moment, and what it recovers has to be let go of in order, too.
        waiting = {shard for shard, reply in replies.items() if reply is Silence.DEAD}
        if waiting:
            pause(registry, timeout, deadline)
    handles = [contact.forget_handle(connected, registry, shard) for shard in ended]
    book.close(registry)
    forget_registry(connected, registry)
    for handle in handles:
        if handle is not None:
            ray.kill(handle, no_restart=True)
    for shard in range(topology.shards):
        _retire_adopter(registry, shard)
    return math.ceil(sum(ended.values()) / topology.replicas)


def _retire_adopter(registry: str, shard: int) -> None:
    """The owner of a shard's copies ends when nobody has one any more: whoever has resolved one keeps it."""
    import ray

    try:
        adopter = _ray.named_actor(adopter_name(registry, shard), Adopter)
        adopter.retire.remote()
    except (ValueError, ray.exceptions.RayActorError):
        pass  # there is none: nothing was durable

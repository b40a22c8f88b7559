"""The registry as a whole, asked by processes: what it holds, its limits, its end.

What always holds: each lease is listed and counted once, however many shards hold it; with replicas, a dead shard is left out,
because others know what it would answer.

Raises everywhere: `RegistryUnavailableError` if there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TypeVar

from ..config import Deadline, Limits
from .calls import Call, NoRegistryError, Registry, Silence
from .records import LeaseInfo, Query, RegistryStats
from .shard import Shard
from .wire import CloseCall, ListCall

A = TypeVar("A")

_CLOSES_WITHIN = 0.8  # of the time that is left, so that the answer comes in time, too
_CLOSES_WITHIN_S = 10.0  # at most; then an owner that has not asked who holds what is taken for one that never will
# Figures that each replica counts, and that all shards count.
_OF_LEASES = (
    *("live_leases", "live_references", "pinned", "resolved", "released", "expired"),
    *("used_up", "owner_gone", "tombstones"),
)
_OF_REPLICAS = ("lost", "unanchored")


def leases(registry: Registry, query: Query, most: int | None, with_sizes: bool, timeout_s: float) -> list[LeaseInfo]:
    """Live leases, each once; none if no registry runs. Asked for a page at a time.

    Args:
        registry: whose.
        query: which of them, in which order, and how many on a page.
        most: at most so many; None for all.
        with_sizes: look up the sizes of their objects.
        timeout_s: how long to wait for each page.
    """
    found: dict[bytes, tuple[LeaseInfo, float]] = {}
    try:
        layout = registry.layout(start=False)
        for shard in range(layout.shards):
            rows, after = 0, query.after
            while True:
                limit = query.limit if most is None else min(query.limit, most - rows)
                call = Call(Shard.leases, ListCall(query._replace(after=after, limit=limit), with_sizes))
                page = _ask(registry, shard, call, _deadline(timeout_s), may_miss=layout.replicas > 1)
                if page is None:
                    break  # other shards hold its leases, too
                infos, marks, after, now = page
                rows += len(infos)
                for mark, info in zip(marks, infos, strict=True):
                    found.setdefault(mark, (info, now))
                if after is None or rows == most:
                    break
    except NoRegistryError:
        registry.forget()
        return []
    listed = list(found.values())
    if layout.shards > 1:
        listed.sort(key=lambda row: _ORDERS[query.sort](*row))
    return [info for info, _ in listed[:most]]


# Shards are asked one after the other, and leases grow older meanwhile: so they are put in order by the time of day.
_ORDERS: dict[str, Callable[[LeaseInfo, float], float]] = {
    "age": lambda info, now: now - info.age_s,
    "expires": lambda info, now: math.inf if info.expires_in_s is None else now + info.expires_in_s,
    "references": lambda info, _: -info.references,
    "bytes": lambda info, _: -(info.size_bytes or 0),
}


def stats(registry: Registry, timeout_s: float) -> RegistryStats | None:
    """Figures of a registry, of all its shards together; None if it doesn't run. Each shard is waited for so long."""
    try:
        layout = registry.layout(start=False)
        answers = [
            _ask(registry, shard, Call(Shard.stats), _deadline(timeout_s), may_miss=layout.replicas > 1)
            for shard in range(layout.shards)
        ]
    except NoRegistryError:
        registry.forget()
        return None
    shards = [answer for answer in answers if answer is not None]
    if not shards:
        registry.forget()
        return None
    return dataclasses.replace(
        shards[0],
        generation=max(each.generation for each in shards),
        uptime_s=max(each.uptime_s for each in shards),
        recovering=sum(each.recovering for each in shards) + layout.shards - len(shards),
        **{name: math.ceil(sum(getattr(each, name) for each in shards) / layout.replicas) for name in _OF_LEASES},
        **{name: sum(getattr(each, name) for each in shards) for name in _OF_REPLICAS},
    )


def set_limits(registry: Registry, limits: Limits, deadline: Deadline) -> None:
    """Give a registry other limits; it is started if it doesn't run."""
    for shard in range(registry.layout(start=True).shards):
        _ask(registry, shard, Call(Shard.set_limits, limits), deadline, start=True)


def shutdown(registry: Registry, deadline: Deadline) -> int:
    """End every lease of a registry, in order, and then the registry; how many leases that were.

    Raises:
        RegistryUnavailableError: a shard did not answer in time. Those that did have let go of their leases, and refuse new ones
            until the next `shutdown` ends them.
    """
    import ray

    here = registry.here
    registry.forget_layout()
    layout = here.directory.found(registry.name)
    if layout is None:
        return 0
    ended: dict[int, int] = {}
    waiting = set(range(layout.shards))
    while waiting:
        patience_s = min(deadline.left_s() * _CLOSES_WITHIN, _CLOSES_WITHIN_S)
        call = Call(Shard.close, CloseCall(here.origin(), patience_s))
        replies = registry.ask(dict.fromkeys(waiting, call), deadline)
        if Silence.LATE in replies.values():
            raise registry.no_answer(deadline)
        ended |= {shard: reply for shard, reply in replies.items() if isinstance(reply, int)}
        # A dead shard comes back in a moment, and has to let go in order of what it recovers, too.
        waiting = {shard for shard, reply in replies.items() if reply is Silence.DEAD}
        if waiting:
            registry.pause(deadline)
    handles = [registry.take_handle(shard) for shard in ended]
    here.directory.forget(registry.name)
    registry.forget()
    for handle in handles:
        if handle is not None:
            ray.kill(handle, no_restart=True)
    for part in here.parts:
        part.shut_down(registry.name, layout.shards)
    return math.ceil(sum(ended.values()) / layout.replicas)


def ask_one(registry: Registry, shard: int, call: Call[A], deadline: Deadline, *, start: bool = False) -> A:
    """Call one shard until it answers: again if it turns out to be dead.

    Raises:
        NoRegistryError: it doesn't run, and `start` is False.
    """
    while True:
        reply = registry.ask({shard: call}, deadline, start=start)[shard]
        if reply is Silence.LATE:
            raise registry.no_answer(deadline)
        if reply is Silence.ABSENT:
            raise NoRegistryError
        if not isinstance(reply, Silence):
            return reply
        registry.pause(deadline)


def _deadline(timeout_s: float) -> Deadline:
    return Deadline(time.monotonic() + timeout_s, timeout_s)


def _ask(
    registry: Registry, shard: int, call: Call[A], deadline: Deadline, *, start: bool = False, may_miss: bool = False
) -> A | None:
    """Call one shard until it answers. With `may_miss` once, and None if it is dead, or doesn't run."""
    if not may_miss:
        return ask_one(registry, shard, call, deadline, start=start)
    reply = registry.ask({shard: call}, deadline)[shard]
    if reply is Silence.LATE:
        raise registry.no_answer(deadline)
    return None if isinstance(reply, Silence) else reply

"""The registry as a whole, asked by processes: what it holds, its limits, its end.

What always holds: each lease is listed, ended and counted once, however many shards hold it; with replicas, a dead shard is left
out, because others know what it would answer.

Raises everywhere: `RegistryUnavailableError` if there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ..config import Deadline, Limits
from . import closing
from .calls import Call, NoRegistryError, Registry, Silence
from .records import LeaseInfo, Query, RegistryStats
from .shard import Shard
from .wire import CloseCall, ListCall, NotNow, ReleaseWhereCall

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
        layout = registry.layout(start=False, deadline=_deadline(timeout_s))
        for shard in range(layout.shards):
            rows, after = 0, query.after
            while True:
                limit = query.limit if most is None else min(query.limit, most - rows)
                call = Call(Shard.leases, ListCall(query._replace(after=after, limit=limit), with_sizes))
                page = _ask(registry, shard, call, _deadline(timeout_s), may_miss=layout.replicas > 1)
                if page is None:
                    break  # other shards hold its leases, too
                infos, after, now = page
                rows += len(infos)
                for info in infos:
                    found.setdefault(info._mark, (info, now))
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


def release_where(registry: Registry, query: Query, dry_run: bool, deadline: Deadline) -> int:
    """End the live leases that a query chooses: how many that ended; 0 if no registry runs.

    Args:
        registry: whose.
        query: which leases, and how many in one call.
        dry_run: end none, and say how many there are.
        deadline: for all of it.
    """
    marks: set[bytes] = set()
    try:
        while not _all_released(registry, ReleaseWhereCall(0, query, registry.here.origin(), dry_run), marks, deadline):
            registry.pause(deadline)
    except NoRegistryError:
        registry.forget()
    return len(marks)


def _all_released(registry: Registry, call: ReleaseWhereCall, marks: set[bytes], deadline: Deadline) -> bool:
    """Ask each shard once: whether all leases that are wanted were seen. Adds the marks of those that were."""
    layout = registry.layout(start=False, deadline=deadline)
    silent: list[Silence] = []
    # Old shards before new ones: while the registry grows, leases move to new shards, and none is to be missed.
    for shard in range(layout.shards):
        call = call._replace(version=layout.version, query=call.query._replace(after=None))
        while True:
            reply = registry.ask({shard: Call(Shard.release_where, call)}, deadline)[shard]
            if reply is Silence.LATE:
                raise registry.no_answer(deadline)
            if isinstance(reply, NotNow):  # the topology has changed
                registry.forget_layout()
                return False
            if isinstance(reply, Silence):
                silent.append(reply)
                break
            found, after = reply
            marks.update(found)
            if after is None:
                break
            call = call._replace(query=call.query._replace(after=after))
    if silent == [Silence.ABSENT] * layout.shards:
        raise NoRegistryError
    # Of each lease one holder has answered; or none will, as they don't run any more.
    return len(silent) < layout.replicas or Silence.DEAD not in silent


def stats(registry: Registry, timeout_s: float) -> RegistryStats | None:
    """Figures of a registry, of all its shards together; None if it doesn't run. Each shard is waited for so long."""
    try:
        layout = registry.layout(start=False, deadline=_deadline(timeout_s))
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
        anchoring_behind_s=max(each.anchoring_behind_s for each in shards),
        recovering=sum(each.recovering for each in shards) + layout.shards - len(shards),
        **{name: math.ceil(sum(getattr(each, name) for each in shards) / layout.replicas) for name in _OF_LEASES},
        jobs=_by_job([each.jobs for each in shards], layout.replicas),
        **{name: sum(getattr(each, name) for each in shards) for name in _OF_REPLICAS},
    )


def _by_job(shards: Iterable[Mapping[str, int]], replicas: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for each in shards:
        counts.update(each)
    return {job: math.ceil(count / replicas) for job, count in counts.items()}


def set_limits(registry: Registry, limits: Limits, deadline: Deadline) -> None:
    """Give every shard of a registry these limits of the whole."""
    for shard in range(registry.layout(start=True, deadline=deadline).shards):
        _ask(registry, shard, Call(Shard.set_limits, limits), deadline, start=True)


def shutdown(registry: Registry, deadline: Deadline, *, force: bool) -> int:
    """End every lease of a registry, in order, and then the registry; how many leases that were.

    Args:
        registry: which.
        deadline: until when to wait.
        force: also if other jobs than this one have leases there.

    Raises:
        ValueError: they have, and `force` is False; nothing was ended.
        RegistryUnavailableError: a shard did not answer in time. Then nothing has ended; or all has, or is about to: see `closing`.
    """
    import ray

    here = registry.here
    layout = here.directory.found(registry.name, deadline)
    registry.forget_layout()
    if layout is None:
        return 0
    if not force:
        _check_others(registry, deadline)
    ended: dict[int, int] = {}
    waiting = set(range(layout.shards))
    while waiting:
        _hold_off(registry, waiting, deadline)
        patience_s = min(deadline.left_s() * _CLOSES_WITHIN, _CLOSES_WITHIN_S)
        call = Call(Shard.close, CloseCall(here.origin(), patience_s))
        replies = registry.ask(dict.fromkeys(waiting, call), deadline)
        if Silence.LATE in replies.values():
            raise registry.no_answer(deadline)
        ended |= {shard: reply for shard, reply in replies.items() if isinstance(reply, int)}
        # A dead shard comes back in a moment, and has to let go in order of what it recovers, too.
        waiting = {shard for shard, reply in replies.items() if reply in (Silence.DEAD, NotNow.CLOSING)}
        if waiting:
            registry.pause(deadline)
    handles = [registry.take_handle(shard) for shard in ended]
    here.directory.forget(registry.name, deadline)
    registry.forget()
    for handle in handles:
        if handle is not None:
            ray.kill(handle, no_restart=True)
    for part in here.parts:
        part.shut_down(registry.name, layout.shards)
    return math.ceil(sum(ended.values()) / layout.replicas)


def _hold_off(registry: Registry, shards: Iterable[int], deadline: Deadline) -> None:
    """Have shards refuse new leases, all of them that run, for as long as there is time; if that fails, they take them again."""
    waiting = asked = set(shards)
    try:
        while waiting:
            replies = registry.ask(
                dict.fromkeys(waiting, Call(Shard.hold_off, min(deadline.left_s(), closing.MOST_S))), deadline
            )
            if Silence.LATE in replies.values():
                raise registry.no_answer(deadline)
            waiting = {shard for shard, reply in replies.items() if reply is Silence.DEAD}
            if waiting:
                registry.pause(deadline)
    except BaseException:
        registry.send(dict.fromkeys(asked, Call(Shard.hold_off, 0.0)))
        raise


def _check_others(registry: Registry, deadline: Deadline) -> None:
    """Refuse to end leases of other jobs.

    Raises:
        ValueError: there are some.
    """
    figures = stats(registry, deadline.left_s())
    others = {
        job: count for job, count in (figures.jobs if figures else {}).items() if job != registry.here.connection.job
    }
    if others:
        listed = ", ".join(f"{count} of job {job}" for job, count in sorted(others.items())[:5])
        raise ValueError(
            f"registry {registry.name!r} holds {sum(others.values())} lease(s) of other jobs ({listed}{', …' * (len(others) > 5)}), "
            "which shutdown would end: give force=True to end them too"
        )


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

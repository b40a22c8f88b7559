"""From any process to the registry's actors: find or start them, call one or several, wait no longer than told.

What always holds: every wait ends by its deadline; every call can be repeated safely (ids are the caller's), so that one into an
actor that turns out to be dead is made again on its successor. Handles and topologies are kept per connection to Ray and registry
name, and dropped when they turn out to be out of date.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from .. import _ray, _ray_client, config
from ..errors import RegistryUnavailableError
from . import book
from .boxes import opened
from .shard import Shard
from .topology import Topology, actor_name

RETRY_PAUSE_S = 0.1
_HURRY_PAUSE_S = 0.01
_LONGEST_WAIT_S = 1e6  # Ray counts milliseconds, and far longer waits overflow
_MARGIN_S = 0.5  # for a client's calls to be late by themselves
MOST_CONTACTS = 64  # connections of the past are forgotten beyond that

_lock = threading.Lock()
_handles: dict[tuple[_ray.Connection, str, int], Any] = {}
_topologies: dict[tuple[_ray.Connection, str], Topology] = {}


class NoRegistryError(Exception):
    """No registry, or no such shard, runs under that name, and the call was not one that starts one."""


class Silence(enum.Enum):
    """Why a shard has not answered: there is no such actor, it is dead just now, or the time was over."""

    ABSENT = 1
    DEAD = 2
    LATE = 3


def topology(
    connected: _ray.Connection,
    registry: str,
    *,
    start: bool,
    wishes: tuple[int | None, int | None] = (None, None),
) -> Topology:
    """A registry's topology, asked for on first contact.

    Args:
        connected: to which cluster.
        registry: its name.
        start: begin one where there is none.
        wishes: how many shards and replicas are wanted, before what the process was told.

    Raises:
        NoRegistryError: it doesn't run, and `start` is False.
        ValueError: this process was told to want another one.
    """
    known = _topologies.get((connected, registry))
    if known is None:
        found = book.topology(registry)
        told = config.wishes()
        shards, replicas = wishes[0] or told[0], wishes[1] or told[1]
        if found is None:
            if not start:
                raise NoRegistryError
            replicas = replicas or 1
            shards = shards or replicas
            check(shards, replicas)
            found = book.begin(registry, shards, replicas)
        fits(found, registry, shards, replicas)
        if len(_topologies) > MOST_CONTACTS:
            _topologies.clear()
        known = _topologies[(connected, registry)] = found
    return known


def check(shards: int, replicas: int) -> None:
    """Whether a registry can have so many shards and replicas.

    Raises:
        ValueError: it can't.
    """
    if replicas > shards:
        raise ValueError(
            f"{replicas} replicas need as many shards at least, not {shards}: give shards={replicas} or more"
        )


def fits(found: Topology, registry: str, shards: int | None, replicas: int | None) -> None:
    """Whether the registry that runs is one that this process wants. More shards than wanted are welcome.

    Raises:
        ValueError: it isn't.
    """
    if (replicas or found.replicas) != found.replicas or (shards or 1) > found.shards:
        raise ValueError(
            f"registry {registry!r} runs with shards={found.shards}, replicas={found.replicas}, and this process wants "
            f"shards={shards}, replicas={replicas}: leave them out to take it as it is, call init(shards=...) to let it grow, or "
            "shut it down first to have other replicas"
        )


def forget_topology(connected: _ray.Connection, registry: str) -> None:
    """Ask for the topology anew, next time."""
    _topologies.pop((connected, registry), None)


def ask(
    connected: _ray.Connection,
    registry: str,
    shard: int,
    method: str,
    args: tuple[Any, ...],
    timeout: float,
    deadline: float,
    *,
    start: bool,
) -> Any:
    """Call one shard and wait for the answer; again if it turns out to be dead.

    Raises:
        RegistryUnavailableError: no answer by the deadline.
        NoRegistryError: nobody runs under that name, and `start` is False.
    """
    import ray

    if connected.client and not _ray_client.helps():
        again = partial(ask, connected, registry, shard, method, args, timeout, deadline, start=start)
        try:
            return _ray_client.in_time(again, deadline + _MARGIN_S - time.monotonic())
        except _ray_client.LateError:
            raise late(registry, timeout) from None
    while True:
        handle = _handles.get((connected, registry, shard)) or _find(connected, registry, shard, start, deadline)
        left = deadline - time.monotonic()
        try:
            left = min(max(left, 0.001), _LONGEST_WAIT_S)
            reply = opened(_ray.get(getattr(handle, method).remote(*args), left), left)
            if reply is not None or method != "pin":
                return reply
            why = "it is being shut down"
            forget_topology(connected, registry)
        except ray.exceptions.RayTaskError:
            raise  # a mistake in the actor, which may look like any other exception
        except ray.exceptions.GetTimeoutError:
            raise late(registry, timeout) from None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            why = str(error)  # not the error itself, which would keep this call's references
        except _ray_client.broken() as error:
            raise _ray_client.unavailable(error) from None
        # Dead for good (somebody killed it, or its node is gone, or it could not start), or Ray could not reach it just now.
        forget_handle(connected, registry, shard, handle)
        if time.monotonic() + RETRY_PAUSE_S >= deadline:
            raise RegistryUnavailableError(
                f"registry {registry!r} could not be reached within {timeout:g} s: {why}"
            ) from None
        time.sleep(RETRY_PAUSE_S)


def ask_each(
    connected: _ray.Connection,
    registry: str,
    method: str,
    calls: Mapping[int, tuple[Any, ...]],
    deadline: float,
    *,
    start: bool,
    patience_s: float = _LONGEST_WAIT_S,
) -> dict[int, Any]:
    """Call several shards at once, each with its arguments, and wait for all answers; once, without trying again.

    Args:
        connected: to which cluster.
        registry: its name.
        method: what to call.
        calls: the arguments, by shard.
        deadline: when all waiting ends.
        start: start a shard that isn't there.
        patience_s: wait no longer than that for the others once one has answered.

    Returns:
        By shard the answer, or why there is none.
    """
    import ray

    if connected.client and not _ray_client.helps():
        again = partial(ask_each, connected, registry, method, calls, deadline, start=start, patience_s=patience_s)
        try:
            return _ray_client.in_time(again, deadline + _MARGIN_S - time.monotonic())
        except _ray_client.LateError:
            return dict.fromkeys(calls, Silence.LATE)
    replies: dict[int, Any] = {}
    waiting: dict[Any, int] = {}
    handles: dict[int, Any] = {}
    for shard, args in calls.items():
        try:
            handle = _handles.get((connected, registry, shard)) or _find(connected, registry, shard, start, deadline)
            waiting[getattr(handle, method).remote(*args)] = shard
            handles[shard] = handle
        except NoRegistryError:
            replies[shard] = Silence.ABSENT
        except ray.exceptions.RayActorError:
            replies[shard] = Silence.DEAD
        except _ray_client.broken() as error:
            raise _ray_client.unavailable(error) from None
    begun = time.monotonic()
    try:
        # All together is quickest, and how it nearly always goes.
        left = min(max(deadline - begun, 0.001), patience_s, _LONGEST_WAIT_S)
        answers = [opened(answer, left) for answer in _ray.get(list(waiting), left)]
        return replies | dict(zip(waiting.values(), answers, strict=True))
    except ray.exceptions.RayTaskError:
        raise
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
        until = deadline
    while waiting:
        left = min(max(until - time.monotonic(), 0.0), _LONGEST_WAIT_S)
        ready = _ray.wait(list(waiting), 1, left)
        if not ready:
            replies |= dict.fromkeys(waiting.values(), Silence.LATE)
            break
        shard = waiting.pop(ready[0])
        try:
            replies[shard] = opened(_ray.get(ready[0], max(left, 1.0)), max(left, 1.0))
            until = min(until, max(begun + patience_s, time.monotonic()))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.GetTimeoutError:
            replies[shard] = Silence.LATE
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
            forget_handle(connected, registry, shard, handles[shard])
            replies[shard] = Silence.DEAD
    return replies


def hurry(connected: _ray.Connection, registry: str, leases: Collection[bytes], until: float) -> bool:
    """Have a registry anchor what it holds and handed out of these leases; whether that is done in time."""
    while True:
        left = unsettled(connected, registry, leases, until)
        if not left:
            return left is not None
        if time.monotonic() > until:
            return False
        leases = left
        time.sleep(_HURRY_PAUSE_S)


def unsettled(connected: _ray.Connection, registry: str, leases: Collection[bytes], until: float) -> set[bytes] | None:
    """Have a registry anchor these leases soon: which are unsettled yet, at one holder at least; None if nobody answers."""
    try:
        found = topology(connected, registry, start=False)
    except (NoRegistryError, ValueError):
        return None
    calls = {shard: ([lease for lease in leases if shard in found.everywhere(lease)],) for shard in range(found.shards)}
    calls = {shard: args for shard, args in calls.items() if args[0]}
    replies = ask_each(connected, registry, "hurry", calls, until, start=False)
    answers = [reply for reply in replies.values() if isinstance(reply, list)]
    return {lease for reply in answers for lease in reply} if answers else None


def late(registry: str, timeout: float) -> RegistryUnavailableError:
    """The error for an answer that did not come in time."""
    return RegistryUnavailableError(
        f"registry {registry!r} did not answer within {timeout:g} s: it is overloaded, stopped, or its node can't be "
        "reached; try again, or allow a longer timeout"
    )


def known_handle(connected: _ray.Connection, registry: str, shard: int) -> Any:
    """A shard's handle, without waiting.

    Raises:
        ValueError: there is no such actor.
    """
    known = _handles.get((connected, registry, shard))
    return known or _ray.named_actor(actor_name(registry, shard), Shard)


def forget_handle(connected: _ray.Connection, registry: str, shard: int, handle: Any = None) -> Any:
    """Look a shard up anew, next time (unless another handle than `handle` is known by now); the handle that was known."""
    with _lock:
        known = _handles.get((connected, registry, shard))
        if handle is None or known is handle:
            _handles.pop((connected, registry, shard), None)
    return known


def _find(connected: _ray.Connection, registry: str, shard: int, start: bool, deadline: float) -> Any:
    """A shard's actor: the one that runs, or with `start` a new one. Racing processes get the same."""
    try:
        handle = _ray.named_actor(actor_name(registry, shard), Shard)
    except ValueError:
        if not start:
            raise NoRegistryError from None
        handle = _start(registry, shard, deadline)
    with _lock:
        if len(_handles) > MOST_CONTACTS:
            _handles.clear()
        return _handles.setdefault((connected, registry, shard), handle)


def _start(registry: str, shard: int, deadline: float) -> Any:
    if book.topology(registry) is None:
        # It was shut down since this process heard of it. What is started now is a new one, which others have to find.
        last = _topologies.get((_ray.connection(), registry), Topology(0))
        book.begin(registry, last.shards, last.replicas)
    args = (registry, config.limits(), shard, config.anchors())
    while True:
        try:
            return _ray.start_actor(actor_name(registry, shard), Shard, args, place=shard)
        except ValueError:
            # Another process won the race for the name, and its actor is not listed yet, or no longer.
            if time.monotonic() + RETRY_PAUSE_S >= deadline:
                raise RegistryUnavailableError(f"registry {registry!r} could not be started in time") from None
            time.sleep(RETRY_PAUSE_S)

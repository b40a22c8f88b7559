"""What outlives the registry's actors, in Ray's control store: the topology, the epoch, and which shards have started.

What always holds: the epoch changes whenever leases may have been lost, and the generation, for people, counts the epochs; no version
of a topology is used twice, not even after a shutdown and a new start; a shard that finds its own mark has held leases before; all
keys of a registry, four and one for each shard, are gone after `close`; two counts stay. Each function waits for the control service
up to a deadline, and raises `RegistryUnavailableError` then.

The control store has no transactions, except "set this key if it has no value". So each key has one writer at a time: shard 0 alone
changes the topology of a registry that runs (`change`), each shard writes its own marks, and what several processes may write at once
(`begin`, the first epoch) is set only if there is none, and then read back.

| key | value | written by |
|---|---|---|
| `topology:<registry>` | the topology; none while the registry doesn't run | whoever starts the registry; then shard 0 |
| `version:<registry>` | count of the last topology before the last shutdown | whoever shuts the registry down |
| `epoch:<registry>` | the identity that shards have which start now | the first shard; a shard that may have lost leases |
| `limits:<registry>` | what it may hold at most | whoever starts the registry; then shard 0 |
| `generation:<registry>` | the last generation | whoever writes the epoch |
| `started:<registry>:<shard>` | a mark: it has started before | that shard |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._ray import control, requests
from ..config import Deadline, Limits, with_limits
from ..registry.received import examine
from ..registry.records import Identity
from .topology import Topology

_JOINS_S = 3600.0
_RANDOM_BITS = 32  # of a version: below the count of starts


class Joined(NamedTuple):
    """What a shard that starts learns.

    Attributes:
        identity: of this start of its registry.
        topology: of its registry.
        restarted: it has held leases before, which other shards may give back to it.
        limits: of its registry.
    """

    identity: Identity
    topology: Topology
    restarted: bool
    limits: Limits


def topology(registry: str, deadline: Deadline | None = None) -> Topology | None:
    """The registry's topology; None if it isn't running."""
    found = control.kv_get(f"topology:{registry}", deadline)
    return None if found is None else Topology.from_bytes(found)


def begin(registry: str, shards: int, replicas: int, deadline: Deadline | None = None) -> Topology:
    """The topology of a registry that is to start: this one, unless another process was quicker."""
    # The count makes the version larger than all that were used before. `close` writes it, not this process, so a very slow process
    # may go by an old count. Hence the random bits.
    count = int(control.kv_get(f"version:{registry}", deadline) or 0) + 1
    version = count << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    first = Topology(version, shards, replicas)
    control.kv_put(f"topology:{registry}", first.to_bytes(), deadline, overwrite=False)
    return topology(registry, deadline) or first


def change(registry: str, new: Topology) -> bool:
    """Write the next topology of a registry that runs; False if it doesn't any more. For shard 0 alone."""
    if topology(registry) is None:
        return False
    control.kv_put(f"topology:{registry}", new.to_bytes())
    return True


def join(registry: str, shard: int, limits: Limits) -> Joined:
    """A shard starts, for the first time or again. The first one's limits are the registry's.

    It waits long: an actor whose constructor raises is not started again.
    """
    deadline = requests.soon(_JOINS_S)
    mark = f"started:{registry}:{shard}"
    restarted = control.kv_get(mark, deadline) is not None
    control.kv_put(mark, b"1", deadline)
    current = control.kv_get(f"epoch:{registry}", deadline)
    if current is None:
        drawn = _draw(registry, deadline)
        control.kv_put(f"epoch:{registry}", drawn.to_bytes(), deadline, overwrite=False)
        current = control.kv_get(f"epoch:{registry}", deadline) or drawn.to_bytes()
    identity = Identity.from_bytes(current)
    found = topology(registry, deadline) or Topology(0, shards=shard + 1)
    limits = begin_limits(registry, limits, deadline)
    if restarted and found.replicas == 1:
        # No other shard holds what this one held.
        return Joined(new_epoch(registry, deadline), found, False, limits)
    return Joined(identity, found, restarted, limits)


def begin_limits(registry: str, limits: Limits, deadline: Deadline | None = None) -> Limits:
    """The limits of a registry that is to start: these, unless another process, or a shard, was quicker."""
    control.kv_put(f"limits:{registry}", limits.to_bytes(), deadline, overwrite=False)
    return Limits.from_bytes(control.kv_get(f"limits:{registry}", deadline) or limits.to_bytes())


def change_limits(registry: str, changes: Mapping[str, Any]) -> tuple[Limits, Limits] | None:
    """Change limits of a registry that runs: all its limits before and then; None if it doesn't run any more. For shard 0 alone.

    Raises:
        ValueError: there is no such limit, or it can't have that value.
        TypeError: likewise.
    """
    found = control.kv_get(f"limits:{registry}")
    if found is None:
        return None
    before = Limits.from_bytes(found)
    now = with_limits(before, changes)
    examine("limits", Limits, now)
    control.kv_put(f"limits:{registry}", now.to_bytes())
    return before, now


def identity(registry: str, deadline: Deadline | None = None) -> Identity | None:
    """The registry's identity; None if it isn't running."""
    found = control.kv_get(f"epoch:{registry}", deadline)
    return None if found is None else Identity.from_bytes(found)


def new_epoch(registry: str, deadline: Deadline | None = None) -> Identity:
    """Leases may have been lost: another epoch, and one generation more."""
    drawn = _draw(registry, deadline)
    control.kv_put(f"epoch:{registry}", drawn.to_bytes(), deadline)
    return drawn


def _draw(registry: str, deadline: Deadline | None) -> Identity:
    return Identity(os.urandom(8), control.count_up(f"generation:{registry}", deadline))


def close(registry: str, deadline: Deadline | None = None) -> None:
    """Forget a registry that has been shut down."""
    last = topology(registry, deadline)
    if last is None:
        return
    # First the count, so that whoever starts the registry anew goes on from there.
    control.kv_put(f"version:{registry}", str(last.version >> _RANDOM_BITS).encode(), deadline)
    control.kv_delete(f"topology:{registry}", deadline)
    control.kv_delete(f"epoch:{registry}", deadline)
    control.kv_delete(f"limits:{registry}", deadline)
    for shard in range(last.shards):
        control.kv_delete(f"started:{registry}:{shard}", deadline)

"""What outlives the registry's actors, in Ray's control store: the topology, the epoch, and which shards have started.

What always holds: the epoch changes whenever leases may have been lost, and the generation, for people, counts the epochs; no version
of a topology is used twice, not even after a shutdown and a new start; a shard that finds its own mark has held leases before; all
keys of a registry, three and one for each shard, are gone after `close`; two counts stay.

The control store has no transactions, except "set this key if it has no value". So each key has one writer at a time: shard 0 alone
changes the topology of a registry that runs (`change`), each shard writes its own marks, and what several processes may write at once
(`begin`, the first epoch) is set only if there is none, and then read back.

| key | value | written by |
|---|---|---|
| `topology:<registry>` | the topology; none while the registry doesn't run | whoever starts the registry; then shard 0 |
| `version:<registry>` | count of the last topology before the last shutdown | whoever shuts the registry down |
| `epoch:<registry>` | the identity that shards have which start now | the first shard; a shard that may have lost leases |
| `generation:<registry>` | the last generation | whoever writes the epoch |
| `started:<registry>:<shard>` | a mark: it has started before | that shard |
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .._ray import cluster
from ..registry.records import Identity
from .topology import Topology

_RANDOM_BITS = 32  # of a version: below the count of starts


class Joined(NamedTuple):
    """What a shard that starts learns.

    Attributes:
        identity: of this start of its registry.
        topology: of its registry.
        restarted: it has held leases before, which other shards may give back to it.
    """

    identity: Identity
    topology: Topology
    restarted: bool


def topology(registry: str) -> Topology | None:
    """The registry's topology; None if it isn't running."""
    found = cluster.kv_get(f"topology:{registry}")
    return None if found is None else Topology.from_bytes(found)


def begin(registry: str, shards: int, replicas: int) -> Topology:
    """The topology of a registry that is to start: this one, unless another process was quicker."""
    # The count makes the version larger than all that were used before. `close` writes it, not this process, so a very slow process
    # may go by an old count. Hence the random bits.
    count = int(cluster.kv_get(f"version:{registry}") or 0) + 1
    version = count << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    first = Topology(version, shards, replicas)
    cluster.kv_put(f"topology:{registry}", first.to_bytes(), overwrite=False)
    return topology(registry) or first


def change(registry: str, new: Topology) -> bool:
    """Write the next topology of a registry that runs; False if it doesn't any more. For shard 0 alone."""
    if topology(registry) is None:
        return False
    cluster.kv_put(f"topology:{registry}", new.to_bytes())
    return True


def join(registry: str, shard: int) -> Joined:
    """A shard starts, for the first time or again."""
    mark = f"started:{registry}:{shard}"
    restarted = cluster.kv_get(mark) is not None
    cluster.kv_put(mark, b"1")
    current = cluster.kv_get(f"epoch:{registry}")
    if current is None:
        drawn = _draw(registry)
        cluster.kv_put(f"epoch:{registry}", drawn.to_bytes(), overwrite=False)
        current = cluster.kv_get(f"epoch:{registry}") or drawn.to_bytes()
    identity = Identity.from_bytes(current)
    found = topology(registry) or Topology(0, shards=shard + 1)
    if restarted and found.replicas == 1:
        # No other shard holds what this one held.
        return Joined(new_epoch(registry), found, False)
    return Joined(identity, found, restarted)


def new_epoch(registry: str) -> Identity:
    """Leases may have been lost: another epoch, and one generation more."""
    drawn = _draw(registry)
    cluster.kv_put(f"epoch:{registry}", drawn.to_bytes())
    return drawn


def _draw(registry: str) -> Identity:
    return Identity(os.urandom(8), cluster.count_up(f"generation:{registry}"))


def close(registry: str) -> None:
    """Forget a registry that has been shut down."""
    last = topology(registry)
    if last is None:
        return
    # First the count, so that whoever starts the registry anew goes on from there.
    cluster.kv_put(f"version:{registry}", str(last.version >> _RANDOM_BITS).encode())
    cluster.kv_delete(f"topology:{registry}")
    cluster.kv_delete(f"epoch:{registry}")
    for shard in range(last.shards):
        cluster.kv_delete(f"started:{registry}:{shard}")

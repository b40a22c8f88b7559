"""`init(shards=…)` on a registry that runs: how a process lets it grow, and waits until all leases are in their places.

```
process                       shard 0                          every old shard            every new shard
 starts the new shards  ────────────────────────────────────────────────────────────────▶ runs, empty
 grow(5)  ────────────────────▶ writes the next topology,
                                which says "was 3 before"
 grow(5): UNDER_WAY ◀───────── looks, and tells all ──────────▶ looks
                                                                gives records ──────────▶ receives them
                                has_moved ◀──────────────────── lets go of what moved
                                all have: writes the next topology,
                                which says nothing of before
 grow(5): DONE ◀──────────────
```

What always holds: shard 0 alone decides, so one growth is under way at a time and each topology has a version of its own; a process
that asks for a growth while another is under way waits for its turn; a growth that has begun goes on without the process that asked.
"""

from __future__ import annotations

from .. import config
from ..config import Deadline
from ..registry.calls import Call, NoRegistryError, Registry
from ..registry.shard import Shard
from ..registry.whole import ask_one
from . import control_store
from .directory import begun, fits
from .part import Growth, Replication


def ensure(registry: Registry, shards: int | None, replicas: int | None, deadline: Deadline) -> None:
    """Start a registry if it doesn't run, and let it grow if it has fewer shards; return when all is in its place.

    Raises:
        ValueError: it runs with more shards or other replicas than wanted; or with fewer shards than replicas were wanted.
        RegistryUnavailableError: no answer in time; a growth that is under way goes on by itself.
    """
    registry.forget_layout()
    found = control_store.topology(registry.name)
    if found is not None:
        if shards is not None and shards < found.shards:
            raise ValueError(
                f"registry {registry.name!r} runs with shards={found.shards}, and can't have fewer (shards={shards}) without losing "
                "leases: leave shards out, or shut it down first"
            )
        fits(found, registry.name, None, replicas)
        if shards is not None and shards > found.shards:
            _grow(registry, found.shards, shards, deadline)
    given = config.wanted()
    topology = begun(control_store.topology(registry.name), registry.name, shards or given[0], replicas or given[1])
    registry.use_layout(topology)
    for shard in range(topology.shards):
        ask_one(registry, shard, Call(Shard.hello), deadline, start=True)


def _grow(registry: Registry, running: int, shards: int, deadline: Deadline) -> None:
    # Whoever goes by the new topology asks the new shards, so they run before there is one.
    for shard in range(running, shards):
        _start(registry, shard, deadline)
    while ask_one(registry, 0, Call(Replication.grow, shards), deadline, start=True) is not Growth.DONE:
        registry.pause(deadline)


def _start(registry: Registry, shard: int, deadline: Deadline) -> None:
    """Start a shard that isn't in the topology yet."""
    while True:
        registry.forget_layout()
        try:
            ask_one(registry, shard, Call(Shard.hello), deadline, start=True)
            return
        except NoRegistryError:
            registry.pause(deadline)  # another thread has just looked the layout up, in which there is no such shard

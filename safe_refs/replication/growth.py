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

from collections.abc import Mapping
from typing import Any

from .._settings import Settings
from ..config import NO_LIMIT, Deadline
from ..registry.calls import Call, NoRegistryError, Registry
from ..registry.shard import Shard
from ..registry.whole import ask_one, set_limits
from . import control_store
from .directory import begun, fits
from .part import Growth, Replication


def ensure(registry: Registry, shards: int | None, wishes: Settings, deadline: Deadline) -> None:
    """Start a registry if it doesn't run, and let it grow if it has fewer shards than wished; return when all is in its place.

    Args:
        registry: which.
        shards: how many the caller of `init` says; more than it has lets it grow, fewer are refused.
        wishes: the settings that hold here, those of that `init` among them.
        deadline: until when to wait.

    Raises:
        ValueError: it runs with more shards or other replicas than wished; or with fewer shards than replicas were wished.
        RegistryUnavailableError: no answer in time; a growth that is under way goes on by itself.
    """
    found = control_store.topology(registry.name, deadline)
    registry.forget_layout()
    if found is not None:
        fits(found, registry.name, shards, wishes.replicas)
        if (wishes.shards or 1) > found.shards:
            _grow(registry, found.shards, wishes.shards or 1, deadline)
    topology = control_store.topology(registry.name, deadline)
    if topology is None:
        topology = begun(registry.name, wishes.shards, wishes.replicas, deadline)
        control_store.begin_limits(registry.name, wishes.limits, deadline)
    fits(topology, registry.name, None, wishes.replicas)  # another process may have started it meanwhile
    registry.use_layout(topology)
    for shard in range(topology.shards):
        ask_one(registry, shard, Call(Shard.hello), deadline, start=True)


def change_limits(registry: Registry, changes: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
    """Change limits of a registry that runs: the first shard decides, and the others are told what holds then.

    Returns:
        What these limits were before.

    Raises:
        RegistryUnavailableError: no answer in time; some shards may go by the new limits, and the others will when they restart.
    """
    while True:
        limits = ask_one(registry, 0, Call(Replication.change_limits, dict(changes)), deadline, start=True)
        if isinstance(limits, tuple):
            before, now = limits
            set_limits(registry, now, deadline)
            return {name: NO_LIMIT if (value := getattr(before, name)) is None else value for name in changes}
        registry.pause(deadline)  # the control service does not answer just now, or the registry is being shut down


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

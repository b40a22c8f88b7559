"""How many shards a registry has, as a process finds out, and whether that is what the process asks for.

A process looks on first contact with a registry, and again when a shard says that the process goes by an old topology.
"""

from __future__ import annotations

from .. import config
from . import control_store
from .topology import Topology

_MOST_REGISTRIES = 64


class TopologyDirectory:
    """Finds topologies in the control store; a `Directory` (see `protocols`)."""

    def __init__(self) -> None:
        # By registry, what it had when it was found last: at most _MOST_REGISTRIES, then the oldest is forgotten. Several threads
        # may set one at once; each value is good by itself.
        self._last: dict[str, Topology] = {}

    def find(self, registry: str, *, start: bool) -> Topology | None:
        """See `Directory`, as for all below. A registry that starts is as this process asks for, else as it was before."""
        shards, replicas = config.wanted()
        found = self.found(registry)
        if found is None:
            if not start:
                return None
            last = self._last.get(registry)
            if last is not None and shards is None and replicas is None:
                shards, replicas = last.shards, last.replicas
        found = begun(found, registry, shards, replicas)
        if len(self._last) >= _MOST_REGISTRIES and registry not in self._last:
            self._last.pop(next(iter(self._last)), None)
        self._last[registry] = found
        return found

    def found(self, registry: str) -> Topology | None:
        """What the control store says."""
        return control_store.topology(registry)

    def forget(self, registry: str) -> None:
        """It is gone from the control store; this process is not to start it as it was."""
        self._last.pop(registry, None)
        control_store.close(registry)


def begun(found: Topology | None, registry: str, shards: int | None, replicas: int | None) -> Topology:
    """A registry's topology, if it is one that is wanted; begun if there is none.

    Args:
        found: what the registry has; None if it doesn't run.
        registry: its name.
        shards: how many are wanted; None for as many as it has, or as replicas.
        replicas: how many are wanted; None for as many as it has, or one.

    Raises:
        ValueError: it has others, or there can't be any that are wanted.
    """
    if found is None:
        wanted_replicas = replicas or 1
        wanted_shards = shards or wanted_replicas
        config.check_topology(wanted_shards, wanted_replicas)
        found = control_store.begin(registry, wanted_shards, wanted_replicas)
    fits(found, registry, shards, replicas)
    return found


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

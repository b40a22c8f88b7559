"""How many shards a registry has, as a process finds out.

A process looks on first contact with a registry, and again when a shard says that the process goes by an old topology.

What always holds: what a process wishes decides how a registry starts. One that runs is taken as it is; only `init` compares it with
what was wished (`fits`).
"""

from __future__ import annotations

from .. import _settings, config
from ..config import Deadline
from . import control_store
from .topology import Topology

_MOST_REGISTRIES = 64


class TopologyDirectory:
    """Finds topologies in the control store; a `Directory` (see `protocols`)."""

    def __init__(self) -> None:
        # By registry, what it had when it was found last: at most _MOST_REGISTRIES, then the oldest is forgotten. Several threads
        # may set one at once; each value is good by itself.
        self._last: dict[str, Topology] = {}

    def find(self, registry: str, *, start: bool, deadline: Deadline | None = None) -> Topology | None:
        """See `Directory`, as for all below. A registry that starts is as this process asks for, else as it was before."""
        found = self.found(registry, deadline)
        if found is None:
            if not start:
                return None
            wishes = _settings.current()
            shards, replicas = wishes.shards, wishes.replicas
            last = self._last.get(registry)
            if last is not None and shards is None and replicas is None:
                shards, replicas = last.shards, last.replicas
            found = begun(registry, shards, replicas, deadline)
        if len(self._last) >= _MOST_REGISTRIES and registry not in self._last:
            self._last.pop(next(iter(self._last)), None)
        self._last[registry] = found
        return found

    def found(self, registry: str, deadline: Deadline | None = None) -> Topology | None:
        """What the control store says."""
        return control_store.topology(registry, deadline)

    def forget(self, registry: str, deadline: Deadline | None = None) -> None:
        """It is gone from the control store; this process is not to start it as it was."""
        self._last.pop(registry, None)
        control_store.close(registry, deadline)


def begun(registry: str, shards: int | None, replicas: int | None, deadline: Deadline | None = None) -> Topology:
    """The topology of a registry that is to start.

    Args:
        registry: its name.
        shards: how many are wished; None for as many as replicas.
        replicas: how many are wished; None for one.
        deadline: until when to wait for Ray's control service.

    Raises:
        RegistryUnavailableError: that did not answer.
        ValueError: there can't be so many.
    """
    wanted_shards = shards or replicas or 1
    config.check_topology(wanted_shards, replicas or 1)
    return control_store.begin(registry, wanted_shards, replicas or 1, deadline)


def fits(found: Topology, registry: str, shards: int | None, replicas: int | None) -> None:
    """Whether a registry that runs is, or can become, what is wished.

    Raises:
        ValueError: it isn't, and can't.
    """
    if shards is not None and shards < found.shards:
        raise ValueError(
            f"registry {registry!r} runs with shards={found.shards}, and can't have fewer (shards={shards}) without losing leases: "
            "leave shards out, or shut the registry down first"
        )
    if replicas is not None and replicas != found.replicas:
        raise ValueError(
            f"registry {registry!r} runs with replicas={found.replicas}, and can't change that to replicas={replicas}: leave "
            "replicas out to take it as it is, use another name, or shut the registry down first"
        )

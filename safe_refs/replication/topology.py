"""How many shards a registry has, how many of them hold each lease, and which. Pure.

A lease lives on the `replicas` shards that rendezvous hashing of its id names: every process that knows the topology finds them by
itself, and a registry that grows moves only the leases that a new shard takes over.

What always holds: `holders` names distinct shards, the first of them being the one that decides (about uses, takes and renewals);
while a registry grows, `everywhere` names all shards that may hold a lease, the old ones first. A version belongs to one topology
only: shard 0 makes all topologies of a registry that runs, one after the other, by `grown` and `completed`.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple


class Topology(NamedTuple):
    """One state of a registry's topology.

    Attributes:
        version: counts up with every change, and goes on counting when the registry is shut down and started anew.
        shards: how many actors the registry has.
        replicas: how many of them hold each lease.
        before: how many shards there were before a growth that is still under way; 0 where none is.
    """

    version: int
    shards: int = 1
    replicas: int = 1
    before: int = 0

    def holders(self, lease: bytes) -> tuple[int, ...]:
        """The shards that are to hold `lease`, the deciding one first."""
        return _highest(lease, self.shards, self.replicas)

    def everywhere(self, lease: bytes) -> tuple[int, ...]:
        """The shards that may hold `lease` now: its holders, and while the registry grows also those of before, which come first."""
        if not self.before:
            return self.holders(lease)
        old = _highest(lease, self.before, self.replicas)
        return (*old, *(shard for shard in self.holders(lease) if shard not in old))

    def to_bytes(self) -> bytes:
        """For Ray's key-value store."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Topology:
        """What `to_bytes` gave."""
        return cls(**json.loads(data))


def grown(topology: Topology, shards: int) -> Topology | None:
    """The topology after this one, with so many shards; None if there are as many already, or a growth is still under way.

    The new shards have to run before anybody goes by it, as they are asked from then on.
    """
    if topology.before or shards <= topology.shards:
        return None
    return topology._replace(version=topology.version + 1, shards=shards, before=topology.shards)


def completed(topology: Topology) -> Topology:
    """The topology after this one: every lease has moved to its new holders."""
    return topology._replace(version=topology.version + 1, before=0)


def _highest(lease: bytes, shards: int, replicas: int) -> tuple[int, ...]:
    if shards == 1:
        return (0,)
    ranked = sorted(range(shards), key=lambda shard: _weight(lease, shard), reverse=True)
    return tuple(ranked[:replicas])


def _weight(lease: bytes, shard: int) -> bytes:
    return hashlib.blake2b(lease + shard.to_bytes(4, "big"), digest_size=8).digest()

"""What outlives the registry's actors: its topology, its epoch, and which shards have started. Kept in Ray's control store.

What always holds: the epoch changes whenever leases may have been lost, and the generation, for people, counts with it; a topology's
version is never used again, also not by a registry that was shut down and started anew; a shard that finds its own mark has held
leases before.

The control store has no transactions beyond "set if there is none". What two processes may do at once is either that, or such that
both write the same.
"""

from __future__ import annotations

import os

from .. import _ray
from .topology import Topology


def topology(registry: str) -> Topology | None:
    """The registry's topology; None if it isn't running, or being shut down."""
    found = _ray.kv_get(f"topology:{registry}")
    return None if found is None else Topology.from_bytes(found)


def begin(registry: str, shards: int, replicas: int) -> Topology:
    """The topology of a registry that is to start: this one, unless another process was quicker."""
    first = Topology(_ray.count_up(f"version:{registry}"), shards, replicas)
    _ray.kv_put(f"topology:{registry}", first.to_bytes(), overwrite=False)
    return topology(registry) or first


def change(registry: str, new: Topology) -> Topology:
    """Write a new topology, with a version of its own."""
    new = new._replace(version=_ray.count_up(f"version:{registry}"))
    _ray.kv_put(f"topology:{registry}", new.to_bytes())
    return new


def join(registry: str, shard: int) -> tuple[bytes, int, bool]:
    """A shard starts: the epoch and generation of its registry, and whether it is a restart."""
    mark = f"started:{registry}:{shard}"
    restarted = _ray.kv_get(mark) is not None
    _ray.kv_put(mark, b"1")
    current = _ray.kv_get(f"epoch:{registry}")
    if current is None:
        _ray.kv_put(f"epoch:{registry}", _draw(registry), overwrite=False)
        current = _ray.kv_get(f"epoch:{registry}") or _draw(registry)
    return current[:8], int.from_bytes(current[8:], "big"), restarted


def new_epoch(registry: str) -> tuple[bytes, int]:
    """Leases may have been lost: another epoch, and one generation more."""
    drawn = _draw(registry)
    _ray.kv_put(f"epoch:{registry}", drawn)
    return drawn[:8], int.from_bytes(drawn[8:], "big")


def _draw(registry: str) -> bytes:
    return os.urandom(8) + _ray.count_up(f"generation:{registry}").to_bytes(8, "big")


def note_moved(registry: str, growing: Topology, shard: int) -> bool:
    """A shard has moved away what belongs to others; whether it was the last that had to."""
    _ray.kv_put(f"moved:{registry}:{growing.version}:{shard}", b"1")
    return all(_ray.kv_get(f"moved:{registry}:{growing.version}:{each}") for each in range(growing.before))


def close(registry: str) -> Topology | None:
    """Forget a registry, which is being shut down; what its topology was."""
    last = topology(registry)
    if last is not None:
        _ray.kv_delete(f"topology:{registry}")
        _ray.kv_delete(f"epoch:{registry}")
        for shard in range(last.shards):
            _ray.kv_delete(f"started:{registry}:{shard}")
    return last

"""A page of the live leases of a shard, with the sizes of their objects and the processes that they depend on."""

from __future__ import annotations

import dataclasses
import time
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from .hooks import Parts
from .leases import LeaseTable
from .listing import page
from .owners import Owners
from .records import LeaseInfo
from .wire import ListCall

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]


class Shard(Protocol):
    """What this needs of `shard.Shard`, which says what each is."""

    table: LeaseTable[Ref]
    parts: Parts
    lock: Lock
    owners: Owners


def listed(shard: Shard, call: ListCall) -> tuple[list[LeaseInfo], tuple[float, int] | None, float]:
    """One page of live leases, where the next page begins, and when that was, since the epoch."""
    sizes: dict[Ref, int] | None = None
    if call.query.sort == "bytes" or call.query.min_bytes is not None:
        with shard.lock:  # to choose by size one has to know them all
            held = list(set(shard.table.items()))
        sizes = shard.owners.weigh(held)
        held.clear()
    with shard.lock:
        found, now = page(shard.table, call.query, sizes), time.time()
        infos = list(found.infos)
        for row, lease in enumerate(found.leases):
            if shard.parts.depends_on(lease):
                infos[row] = dataclasses.replace(infos[row], depends_on=shard.table.live[lease].giver.process)
    if sizes is None and call.with_sizes:
        sizes = shard.owners.weigh(list({ref for refs in found.items for ref in refs}))
        weights = [sum(sizes.get(ref, 0) for ref in set(refs)) for refs in found.items]
        infos = [dataclasses.replace(info, size_bytes=each) for info, each in zip(infos, weights, strict=True)]
    return infos, found.after, now

"""Figures of Ray's object stores. Only the demo, the benchmarks and the tests use them; they need `grpcio` (the extra `demo`)."""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple


class StoreUsage(NamedTuple):
    """Figures of the object stores of all nodes together, as Ray counts them.

    Attributes:
        used_bytes: in memory now, objects in use and cached copies alike.
        objects: how many objects that is.
        spilled_bytes: written to disk since the cluster started; never goes down.
        primary_bytes: the part of `used_bytes` that Ray may not drop, because somebody holds a reference and no copy is on disk. The
            references pin that and the files in the spill directory; the rest of `used_bytes` is cache.
    """

    used_bytes: int
    objects: int
    spilled_bytes: int
    primary_bytes: int


def store_usage() -> StoreUsage:
    """What the object stores hold now, all nodes together.

    Private: `ray._private.internal_api.get_memory_info_reply`, seen since Ray 2.52; the same figures that `ray memory` prints.
    Without it, the demo could not show what it is about, and no test could see a leak.

    Raises:
        ModuleNotFoundError: `grpcio` isn't installed.
    """
    import ray
    from ray._private.internal_api import get_memory_info_reply

    # Ray leaves both untyped.
    state = _cluster_state(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats  # type: ignore[no-untyped-call]
    return StoreUsage(
        used_bytes=int(stats.object_store_bytes_used),
        objects=int(stats.num_local_objects),
        spilled_bytes=int(stats.spilled_bytes_total),
        primary_bytes=int(stats.object_store_bytes_primary_copy),
    )


def who_holds_what() -> str:
    """The table of `ray memory`: each object that some process counts, its size, and where it is counted and why.

    Private: `ray._private.internal_api.memory_summary`, seen since Ray 2.52. Without it, a test that fails could not say what leaked.
    """
    import ray
    from ray._private.internal_api import memory_summary

    address = ray.get_runtime_context().gcs_address
    return str(memory_summary(address, units="B", line_wrap=False))  # type: ignore[no-untyped-call] # Ray leaves it untyped


@functools.lru_cache(maxsize=1)
def _cluster_state(gcs_address: str) -> Any:
    """Ray's view of a cluster, kept: Ray 2.48 has been seen to crash after some hundreds were made, one for each look."""
    from ray._private.internal_api import get_state_from_address

    return get_state_from_address(gcs_address)  # type: ignore[no-untyped-call] # Ray leaves it untyped


def wait_for_store(limit_bytes: int, timeout_s: float) -> StoreUsage:
    """Wait until the stores hold at most `limit_bytes`, or the time is over; return the last figures."""
    deadline = time.monotonic() + timeout_s
    while True:
        usage = store_usage()
        if usage.used_bytes <= limit_bytes or time.monotonic() > deadline:
            return usage
        time.sleep(0.02)

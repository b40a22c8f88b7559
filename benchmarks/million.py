"""A registry with a million live leases, beside one with a thousand: what a resolve costs, and what a lease weighs.

The leases hold references to a few objects, and are put into the registry's table from within its process, as sending them one by one
would take minutes.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import safe_refs
from benchmarks.lifetimes import fill
from benchmarks.lines import Section, small_ray, spread
from safe_refs.registry.shard import actor_name

FEW = 1_000
_BLOCK = 400  # resolves of each, alternately, for one ratio


def resident_bytes(registry: str) -> int:
    """Memory of a registry's process."""
    import ray

    def look(_: Any) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    actor: Any = ray.get_actor(actor_name(registry), namespace="safe_refs")
    found: int = ray.get(actor.__ray_call__.remote(look), timeout=60)
    return found


def measure(leases: int, blocks: int) -> Section:
    """Fill one registry with many, the other with few, and resolve from both alternately."""
    import ray

    payloads: dict[str, bytes] = {}
    with small_ray():
        refs = [ray.put(number) for number in range(5)]
        try:
            for name, count in (("few", FEW), ("many", leases)):
                os.environ["SAFE_REFS_REGISTRY"] = name
                safe_refs.init(max_leases=leases + FEW)
                payloads[name] = safe_refs.dumps(refs[0])
                before = resident_bytes(name)
                fill(name, refs, count - 1, None)
                grown = resident_bytes(name) - before
            median, last = [], []
            for _ in range(blocks):
                times: dict[str, list[float]] = {"few": [], "many": []}
                for number in range(_BLOCK):
                    for name in ("few", "many") if number % 2 else ("many", "few"):
                        begun = time.perf_counter()
                        safe_refs.loads(payloads[name])
                        times[name].append(time.perf_counter() - begun)
                median.append(statistics.median(times["many"]) / statistics.median(times["few"]))
                last.append(
                    statistics.quantiles(times["many"], n=100)[98] / statistics.quantiles(times["few"], n=100)[98]
                )
            weight = grown / leases
        finally:
            os.environ.pop("SAFE_REFS_REGISTRY", None)
    lines = [
        spread(f"resolve, median: {leases:,} leases ÷ {FEW:,}", median, "times", 1.2),
        spread(f"resolve, 99th percentile: {leases:,} leases ÷ {FEW:,}", last, "times", 1.2),
        spread("memory of the registry for a lease", [weight, weight], "bytes", 1000.0),
    ]
    text = (
        f"Two registries, one with {FEW:,} leases, one with {leases:,}, all of the same five objects; {blocks} blocks of {_BLOCK} "
        "resolves from each, alternately. The memory of a lease is the growth of the registry's process, divided by the leases."
    )
    return Section("A million leases", text, lines)

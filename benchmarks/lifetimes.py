"""A registry with 100,000 live leases: what their expiry costs others, and what a resolve costs beside one with ten.

Half of the leases run out at the same moment, while one client goes on calling: the longest of its calls is the stall. Then
resolves are timed alternately with those of a registry that holds ten leases, as paired ratios. A call inside the registry's process
puts the leases into its table, because sending them one by one would take minutes; they hold references to a few objects.

Run as `python -m benchmarks.lifetimes [--leases N] [--rounds N] [--json FILE]`; exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # or Ray replaces 127.0.0.1 by the machine's own address

import safe_refs
from benchmarks.compare import Figure, compare, machine
from safe_refs.registry.hooks import Began
from safe_refs.registry.records import Origin, Terms
from safe_refs.registry.shard import Shard, actor_name

LONGEST_STALL_MS = 50.0
RESOLVE_RATIO = 1.2
_EXPIRE_IN_S = 4.0


@dataclasses.dataclass(frozen=True)
class Stall:
    """What a client saw while leases expired.

    Attributes:
        leases: how many were live before.
        expired: how many ran out at one moment.
        expiry_took_s: seconds from that moment until all of them were gone.
        calls: calls that the client made in that time.
        median_ms: the median call.
        longest_ms: the longest call.
        idle_longest_ms: the longest call of as long a time before, with as many leases and none expiring.
    """

    leases: int
    expired: int
    expiry_took_s: float
    calls: int
    median_ms: float
    longest_ms: float
    idle_longest_ms: float


def fill(registry: str, refs: list[Any], count: int, ttl: float | None) -> None:
    """Put leases into a registry's table, from within its process."""
    import ray

    def put(shard: Shard, refs: list[Any], count: int, ttl: float | None) -> None:
        maker = Origin("01000000", "00" * 28, 1, "benchmark")
        from safe_refs._ray import workers

        owner = {ref: workers.owner_of(ref) for ref in refs}
        with shard.lock:
            for number in range(count):
                ref, lease = refs[number % len(refs)], os.urandom(16)
                shard.table.pin(lease, [ref], [owner[ref]], Terms(ttl=ttl), maker)
            shard.parts.pinned(lease, Began())  # the clock looks when the next lease expires

    actor: Any = ray.get_actor(actor_name(registry), namespace="safe_refs")
    ray.get(actor.__ray_call__.remote(put, refs, count, ttl), timeout=300)


def call_until(registry: str, payload: bytes, seconds: float, least_live: int) -> list[float]:
    """Resolve repeatedly for so many seconds, and until at most so many leases are live; milliseconds of each call."""
    times = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        safe_refs.loads(payload)
        times.append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() > end and len(times) % 50 == 0:
            figures = safe_refs.stats(registry=registry)
            if figures is None or figures.live_leases <= least_live or time.perf_counter() > end + 60:
                return times


def measure(leases: int, rounds: int) -> tuple[Stall, Figure]:
    """Fill one registry, leave another nearly empty, and compare."""
    import ray

    ray.init(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        refs = [ray.put(number) for number in range(5)]
        os.environ["SAFE_REFS_REGISTRY"] = "small"
        few = [safe_refs.dumps(ref) for ref in (*refs, *refs)]
        os.environ["SAFE_REFS_REGISTRY"] = "large"
        payload = safe_refs.dumps(refs[0])
        fill("large", refs, leases - leases // 2 - 1, None)
        ratio = compare(
            f"loads, {leases:,} leases live",
            lambda: safe_refs.loads(payload),
            "loads, 10 leases live",
            lambda: safe_refs.loads(few[0]),
            rounds=rounds,
            target=RESOLVE_RATIO,
        )
        begun = time.perf_counter()
        fill("large", refs, leases // 2, _EXPIRE_IN_S + leases / 50_000)
        filled = time.perf_counter() - begun
        idle = call_until("large", payload, max(0.5, _EXPIRE_IN_S + leases / 50_000 - filled - 0.3), leases)
        start = time.perf_counter()
        busy = call_until("large", payload, 0.5, leases - leases // 2)
        took = time.perf_counter() - start
        figures = safe_refs.stats(registry="large")
        stall = Stall(
            leases=leases,
            expired=0 if figures is None else figures.expired,
            expiry_took_s=round(took, 2),
            calls=len(busy),
            median_ms=round(sorted(busy)[len(busy) // 2], 2),
            longest_ms=round(max(busy), 2),
            idle_longest_ms=round(max(idle), 2),
        )
        return stall, ratio
    finally:
        os.environ.pop("SAFE_REFS_REGISTRY", None)
        ray.shutdown()


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and say whether the targets were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifetimes", description=__doc__)
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1500, help="resolves of each registry")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    chosen = parser.parse_args(argv)
    stall, ratio = measure(chosen.leases, chosen.rounds)
    print(" · ".join(f"{name} {value}" for name, value in machine().items()))
    print(
        f"{stall.expired:,} of {stall.leases:,} leases expired at once; they were gone after {stall.expiry_took_s} s, and of the"
    )
    print(f"{stall.calls} calls meanwhile the median took {stall.median_ms} ms, the longest {stall.longest_ms} ms")
    print(f"(target {LONGEST_STALL_MS:g} ms; the longest before it began: {stall.idle_longest_ms} ms)")
    print(
        f"{ratio.what} : {ratio.against} = {ratio.ratio:.3f} "
        f"(interquartile range {ratio.low:.2f} to {ratio.high:.2f}, target {ratio.target})"
    )
    if chosen.json:
        found = {"machine": machine(), "stall": dataclasses.asdict(stall), "resolve": dataclasses.asdict(ratio)}
        Path(chosen.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(stall.expired != chosen.leases // 2 or stall.longest_ms > LONGEST_STALL_MS or ratio.missed)


if __name__ == "__main__":
    sys.exit(main())

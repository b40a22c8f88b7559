"""What replicas cost, what a lease and a reference cost a shard, how throughput grows with shards, and rebuild and growth, timed.

Five measurements, on one local Ray: `dumps` and `loads` with two replicas against one, alternately (the median of the paired
ratios); CPU time and memory of a shard's process for leases of 1 to 1,000 references; leases a second with 1, 2 and 4 shards and
several client processes, against the model (shards divided by what a lease costs, up to the machine's cores, which the clients need
as well); a shard that is killed and gets its leases back from the other, and a registry that grows from 2 to 4 shards, each while
one client goes on calling. Where a measurement needs thousands of leases, a call inside the shards puts them into their tables.

Run as `python -m benchmarks.scaling [--leases N] [--rounds N] [--seconds S] [--json FILE]`; exit status 1 if a target is missed.

More than 350 lines: the five measurements share their client processes and how they look into a shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # or Ray replaces 127.0.0.1 by the machine's own address

import safe_refs
from benchmarks.compare import Figure, compare, machine
from safe_refs.registry.records import Origin, Terms
from safe_refs.registry.shard import Shard, actor_name
from safe_refs.replication.topology import Topology

REPLICAS_RATIO = 1.5
_CLIENTS = 3
_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Cost:
    """What leases of so many references cost one shard's process.

    Attributes:
        references: in each lease.
        leases: how many were made.
        pin_us: CPU time of a pin, in microseconds.
        resolve_us: CPU time of a resolve.
        release_us: CPU time of a release, many in one call.
        bytes: memory that the process has more while it holds a lease.
    """

    references: int
    leases: int
    pin_us: float
    resolve_us: float
    release_us: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How many leases a second several clients made and released, and what the model says.

    Attributes:
        shards: of the registry.
        clients: processes that call.
        leases_per_s: made and released.
        shard_cpu_us: CPU time of the shards for each of them.
        model_per_s: shards (at most cores) divided by that time: what they could do if clients cost nothing.
    """

    shards: int
    clients: int
    leases_per_s: float
    shard_cpu_us: float
    model_per_s: float


@dataclasses.dataclass(frozen=True)
class Change:
    """A rebuild or a growth, while a client went on calling.

    Attributes:
        what: which of them.
        leases: that the registry held.
        took_s: from the kill, or the call of `init`, until all was in its place.
        held_s: from the same moment until every shard held its leases; after that the objects' owners have to know it.
        calls: of the client meanwhile.
        median_ms: of these.
        longest_ms: of these.
        failed: of these.
    """

    what: str
    leases: int
    took_s: float
    held_s: float
    calls: int
    median_ms: float
    longest_ms: float
    failed: int


class Client:
    """A process that makes and releases leases."""

    def run(self, registry: str, seconds: float) -> int:
        import ray

        os.environ["SAFE_REFS_REGISTRY"] = registry
        ref = ray.put(b"x" * 1000)
        done = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            safe_refs.release(safe_refs.dumps(ref))
            done += 1
        return done


class Calls:
    """Dumps, loads and releases in a thread of this process, and times each call."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self.failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Calls:
        self._thread.start()
        while len(self.times_ms) < 30:
            time.sleep(0.01)
        self.times_ms.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import ray

        payload = b""
        ref = ray.put(b"x" * 1000)

        def make() -> None:
            nonlocal payload
            payload = safe_refs.dumps(ref)

        while not self._stop.is_set():
            for call in (make, lambda: safe_refs.loads(payload), lambda: safe_refs.release(payload)):
                begun = time.perf_counter()
                try:
                    call()
                except Exception:
                    self.failed += 1
                self.times_ms.append((time.perf_counter() - begun) * 1e3)

    def change(self, what: str, leases: int, took_s: float, held_s: float) -> Change:
        times = sorted(self.times_ms)
        median = times[len(times) // 2]
        return Change(
            what,
            leases,
            round(took_s, 2),
            round(held_s, 2),
            len(times),
            round(median, 2),
            round(times[-1], 1),
            self.failed,
        )


def begin(registry: str, shards: int, replicas: int) -> None:
    """Start a registry, and send new leases to it."""
    os.environ["SAFE_REFS_REGISTRY"] = registry
    safe_refs.init(shards=shards, replicas=replicas)


def shard(registry: str, number: int) -> Any:
    """One shard's actor."""
    import ray

    return ray.get_actor(actor_name(registry, number), namespace="safe_refs")


def process(registry: str, number: int) -> tuple[float, int]:
    """CPU seconds and bytes of memory of a shard's process."""
    import ray

    def look(_: Any) -> tuple[float, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return time.process_time(), pages * os.sysconf("SC_PAGE_SIZE")

    found: tuple[float, int] = ray.get(shard(registry, number).__ray_call__.remote(look), timeout=60)
    return found


def replicas(rounds: int) -> list[Figure]:
    """`dumps` and `loads` with two replicas against one."""
    import ray

    ref = ray.put(b"x" * 1000)
    payloads: dict[str, bytes] = {}
    made: list[bytes] = []
    for name, count in (("one", 1), ("two", 2)):
        begin(name, count, count)
        payloads[name] = safe_refs.dumps(ref)

    def dumps(name: str) -> None:
        os.environ["SAFE_REFS_REGISTRY"] = name
        made.append(safe_refs.dumps(ref))

    target = REPLICAS_RATIO
    figures = [
        compare(
            "dumps, 2 replicas",
            lambda: dumps("two"),
            "dumps, 1 replica",
            lambda: dumps("one"),
            rounds=rounds,
            target=target,
        ),
        compare(
            "loads, 2 replicas",
            lambda: safe_refs.loads(payloads["two"]),
            "loads, 1 replica",
            lambda: safe_refs.loads(payloads["one"]),
            rounds=rounds,
            target=target,
        ),
    ]
    made.clear()
    for name in ("one", "two"):
        safe_refs.shutdown(name, force=True)
    return figures


def costs(total: int) -> list[Cost]:
    """Leases of 1 to 1,000 references, of about `total` references together each time."""
    import ray

    found = []
    for size in (1, 10, 100, 1000):
        name = f"cost-{size}"
        begin(name, 1, 1)
        safe_refs.release([safe_refs.dumps(ray.put(number)) for number in range(50)])  # warm
        count = max(3, total // size)
        refs = [[ray.put(number) for number in range(size)] for _ in range(count)]
        start, before = process(name, 0)
        payloads = [safe_refs.dumps(each) for each in refs]
        pinned, after = process(name, 0)
        for payload in payloads:
            safe_refs.loads(payload)
        resolved, _ = process(name, 0)
        safe_refs.release(payloads)
        released, _ = process(name, 0)
        found.append(
            Cost(
                references=size,
                leases=count,
                pin_us=round((pinned - start) / count * 1e6, 1),
                resolve_us=round((resolved - pinned) / count * 1e6, 1),
                release_us=round((released - resolved) / count * 1e6, 1),
                bytes=round((after - before) / count),
            )
        )
        safe_refs.shutdown(name, force=True)
    return found


def throughputs(seconds: float) -> list[Throughput]:
    """Several processes that make and release leases of one reference, with 1, 2 and 4 shards."""
    import ray

    clients: list[Any] = [ray.remote(num_cpus=0)(Client).remote() for _ in range(_CLIENTS)]
    found = []
    for shards in (1, 2, 4):
        name = f"throughput-{shards}"
        begin(name, shards, 1)
        ray.get([client.run.remote(name, 0.3) for client in clients], timeout=120)
        before = [process(name, number)[0] for number in range(shards)]
        begun = time.perf_counter()
        done = sum(ray.get([client.run.remote(name, seconds) for client in clients], timeout=120))
        took = time.perf_counter() - begun
        cpu = sum(process(name, number)[0] - before[number] for number in range(shards)) / done
        workers = min(shards, os.cpu_count() or 1)
        found.append(Throughput(shards, _CLIENTS, round(done / took, 1), round(cpu * 1e6, 1), round(workers / cpu, 1)))
        safe_refs.shutdown(name, force=True)
    for client in clients:
        ray.kill(client)
    return found


def fill(registry: str, refs: list[Any], topology: Topology) -> None:
    """Put a lease for each reference into the tables of its holders, from within their processes."""
    import ray

    def put(held: Shard, leases: list[bytes], refs: list[Any]) -> None:
        from safe_refs._ray import workers

        maker = Origin("01000000", "00" * 28, 1, "benchmark")
        with held.lock:
            for lease, ref in zip(leases, refs, strict=True):
                held.table.pin(lease, [ref], [workers.owner_of(ref)], Terms(), maker)

    for start in range(0, len(refs), _AT_ONCE):
        batch = [(os.urandom(16), ref) for ref in refs[start : start + _AT_ONCE]]
        for number in range(topology.shards):
            mine = [(lease, ref) for lease, ref in batch if number in topology.holders(lease)]
            call = shard(registry, number).__ray_call__.remote(put, [id_ for id_, _ in mine], [ref for _, ref in mine])
            ray.get(call, timeout=120)


def changes(leases: int) -> list[Change]:
    """A rebuild of a shard, and then a growth from 2 shards to 4."""
    import ray

    begin("changes", 2, 2)
    refs = [ray.put(number) for number in range(leases)]
    fill("changes", refs, Topology(1, 2, 2))
    pid = ray.get(shard("changes", 1).where.remote(), timeout=30)[1]
    with Calls() as calls:
        begun = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        held = _await(lambda: ray.get(shard("changes", 1).stats.remote(), timeout=60).live_leases >= leases)
        ended = _await(lambda: ray.get(shard("changes", 1).stats.remote(), timeout=60).recovering == 0)
    rebuild = calls.change("rebuild of a shard", leases, ended - begun, held - begun)
    with Calls() as calls:
        begun = time.perf_counter()
        safe_refs.init("changes", shards=4)
        ended = time.perf_counter()
    growth = calls.change("growth from 2 to 4 shards", leases, ended - begun, ended - begun)
    ended_leases = safe_refs.shutdown("changes", force=True)
    if ended_leases < leases:
        raise RuntimeError(f"{leases - ended_leases} of {leases} leases are missing after the growth")
    return [rebuild, growth]


def _await(condition: Callable[[], bool]) -> float:
    """When a condition first held; Ray's refusals while a shard is down count as not yet."""
    import ray

    end = time.perf_counter() + 120
    while time.perf_counter() < end:
        try:
            if condition():
                return time.perf_counter()
        except ray.exceptions.RayActorError:
            pass
        time.sleep(0.02)
    raise TimeoutError


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and say whether the target was met."""
    import ray

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--leases", type=int, default=10_000, help="of the rebuild and the growth")
    parser.add_argument("--rounds", type=int, default=1000, help="runs of each call with one and two replicas")
    parser.add_argument("--references", type=int, default=5000, help="for the costs of a lease")
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement of throughput")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    chosen = parser.parse_args(argv)
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        found: dict[str, list[Any]] = {
            "replicas": replicas(chosen.rounds),
            "costs": costs(chosen.references),
            "throughput": throughputs(chosen.seconds),
            "changes": changes(chosen.leases),
        }
    finally:
        os.environ.pop("SAFE_REFS_REGISTRY", None)
        ray.shutdown()
    print(" · ".join(f"{name} {value}" for name, value in machine().items()))
    for ratio in found["replicas"]:
        print(
            f"{ratio.what} : {ratio.against} = {ratio.us:,.0f} : {ratio.against_us:,.0f} us = {ratio.ratio:.2f} "
            f"(interquartile range {ratio.low:.2f} to {ratio.high:.2f}, target {ratio.target}{', MISSED' if ratio.missed else ''})"
        )
    for cost in found["costs"]:
        print(
            f"a lease of {cost.references:4} references costs a shard {cost.pin_us:9,.0f} us to pin, {cost.resolve_us:9,.0f} us to "
            f"resolve, {cost.release_us:9,.0f} us to release, and {cost.bytes:11,.0f} bytes ({cost.leases} leases)"
        )
    for figure in found["throughput"]:
        print(
            f"{figure.shards} shard(s), {figure.clients} clients: {figure.leases_per_s:,.0f} leases a second made and released, "
            f"{figure.shard_cpu_us:,.0f} us of the shards' CPU each; the model says {figure.model_per_s:,.0f} at most, and the "
            "clients need the same cores"
        )
    for change in found["changes"]:
        print(
            f"{change.what}, {change.leases:,} leases: {change.took_s} s (every lease is where it belongs after {change.held_s} s); "
            f"of {change.calls} calls meanwhile the median took {change.median_ms} ms, the longest {change.longest_ms} ms, "
            f"{change.failed} failed"
        )
    if chosen.json:
        figures = {name: [dataclasses.asdict(each) for each in rows] for name, rows in found.items()}
        with Path(chosen.json).open("w", encoding="utf-8") as file:
            json.dump({"machine": machine(), **figures}, file, indent=1)
            file.write("\n")
    return int(any(ratio.missed for ratio in found["replicas"]) or any(change.failed for change in found["changes"]))


if __name__ == "__main__":
    sys.exit(main())

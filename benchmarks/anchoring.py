"""How fast a shard makes references safe that a reader has resolved, and how long others' calls take meanwhile.

A reader resolves many references at once, in leases of so many each, and the clock runs until none depends on the registry any more.
Meanwhile one process asks the registry for a lease's expiry, again and again, and another calls a plain actor that does nothing: on
a machine whose cores are all busy, that one waits as well, for other reasons. CPU time is that of each process, for each reference.

Run as `python -m benchmarks.anchoring [--references N] [--rounds N] [--json FILE]`; exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
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
from benchmarks.compare import machine
from safe_refs._ray import cluster
from safe_refs.anchoring import relays
from safe_refs.registry.shard import Shard, actor_name

RATE = 5_000.0
HELD_UP_MS = 20.0
_LEASE_SIZES = (100, 1)
_ASKS_S = 6.0
_PAUSE_S = 0.001


@dataclasses.dataclass(frozen=True)
class Burst:
    """What came of one burst.

    Attributes:
        each: references in a lease.
        per_second: references made safe in a second, from the beginning of the load.
        loads_s: how long the load itself took.
        registry_ms: calls to the registry by another process, after the load: median, 99th percentile and longest, in milliseconds.
        load_ms: the same, while the load went on, which hands out all at once.
        plain_ms: the same, of calls to an actor that does nothing.
        cpu_us: CPU time of each process for one reference, in microseconds.
    """

    each: int
    per_second: int
    loads_s: float
    registry_ms: tuple[float, float, float]
    load_ms: tuple[float, float, float]
    plain_ms: tuple[float, float, float]
    cpu_us: dict[str, int]


class Reader:
    """Resolves, and keeps."""

    def load(self, payloads: list[bytes]) -> float:
        begun = time.monotonic()
        self._refs = safe_refs.loads_many(payloads)
        return time.monotonic() - begun

    def drop(self) -> None:
        self._refs = []

    def pid(self) -> int:
        return os.getpid()


class Plain:
    """Does nothing."""

    def nothing(self) -> None:
        return


class Other:
    """Calls again and again, and notes when, and how long each took."""

    def ask(self, payload: bytes, seconds: float) -> list[tuple[float, float]]:
        return self._timed(lambda: safe_refs.expires_in_s(payload), seconds)

    def call(self, plain: Any, seconds: float) -> list[tuple[float, float]]:
        import ray

        return self._timed(lambda: ray.get(plain.nothing.remote()), seconds)

    def _timed(self, call: Any, seconds: float) -> list[tuple[float, float]]:
        found, until = [], time.monotonic() + seconds
        while (begun := time.monotonic()) < until:
            call()
            found.append((begun, time.monotonic() - begun))
            time.sleep(_PAUSE_S)
        return found


def measure(references: int, rounds: int) -> list[Burst]:
    """Bursts of each size of leases, one after the other."""
    import ray

    ray.init(
        num_cpus=4,
        object_store_memory=500 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        safe_refs.init()
        actors = [ray.remote(num_cpus=0)(each).remote() for each in (Reader, Plain, Other, Other)]
        asked = safe_refs.dumps(ray.put("asked about"), ttl=3600)
        return [_burst(references, each, actors, asked) for _ in range(rounds) for each in _LEASE_SIZES]
    finally:
        ray.shutdown()


def _burst(references: int, each: int, actors: list[Any], asked: bytes) -> Burst:
    import ray

    reader, plain, asking, calling = actors
    refs = [ray.put(number) for number in range(references)]
    payloads = safe_refs.dumps_many([refs[at : at + each] for at in range(0, references, each)])
    time.sleep(2.0)
    pids = _processes() | {"owner": os.getpid(), "reader": ray.get(reader.pid.remote())}
    others = [asking.ask.remote(asked, _ASKS_S), calling.call.remote(plain, _ASKS_S)]
    time.sleep(0.5)
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    begun = time.monotonic()
    loads_s = ray.get(reader.load.remote(payloads))
    loaded = time.monotonic()
    while (figures := safe_refs.stats()) is not None and figures.unanchored:
        time.sleep(0.02)
    ended = time.monotonic()
    after = {name: _cpu_s(pid) for name, pid in pids.items()}
    registry, plain_actor = ray.get(others)
    safe_refs.release(payloads)
    ray.get(reader.drop.remote())
    return Burst(
        each,
        round(references / (ended - begun)),
        round(loads_s, 2),
        _spread([took for at, took in registry if loaded <= at <= ended]),
        _spread([took for at, took in registry if begun <= at < loaded]),
        _spread([took for at, took in plain_actor if begun <= at <= ended]),
        {name: round(1e6 * (after[name] - before[name]) / references) for name in pids},
    )


def _processes() -> dict[str, int]:
    import ray

    shard = cluster.named_actor(actor_name("default"), Shard)
    found = {"shard": ray.get(shard.where.remote())[1]}
    for number in relays.FOR_SHARDS[:2]:
        relay = cluster.named_actor(relays.name(number), relays.SafeRefsRelay)
        found[f"relay {number}"] = ray.get(relay.where.remote())[1]
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spread(seconds: list[float]) -> tuple[float, float, float]:
    times = sorted(1e3 * each for each in seconds) or [0.0]
    return round(statistics.median(times), 1), round(times[int(0.99 * len(times))], 1), round(times[-1], 1)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and say whether the targets were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchoring", description=__doc__)
    parser.add_argument("--references", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each kind")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args(argv)
    bursts = measure(options.references, options.rounds)
    print(f"targets: {RATE:,.0f} references a second, no call of others longer than {HELD_UP_MS:g} ms")
    for each in bursts:
        print(
            f"leases of {each.each}: {each.per_second:,} references a second, load: {each.loads_s:g} s; median, p99, longest call "
            f"to the registry {each.registry_ms} ms, during the load {each.load_ms} ms, to a plain actor {each.plain_ms} ms; "
            f"CPU µs a reference {each.cpu_us}"
        )
    if options.json:
        found = {"machine": machine(), "bursts": [dataclasses.asdict(each) for each in bursts]}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(each.per_second < RATE or each.registry_ms[2] > HELD_UP_MS for each in bursts))


if __name__ == "__main__":
    sys.exit(main())

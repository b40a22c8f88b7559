"""Hand objects over by one way, in a Ray of its own, and read the object store after each round.

Run by `benchmarks.leak` as a process of its own, with the way's name, the parameters as JSON, and the file to write the result to.
Whatever the way, the steps are the same: a producer puts objects, makes bytes of their references and drops them; the bytes travel
as bytes, of which Ray knows nothing, for a second or two; a consumer makes references of them, reads and checks the values, lets
go, and releases.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import ray

from safe_refs._ray import store

from .figures import Parameters, Reading, Result
from .ways import WAYS

_READ_EVERY_S = 0.1
_SETTLE_AT_MOST_S = 15.0


class Parcel(NamedTuple):
    """What travels outside Ray: a payload, and the checksum of the object that it leads to."""

    payload: bytes
    checksum: int


class Producer:
    """A worker that makes objects and hands their references out as bytes."""

    def __init__(self, way: str, size_bytes: int) -> None:
        self.way, self.size_bytes = WAYS[way], size_bytes

    def make(self, seeds: list[str]) -> list[Parcel]:
        """Make an object from each seed; when this returns, no variable of this process holds one, or a reference to it."""
        return [self._make_one(seed) for seed in seeds]

    def _make_one(self, seed: str) -> Parcel:
        # Bytes, not an array: `ray.get` copies them out, so that no reader keeps the store's memory mapped.
        value = random.Random(seed).randbytes(self.size_bytes)  # noqa: S311 (no secret, only the same bytes for every way)
        return Parcel(self.way.dumps(ray.put(value)), zlib.crc32(value))

    def let_go(self) -> None:
        gc.collect()


class Consumer:
    """A worker that knows the objects by the bytes only."""

    def __init__(self, way: str, patience_s: float) -> None:
        self.way, self.patience_s = WAYS[way], patience_s

    def take(self, parcels: list[Parcel]) -> Counter[str]:
        """Read each parcel's object and let it go; how many were lost for which reason."""
        lost: Counter[str] = Counter()
        parcel_of = {}
        for parcel in parcels:
            try:
                parcel_of[self.way.loads(parcel.payload)] = parcel
            except Exception as error:
                lost[type(error).__name__] += 1
        for ref in self._arrived(list(parcel_of)):
            parcel = parcel_of.pop(ref)
            try:
                # It is there, but may have to come back from disk.
                value = ray.get(ref, timeout=5 * self.patience_s)
            except Exception as error:
                lost[type(error).__name__] += 1
                continue
            if zlib.crc32(value) != parcel.checksum:
                lost["wrong checksum"] += 1
        if parcel_of:
            lost[f"not there in {self.patience_s:g} s"] += len(parcel_of)
        parcel_of.clear()
        for parcel in parcels:
            self.way.release(parcel.payload)
        return lost

    def _arrived(self, waiting: list[Any]) -> Iterator[Any]:
        """Each reference whose object comes; the wait ends when for `patience_s` none has come. One wait serves all."""
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=self.patience_s)
            if not ready:
                return
            yield from ready

    def let_go(self) -> None:
        gc.collect()


class Store:
    """Reads the object store's figures, in memory and on disk."""

    def __init__(self, spill: Path, quiet_s: float) -> None:
        self.spill, self.quiet_s = spill, quiet_s

    def settled(self, lost: int, quiet_s: float = 0) -> Reading:
        """Wait until nothing is left, or the figures have stood still for a while; a bounded time in any case."""
        quiet_s = max(quiet_s, self.quiet_s)
        end = time.monotonic() + _SETTLE_AT_MOST_S
        reading, since = self._read(lost), time.monotonic()
        while (now := time.monotonic()) < end and now - since < quiet_s:
            if not reading.pinned_bytes and not reading.cached_bytes:
                break
            time.sleep(_READ_EVERY_S)
            before, reading = reading, self._read(lost)
            if reading != before:
                since = time.monotonic()
        return reading

    def _read(self, lost: int) -> Reading:
        usage = store.store_usage()
        return Reading(
            memory_bytes=usage.primary_bytes,
            disk_bytes=sum(_size(file) for file in self.spill.rglob("*")),
            cached_bytes=usage.used_bytes - usage.primary_bytes,
            spilled_bytes=usage.spilled_bytes,
            lost=lost,
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0  # deleted since it was listed


def measure(way: str, parameters: Parameters, spill: Path) -> Result:
    """Hand over round by round by one way, then drop all references, then kill the workers. Starts a Ray, and stops it."""
    start = time.monotonic()
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=parameters.store_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        # A spill directory of this run's own, so that what lies in it can be measured.
        _system_config={
            "object_spilling_config": json.dumps({"type": "filesystem", "params": {"directory_path": str(spill)}})
        },
    )
    producer: Any = ray.remote(Producer).options(num_cpus=0).remote(way, parameters.size_bytes)
    consumer: Any = ray.remote(Consumer).options(num_cpus=0).remote(way, parameters.patience_s)
    store, lost = Store(spill, parameters.quiet_s), Counter[str]()
    under_way, rounds = [], []
    for number in range(parameters.rounds):
        seeds = [f"{parameters.seed}/{number}/{each}" for each in range(parameters.handovers)]
        parcels = ray.get(producer.make.remote(seeds))
        under_way.append(store.settled(lost.total()))
        lost += ray.get(consumer.take.remote(parcels))
        del parcels
        rounds.append(store.settled(lost.total()))
    ray.get([producer.let_go.remote(), consumer.let_go.remote()])
    let_go = store.settled(lost.total(), 2 * parameters.quiet_s)
    for worker in (producer, consumer):
        ray.kill(worker)
    workers_died = store.settled(lost.total(), 2 * parameters.quiet_s)
    ray.shutdown()
    handed_over = parameters.rounds * parameters.handovers
    took_s = round(time.monotonic() - start, 1)
    return Result(way, handed_over, dict(lost), under_way, rounds, let_go, workers_died, took_s)


def main() -> None:
    way, parameters, output = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="leak-") as spill:
        result = measure(way, Parameters(**json.loads(parameters)), Path(spill))
    Path(output).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()

"""Rounds of kills: one of two replicas is killed at a seeded moment while payloads are made, loaded and released, over and over.

Several registries of two shards each are put through it side by side, as most of a round is waiting for Ray to start a shard anew. In
a round the maker dumps, one reader loads what stands, another releases leases of which it has resolved references, all at once and
each in a process of its own, and a shard dies by SIGKILL somewhere in between. Then every call must have succeeded, every payload
must open with its own value, everything that was released must be told as released, and every live reference must read.

Run as `python -m tests.support.kills [--rounds N] [--registries N] [--seed N] [--keep]`; exit status 1 if anything was lost. Nobody
but the leases holds the objects, unless with `--keep`. `SAFE_REFS_ANCHORING=0` is the control: without anchoring dozens of references
die.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import safe_refs

from . import environment  # noqa: F401 # before anything imports Ray
from .cluster import as_actor
from .shards import is_whole, kill
from .waiting import wait_until

VALUE_BYTES = 110_000  # smaller ones Ray keeps in the reader's own memory, where they survive everything
MADE = 12  # payloads of a round
LATEST_S = 0.06  # about as long as the calls of a round take by themselves


@dataclasses.dataclass
class Tally:
    """What came of the rounds; all of the second half must be empty.

    Attributes:
        rounds: kills.
        made: payloads made.
        loaded: loads that gave the right value.
        read: live references that were read after a kill.
        released: leases released.
        stalls_s: for each round its longest call, in seconds.
        recoveries_s: for each round the seconds from the kill until the shard was whole again.
        failed: calls that raised, and payloads that gave something else than their value.
        dead: live references that didn't read.
        risen: released leases that were not told as released.
    """

    rounds: int = 0
    made: int = 0
    loaded: int = 0
    read: int = 0
    released: int = 0
    stalls_s: list[float] = dataclasses.field(default_factory=list)
    recoveries_s: list[float] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    dead: list[str] = dataclasses.field(default_factory=list)
    risen: list[str] = dataclasses.field(default_factory=list)

    @property
    def flaws(self) -> int:
        """How much was lost, in whatever way."""
        return len(self.failed) + len(self.dead) + len(self.risen)


class Maker:
    """Makes payloads of objects that it owns.

    Args:
        registry: where they go to.
        let_go: whether only the leases hold the objects.
    """

    def __init__(self, registry: str, let_go: bool) -> None:
        os.environ["SAFE_REFS_REGISTRY"] = registry
        self.let_go = let_go
        self.kept: dict[int, Any] = {}

    def make(self, numbers: list[int]) -> tuple[dict[int, bytes], list[str], float]:
        import ray

        payloads, failed, longest = {}, [], 0.0
        for number in numbers:
            ref = ray.put((number, bytes(VALUE_BYTES)))
            begun = time.perf_counter()
            try:
                payloads[number] = safe_refs.dumps(ref)
            except Exception as error:
                failed.append(f"dumps of {number}: {error!r}")
            longest = max(longest, time.perf_counter() - begun)
            if not self.let_go:
                self.kept[number] = ref
        return payloads, failed, longest

    def forget(self, numbers: list[int]) -> None:
        for number in numbers:
            self.kept.pop(number, None)


class Reader:
    """Resolves payloads, and keeps the references."""

    def __init__(self) -> None:
        self.refs: dict[int, Any] = {}

    def load(self, payloads: dict[int, bytes]) -> tuple[list[str], float]:
        failed, longest = [], 0.0
        for number, payload in payloads.items():
            begun = time.perf_counter()
            try:
                self.refs[number] = safe_refs.loads(payload)
            except Exception as error:
                failed.append(f"loads of {number}: {error!r}")
            longest = max(longest, time.perf_counter() - begun)
        return failed, longest

    def release(self, payloads: dict[int, bytes]) -> tuple[int, list[str], float]:
        ended, failed, longest = 0, [], 0.0
        for number, payload in payloads.items():
            begun = time.perf_counter()
            try:
                ended += safe_refs.release(payload)
            except Exception as error:
                failed.append(f"release of {number}: {error!r}")
            longest = max(longest, time.perf_counter() - begun)
        return ended, failed, longest

    def read(self) -> tuple[int, list[str]]:
        """Read each live reference; how many that were, and those that don't give their value."""
        import ray

        dead = []
        for number, ref in self.refs.items():
            try:
                value = ray.get(ref, timeout=10)[0]
                if value != number:
                    dead.append(f"{number} gives {value}")
            except Exception as error:
                dead.append(f"{number}: {type(error).__name__}")
        return len(self.refs), dead

    def risen(self, payloads: dict[int, bytes]) -> list[str]:
        """Which of these, which were released, are not told as such."""
        found = []
        for number, payload in payloads.items():
            try:
                safe_refs.loads(payload)
                found.append(f"{number} loads")
            except safe_refs.LeaseReleasedError:
                pass
            except Exception as error:
                found.append(f"{number}: {error!r}")
        return found

    def drop(self, numbers: list[int]) -> None:
        for number in numbers:
            self.refs.pop(number, None)


class Lane:
    """One registry of two shards, with its maker and its readers.

    Args:
        name: of the registry.
        let_go: as for `Maker`.
        seed: says which shard is killed when.
    """

    def __init__(self, name: str, let_go: bool, seed: str) -> None:
        self.name = name
        self.tally = Tally()
        self._let_go = let_go
        self._random = random.Random(seed)  # noqa: S311 # it is to be repeatable
        self._next = 0
        self._standing: dict[int, bytes] = {}
        self._resolved: dict[int, bytes] = {}
        self._ended: dict[int, bytes] = {}
        self._maker = as_actor(Maker).remote(name, let_go)
        self._reader, self._releaser = as_actor(Reader).remote(), as_actor(Reader).remote()

    def begin(self) -> None:
        """Start the registry, and make what the first round needs."""
        _get(self._maker.make.remote([]))
        self._resolved = self._made(self._maker.make.remote(self._numbers()))
        self._standing = self._made(self._maker.make.remote(self._numbers()))
        self._note(_get(self._releaser.load.remote(self._resolved)))

    def round(self) -> None:
        """One kill."""
        making = self._maker.make.remote(self._numbers())
        loading = self._reader.load.remote(self._standing)
        # Their references were resolved before. One replica is killed, and the other lets go right before, while or after that.
        releasing = self._releaser.release.remote(self._resolved)
        time.sleep(self._random.uniform(0, LATEST_S))
        begun = time.monotonic()
        kill(self.name, self._random.randrange(2))
        made = self._made(making)
        stalls = [self.tally.stalls_s.pop(), self._note(_get(loading))]
        ended, failed, stall = _get(releasing)
        self.tally.stalls_s.append(max(*stalls, stall))
        self.tally.failed += failed
        if ended != len(self._resolved):
            self.tally.failed.append(f"{ended} of {len(self._resolved)} releases ended a lease")
        self.tally.released += ended
        wait_until(lambda: is_whole(self.name), 60)
        recovered = time.monotonic()
        if self._let_go:
            wait_until(self._is_anchored, 60)
        self.tally.recoveries_s.append(recovered - begun)
        self._check()
        # What was released lives on in the releaser for one more round, as Ray takes its time to notice who is gone.
        gone = list(self._ended)
        _get(self._releaser.drop.remote(gone))
        _get(self._reader.drop.remote([number for number in gone if number not in self._standing]))
        _get(self._maker.forget.remote(gone))
        self._ended, self._resolved, self._standing = self._resolved, self._standing, made
        self._note(_get(self._releaser.load.remote(self._resolved)))
        if self._let_go:
            wait_until(self._is_anchored, 60)
        self.tally.rounds += 1

    def _check(self) -> None:
        self.tally.risen += _get(self._reader.risen.remote(self._resolved))
        for reader in (self._reader, self._releaser):
            count, dead = _get(reader.read.remote())
            self.tally.read += count
            self.tally.dead += [f"round {self.tally.rounds} of {self.name}: {each}" for each in dead]

    def _is_anchored(self) -> bool:
        """Whether the owners know of all who hold their objects, so that the next crash can do no harm."""
        found = safe_refs.stats(registry=self.name)
        return found is not None and found.recovering == found.unanchored == 0

    def end(self) -> None:
        """Release what is left, and let go of everything."""
        import ray

        for actor in (self._maker, self._reader, self._releaser):
            ray.kill(actor)
        safe_refs.shutdown(self.name, force=True)

    def _numbers(self) -> list[int]:
        self._next += MADE
        return list(range(self._next - MADE, self._next))

    def _made(self, call: Any) -> dict[int, bytes]:
        made, failed, stall = _get(call)
        self.tally.made += len(made)
        self.tally.failed += failed
        self.tally.stalls_s.append(stall)
        found: dict[int, bytes] = made
        return found

    def _note(self, loaded: tuple[list[str], float]) -> float:
        failed, stall = loaded
        self.tally.failed += failed
        self.tally.loaded += MADE - len(failed)
        return stall


def _get(call: Any) -> Any:
    import ray

    return ray.get(call, timeout=120)


def run(rounds: int, registries: int, seed: int, let_go: bool, say: bool = False) -> Tally:
    """Put so many registries through so many rounds, all together, on the Ray that this process is connected to."""
    lanes = [Lane(f"kills-{seed}-{number}-{os.getpid()}", let_go, f"{seed} {number}") for number in range(registries)]
    left = threading.Semaphore(rounds)

    def go(lane: Lane) -> None:
        lane.begin()
        lane.tally.stalls_s.clear()
        while left.acquire(blocking=False):
            lane.round()
            if say and lane.tally.rounds % 10 == 0:
                print(f"{lane.name}: {lane.tally.rounds} rounds, {lane.tally.flaws} flaws", flush=True)

    try:
        for lane in lanes:
            safe_refs.init(lane.name, shards=2, replicas=2)
        with ThreadPoolExecutor(registries) as pool:
            list(pool.map(go, lanes))
    finally:
        for lane in lanes:
            lane.end()
    total = Tally()
    for lane in lanes:
        for field in dataclasses.fields(Tally):
            setattr(total, field.name, getattr(total, field.name) + getattr(lane.tally, field.name))
    return total


def main(argv: list[str] | None = None) -> int:
    """Run, print what came of it, and say whether anything was lost."""
    import ray

    parser = argparse.ArgumentParser(prog="python -m tests.support.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--registries", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="the owner holds the objects too, not only the leases")
    chosen = parser.parse_args(argv)
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=500 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    begun = time.monotonic()
    try:
        tally = run(chosen.rounds, chosen.registries, chosen.seed, not chosen.keep, say=True)
    finally:
        ray.shutdown()
    for flaw in (*tally.failed, *tally.dead, *tally.risen)[:20]:
        print(flaw)
    print(
        json.dumps(
            {
                "seed": chosen.seed,
                "rounds": tally.rounds,
                "took_s": round(time.monotonic() - begun, 1),
                **{name: getattr(tally, name) for name in ("made", "loaded", "read", "released")},
                **{name: len(getattr(tally, name)) for name in ("failed", "dead", "risen")},
                "longest_call_s": round(max(tally.stalls_s), 2),
                "median_recovery_s": round(statistics.median(tally.recoveries_s), 2),
                "longest_recovery_s": round(max(tally.recoveries_s), 2),
            }
        )
    )
    return int(tally.flaws > 0)


if __name__ == "__main__":
    sys.exit(main())

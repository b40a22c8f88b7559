"""One value from one process to another, until its checksum is known there: by safe_refs, and by its alternatives.

The maker is the driver, the reader an actor; what travels between them is bytes, as an argument of a call, whatever the way. All ways
take turns, round by round; the figures are medians of the ratios within a round. The value is an array, which neither pickle nor
Ray copies needlessly.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safe_refs
from benchmarks.lines import Line, Section, small_ray, spread
from benchmarks.servers import redis_server

SIZES = {"1 kB": (1_000, 100), "1 MB": (1_000_000, 60), "100 MB": (100_000_000, 9)}  # bytes, rounds
OURS, AT_ONCE = "safe_refs", "safe_refs without waiting"
AHEAD = {("ProxyStore over Redis", "1 MB"): 1.0, ("ProxyStore over Redis", "100 MB"): 5.0}
_FEWEST = 3


class Way:
    """How a value goes out and comes in; made anew in each process.

    Args:
        name: which way.
        url: of the Redis server.
        folder: for files.
    """

    def __init__(self, name: str, url: str, folder: str) -> None:
        import redis

        self._waits = name != AT_ONCE
        self.give: Callable[[Any], bytes] = getattr(self, f"_give_{name.split()[0].lower()}")
        self.take: Callable[[bytes], Any] = getattr(self, f"_take_{name.split()[0].lower()}")
        host, port = url.removeprefix("redis://").split("/")[0].split(":")
        if name.startswith("ProxyStore"):
            from proxystore.connectors.file import FileConnector
            from proxystore.connectors.redis import RedisConnector
            from proxystore.store import Store, get_store, register_store

            self._store: Any = get_store(name)
            if self._store is None:
                connector: Any = FileConnector(folder) if "files" in name else RedisConnector(host, int(port))
                self._store = Store(name, connector, cache_size=0)
                register_store(self._store)
        self._redis: Any = redis.Redis(host, int(port))

    def _give_safe_refs(self, value: Any) -> bytes:
        import ray

        return safe_refs.dumps(ray.put(value), wait=self._waits)

    def _take_safe_refs(self, data: bytes) -> Any:
        import ray

        return ray.get(safe_refs.loads(data, take=True))

    def _give_proxystore(self, value: Any) -> bytes:
        return pickle.dumps(self._store.proxy(value, evict=True))

    def _take_proxystore(self, data: bytes) -> Any:
        from proxystore.proxy import extract

        return extract(pickle.loads(data))

    def _give_redis(self, value: Any) -> bytes:
        self._redis.set("value", pickle.dumps(value, 5))
        return b"value"

    def _take_redis(self, data: bytes) -> Any:
        return pickle.loads(self._redis.getdel(data))


NAMES = (OURS, AT_ONCE, "ProxyStore over Redis", "ProxyStore over files", "Redis with the value itself")


def checksum(value: Any) -> int:
    """A sum over all of an array's bytes, eight at a time: some gigabytes a second."""
    import numpy as np

    return int(value.view(np.uint64).sum(dtype=np.uint64))


class Reader:
    """The other process."""

    def __init__(self, url: str, folder: str) -> None:
        self._ways = {name: Way(name, url, folder) for name in NAMES}

    def read(self, name: str, data: bytes) -> int:
        return checksum(self._ways[name].take(data))


def measure(share: float) -> Section:
    """All sizes, all ways.

    Args:
        share: the part of the usual number of rounds.
    """
    lines: list[Line] = []
    with (
        tempfile.TemporaryDirectory(prefix="handover-") as folder,
        redis_server(Path(folder)) as url,
        small_ray(2 * 2**30),
    ):
        for size, (count, rounds) in SIZES.items():
            lines += _one_size(size, count, max(_FEWEST, int(rounds * share)), url, folder)
    text = (
        "One array goes from one process to another, until the receiver knows its checksum. The first line of each size is the time "
        "that safe_refs takes. The others say how many times as long another way takes, in the same round. Without waiting, `dumps` "
        "returns before the registry has acknowledged the pin, and the reader waits for that."
    )
    return Section("Handing over a value", text, lines, "handover.svg")


def _one_size(size: str, count: int, rounds: int, url: str, folder: str) -> list[Line]:
    import numpy as np
    import ray

    value = np.random.default_rng(0).integers(0, 2**62, count // 8, dtype=np.uint64)
    wanted = checksum(value)
    ways = {name: Way(name, url, folder) for name in NAMES}
    reader: Any = ray.remote(Reader).options(num_cpus=0).remote(url, folder)
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(rounds + 2):
        for place in range(len(NAMES)):
            name = NAMES[(number + place) % len(NAMES)]  # each is first in its turn
            begun = time.perf_counter()
            found = ray.get(reader.read.remote(name, ways[name].give(value)), timeout=120)
            took = time.perf_counter() - begun
            if found != wanted:
                raise RuntimeError(f"{name}: the value that arrived is another one")
            if number >= 2:
                times[name].append(took * 1e3)
    ray.kill(reader)
    ours = times[OURS]
    lines = [spread(f"{size}: {OURS}", ours, "ms")]
    for name in NAMES[1:]:
        ratios = [theirs / mine for theirs, mine in zip(times[name], ours, strict=True)]
        lines.append(spread(f"{size}: {name} ÷ {OURS}", ratios, "times", AHEAD.get((name, size)), at_most=False))
    return lines


def bars(section: Section) -> dict[str, dict[str, float]]:
    """For a picture: by size and way, median milliseconds, as far as lines of ratios tell."""
    found: dict[str, dict[str, float]] = {}
    for line in section.lines:
        size, rest = line.what.split(": ")
        way = rest.split(" ÷ ")[0]
        found.setdefault(size, {})[way] = line.value if way == OURS else line.value * found[size][OURS]
    return found

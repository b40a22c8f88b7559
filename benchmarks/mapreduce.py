"""Memory over time of map-reduce rounds whose references, or values, go from map to reduce as bytes.

32 tasks make 10 MB each; one task adds them up; then all references are dropped. The limit is by hand: Ray's own references,
passed in-band. The curve shows what the round pins: primary copies in the object store and files in the spill directory, or Redis's
memory.
"""

from __future__ import annotations

import json
import pickle
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safe_refs
from benchmarks.lines import Line, Section, small_ray
from benchmarks.servers import redis_server
from safe_refs._ray import store

TASKS, VALUE_BYTES = 32, 10_000_000
BY_HAND, OURS, LEAKING, PROXIES = "Ray's references, by hand", "safe_refs", "ray.cloudpickle", "ProxyStore over Redis"
WITHIN = 0.05  # of what it takes by hand
_EVERY_S = 0.05
_SETTLE_S = 2.0

Curve = list[tuple[float, float]]  # seconds since the way's first round began, bytes


def make(number: int) -> Any:
    import numpy as np

    return np.full(VALUE_BYTES, number % 100, dtype=np.uint8)


def make_proxy(number: int, url: str) -> bytes:
    return pickle.dumps(_store(url).proxy(make(number), evict=True))


def add_references(refs: list[Any]) -> int:
    import ray

    found = 0
    while refs:
        found += int(ray.get(refs.pop()).sum())
    return found


def add_payloads(payloads: list[bytes]) -> int:
    return add_references(safe_refs.loads_many(payloads))


def add_leaky(data: list[bytes]) -> int:
    from ray import cloudpickle

    return add_references([cloudpickle.loads(each) for each in data])


def add_proxies(data: list[bytes], url: str) -> int:
    from proxystore.proxy import extract

    _store(url)
    return sum(int(extract(pickle.loads(each)).sum()) for each in data)


def _store(url: str) -> Any:
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store, get_store, register_store

    found = get_store("rounds")
    if found is None:
        host, port = url.removeprefix("redis://").split("/")[0].split(":")
        found = Store("rounds", RedisConnector(host, int(port)), cache_size=0)
        register_store(found)
    return found


def one_round(way: str, url: str) -> int:
    """Map, send the references, reduce, drop the references; return the sum."""
    import ray
    from ray import cloudpickle

    leaky: Any = cloudpickle.dumps

    def task(function: Callable[..., Any]) -> Any:
        return ray.remote(function).remote

    if way == PROXIES:
        data = ray.get([task(make_proxy)(number, url) for number in range(TASKS)])
        found: int = ray.get(task(add_proxies)(data, url))
        return found
    refs = [task(make)(number) for number in range(TASKS)]
    if way == BY_HAND:
        answer = task(add_references)(refs)
    elif way == OURS:
        payloads = safe_refs.dumps_many(refs)
        answer = task(add_payloads)(payloads)
    else:
        answer = task(add_leaky)([leaky(ref) for ref in refs])
    del refs
    found = ray.get(answer)
    if way == OURS:
        safe_refs.release(payloads)
    return found


class Watch(threading.Thread):
    """Reads what is pinned, over and over."""

    def __init__(self, spill: Path, url: str) -> None:
        super().__init__(daemon=True)
        import redis

        host, port = url.removeprefix("redis://").split("/")[0].split(":")
        self._redis: Any = redis.Redis(host, int(port))
        self._empty = self._redis.info("memory")["used_memory"]
        self._spill = spill
        self._over = threading.Event()
        self._begun = time.monotonic()
        self.curve: Curve = []

    def run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.curve.append((time.monotonic() - self._begun, self.now()))

    def now(self) -> float:
        """Bytes pinned now."""
        disk = sum(each.stat().st_size for each in self._spill.rglob("*") if each.is_file())
        in_redis = max(0, self._redis.info("memory")["used_memory"] - self._empty)
        return float(store.store_usage().primary_bytes + disk + in_redis)

    def end(self) -> float:
        """Stop; what is pinned when all has come to rest."""
        time.sleep(_SETTLE_S)
        self._over.set()
        self.join()
        return self.now()


def measure(rounds: int) -> tuple[Section, dict[str, Curve]]:
    """All ways, one after the other, in one Ray: the one that leaks comes last.

    Returns:
        The section, and for its picture the curve of each way.
    """
    curves: dict[str, Curve] = {}
    peaks: dict[str, list[float]] = {}
    ends: dict[str, float] = {}
    wanted = sum(number % 100 for number in range(TASKS)) * VALUE_BYTES
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        spill = Path(folder, "spill")
        config = json.dumps({"type": "filesystem", "params": {"directory_path": str(spill)}})
        with redis_server(Path(folder)) as url, small_ray(2**30, _system_config={"object_spilling_config": config}):
            safe_refs.init()
            one_round(BY_HAND, url)  # starts the workers
            for way in (BY_HAND, OURS, PROXIES, LEAKING):
                watch = Watch(spill, url)
                before = watch.now()
                watch.start()
                peaks[way] = []
                for _ in range(rounds):
                    begun = len(watch.curve)
                    if one_round(way, url) != wanted:
                        raise RuntimeError(f"{way}: the sum is another one")
                    peaks[way].append(max(value for _, value in watch.curve[begun:]) - before)
                ends[way] = watch.end() - before
                curves[way] = [(at, value - before) for at, value in watch.curve]
    text = (
        f"{TASKS} tasks make {VALUE_BYTES // 10**6} MB each. Their references go as bytes to another task, which adds the values up. "
        f"{rounds} rounds. *Pinned* means primary copies in the object store, files in the spill directory, and what Redis uses. *By "
        "hand* passes the references in-band. A peak is the highest reading of a round, divided by the median peak by hand. An end "
        "is the reading two seconds after the last round, minus that by hand, divided by the same."
    )
    by_hand = statistics.median(peaks[BY_HAND])
    lines: list[Line] = []
    for way in (OURS, PROXIES, LEAKING):
        low, middle, high = statistics.quantiles([peak / by_hand for peak in peaks[way]], n=4)
        target = 1 + WITHIN if way == OURS else None
        lines.append(Line(f"peak: {way} ÷ by hand", middle, low, high, "times", target))
        end = (ends[way] - ends[BY_HAND]) / by_hand
        lines.append(
            Line(f"end: {way}, beyond by hand ÷ its peak", end, end, end, "times", WITHIN if way == OURS else None)
        )
    return Section("Memory over time", text, lines, "memory.svg"), curves

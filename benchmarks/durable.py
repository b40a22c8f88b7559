"""What a durable copy costs: `dumps(ref, durable=True)` against a bare task that returns its argument, on the same object.

The task's result is waited for, and not read. Copies are dropped between the rounds, out of time.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import safe_refs
from benchmarks.lines import Line, Section, small_ray, spread

KB, MB = 2**10, 2**20
# Bytes, rounds, target.
SIZES = {
    "1 kB": (KB, 60, None),
    "1 MB": (MB, 60, None),
    "100 MB": (100 * MB, 25, 1.3),
    "400 MB": (400 * MB, 12, 1.3),
    "100,000 small dicts": (0, 25, 1.0),
}
_SETTLES_S = 0.15


def measure(share: float) -> Section:
    """All sizes, each alternately with a bare task.

    Args:
        share: of the usual rounds.
    """
    import numpy as np
    import ray

    lines: list[Line] = []
    with small_ray(1500 * MB):
        identity: Any = ray.remote(num_cpus=0)(lambda value: value)

        def bare(ref: Any) -> Any:
            copy = identity.remote(ref)
            ray.wait([copy], fetch_local=False)
            return copy

        def durable(ref: Any) -> Any:
            return safe_refs.dumps(ref, durable=True)

        for name, (size, usual, target) in SIZES.items():
            rounds = max(5, round(usual * share))
            ref = ray.put(np.ones(size, dtype=np.uint8) if size else [{"n": n, "s": str(n)} for n in range(100_000)])
            times: dict[Any, list[float]] = {bare: [], durable: []}
            for number in range(rounds + 3):
                for step in (bare, durable) if number % 2 else (durable, bare):
                    begun = time.perf_counter()
                    made = step(ref)
                    times[step].append(time.perf_counter() - begun)
                    if step is durable:
                        safe_refs.release(made)
                    made = None
                    time.sleep(_SETTLES_S)  # until the copy is freed
            ratios = [ours / theirs for ours, theirs in zip(times[durable][3:], times[bare][3:], strict=True)]
            more = [(ours - theirs) * 1e3 for ours, theirs in zip(times[durable][3:], times[bare][3:], strict=True)]
            lines.append(spread(f"{name}: a durable copy ÷ a bare task", ratios, "times", target))
            lines.append(spread(f"{name}: what it takes beyond the task", more, "ms"))
            if size > MB:
                lines.append(_peak(ref, size, max(4, rounds // 4)))
            del ref
            gc.collect()
        safe_refs.shutdown(force=True)
    text = (
        "An object that the driver owns is made durable: the registry pins it, a task copies it, and the registry gets the copy. "
        "This is compared with that task alone, which unpickles and pickles the object; the copy is made of the bytes as they are. "
        "Peak memory is the most that the store holds meanwhile, in sizes of the object."
    )
    return Section("Durable copies", text, lines)


def _peak(ref: Any, size: int, rounds: int) -> Line:
    """The most that the store holds while a copy is made, in objects."""
    from safe_refs._ray import store

    peaks = []
    for _ in range(rounds):
        store.wait_for_store(round(1.1 * size), 10)
        seen: list[int] = []
        over = threading.Event()

        def watch(seen: list[int] = seen, over: threading.Event = over) -> None:
            while not over.is_set():
                seen.append(store.store_usage().used_bytes)

        watcher = threading.Thread(target=watch)
        watcher.start()
        payload = safe_refs.dumps(ref, durable=True)
        over.set()
        watcher.join()
        seen.append(store.store_usage().used_bytes)
        safe_refs.release(payload)
        peaks.append(max(seen) / size)
    return spread(f"{size // MB} MB: peak memory ÷ the object", peaks, "times", 2.0)


def main() -> None:
    """Print it."""
    for line in measure(1.0).lines:
        print(f"{line.what:50} {line.value:8.2f} ({line.low:.2f} to {line.high:.2f}) {line.unit}")


if __name__ == "__main__":
    main()

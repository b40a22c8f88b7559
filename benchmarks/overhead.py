"""What `dumps` and `loads` cost, as ratios to what they stand on: a bare Ray actor call, `pickle` and `cloudpickle`.

Each figure is the median of the ratios of neighbours: the two are done one after another, over and over, so that whatever
else the machine does hits both. Run as `python -m benchmarks.overhead [--rounds N] [--json FILE]`;
exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import itertools
import json
import logging
import os
import pickle
import platform
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # or Ray replaces 127.0.0.1 by the machine's own address

import cloudpickle

import safe_refs
from benchmarks.shapes import Point

Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        what: what was measured.
        against: what it is compared with.
        us: median of one run, in microseconds.
        against_us: the same of the other.
        ratio: median of the ratios of neighbouring runs.
        low: the ratios' 25th percentile.
        high: the ratios' 75th percentile.
        target: the most that the ratio may be; None where nothing is promised.
    """

    what: str
    against: str
    us: float
    against_us: float
    ratio: float
    low: float
    high: float
    target: float | None

    @property
    def missed(self) -> bool:
        """Whether the ratio is above its target."""
        return self.target is not None and self.ratio > self.target


def compare(
    what: str, step: Step, against: str, other: Step, *, rounds: int, inner: int = 1, target: float | None
) -> Figure:
    """Time two steps in turn, `inner` runs of each at a time, and give the ratio of the first to the second."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + max(3, rounds // 20)):
        # Which one goes first changes each time.
        for which in (0, 1) if number % 2 else (1, 0):
            run = (step, other)[which]
            start = time.perf_counter()
            for _ in range(inner):
                run()
            times[which].append((time.perf_counter() - start) / inner * 1e6)
    ours, theirs = times[0][-rounds:], times[1][-rounds:]
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return Figure(what, against, statistics.median(ours), statistics.median(theirs), ratio, low, high, target)


def plain_objects() -> dict[str, Any]:
    """Objects without references, small and large."""
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    objects: dict[str, Any] = {
        "small dict": {"name": "x", "size": 3, "tags": ["a", "b"]},
        "10,000 dataclasses": [Point(n, str(n)) for n in range(10_000)],
        "10,000 Fractions": [Fraction(n, n + 1) for n in range(10_000)],
        "10,000 datetimes": [now + datetime.timedelta(seconds=n) for n in range(10_000)],
        "100,000 ints": list(range(100_000)),
        "nested dicts": {str(n): {"n": n, "inner": {"list": [n, n + 1]}} for n in range(5_000)},
        "16 MB of bytes": os.urandom(2**24),
    }
    try:
        import numpy as np
    except ModuleNotFoundError:
        pass
    else:
        objects["16 MB array"] = np.random.default_rng(0).random(2**21)
    return objects


def plain_figures(rounds: int) -> list[Figure]:
    """Objects without references, against pickle and cloudpickle of the same protocol."""
    figures = []
    for name, obj in plain_objects().items():
        inner = 2000 if name == "small dict" else 1
        data = pickle.dumps(obj, 5)

        def ours(obj: Any = obj) -> bytes:
            return safe_refs.dumps(obj)

        def by_pickle(obj: Any = obj) -> bytes:
            return pickle.dumps(obj, 5)

        def by_cloudpickle(obj: Any = obj) -> bytes:
            dumped: bytes = cloudpickle.dumps(obj)
            return dumped

        def load(data: bytes = data) -> Any:
            return safe_refs.loads(data)

        def load_pickle(data: bytes = data) -> Any:
            return pickle.loads(data)

        figures += [
            compare(
                f"dumps: {name}", ours, "cloudpickle.dumps", by_cloudpickle, rounds=rounds, inner=inner, target=1.0
            ),
            compare(f"dumps: {name}", ours, "pickle.dumps", by_pickle, rounds=rounds, inner=inner, target=None),
            compare(f"loads: {name}", load, "pickle.loads", load_pickle, rounds=rounds, inner=inner, target=None),
        ]
    return figures


def reference_figures(rounds: int) -> list[Figure]:
    """One reference out and in, against a bare call of a Ray actor that carries or returns it."""
    import ray

    @ray.remote(num_cpus=0)
    class Bare:
        def __init__(self) -> None:
            self.held: dict[bytes, Any] = {}

        def hold(self, call: tuple[bytes, list[Any]]) -> None:
            self.held[call[0]] = call[1]

        def give(self, key: bytes) -> list[Any]:
            held: list[Any] = self.held[key]
            return held

        def make(self, count: int) -> list[Any]:
            return [ray.put(b"y" * 1000) for _ in range(count)]

    ray.init(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        bare: Any = Bare.remote()  # type: ignore[attr-defined] # Ray's decorator hides it
        ref = ray.put(b"x" * 1000)
        key = b"k" * 16
        ray.get(bare.hold.remote((key, [ref])))
        payload = safe_refs.dumps(ref)
        made: list[bytes] = []
        # A process that borrows has its pins anchored. The same object again within some milliseconds is a case of its own, so: many.
        borrowed = itertools.cycle(ray.get(bare.make.remote(50)))
        owned = itertools.cycle([ray.put(b"z" * 1000) for _ in range(50)])
        figures = [
            compare(
                "dumps: 1 reference",
                lambda: made.append(safe_refs.dumps(ref)),
                "bare call that carries it",
                lambda: ray.get(bare.hold.remote((key, [ref]))),
                rounds=rounds,
                target=1.15,
            ),
            compare(
                "loads: 1 reference",
                lambda: safe_refs.loads(payload),
                "bare call that returns it",
                lambda: ray.get(bare.give.remote(key)),
                rounds=rounds,
                target=1.15,
            ),
            compare(
                "dumps: 1 borrowed reference",
                lambda: made.append(safe_refs.dumps(next(borrowed))),
                "dumps of one that it owns",
                lambda: made.append(safe_refs.dumps(next(owned))),
                rounds=rounds,
                target=1.6,
            ),
        ]
        safe_refs.release([payload, *made])
        return figures
    finally:
        ray.shutdown()


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    import ray

    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "cloudpickle": cloudpickle.__version__,
        "safe_refs": safe_refs.__version__,
        "cores": os.cpu_count(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and say whether each target was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=2000, help="runs of each call; a hundredth of it for large objects"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    chosen = parser.parse_args(argv)
    gc.disable()  # its pauses belong to neither side
    figures = [*reference_figures(chosen.rounds), *plain_figures(max(15, chosen.rounds // 50))]
    head = f"{'what':28} {'us':>10}   {'against':28} {'us':>10} {'ratio':>7} {'middle half':>15} {'target':>7}"
    print(" · ".join(f"{name} {value}" for name, value in machine().items()))
    print(head, "-" * len(head), sep="\n")
    for figure in figures:
        spread = f"{figure.low:.2f} to {figure.high:.2f}"
        target = "" if figure.target is None else f"{figure.target:.2f}" + (" MISSED" if figure.missed else "")
        print(
            f"{figure.what:28} {figure.us:10,.1f}   {figure.against:28} {figure.against_us:10,.1f} "
            f"{figure.ratio:7.3f} {spread:>15} {target:>7}"
        )
    if chosen.json:
        with Path(chosen.json).open("w", encoding="utf-8") as file:
            json.dump(
                {"machine": machine(), "figures": [dataclasses.asdict(figure) for figure in figures]}, file, indent=1
            )
            file.write("\n")
    return int(any(figure.missed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())

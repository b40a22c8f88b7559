"""Two things run alternately, many times; the figure is the median of the paired ratios. Other load hits both alike."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # or Ray replaces 127.0.0.1 by the machine's own address

import cloudpickle

import safe_refs

Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        what: what was measured.
        against: what it is compared with.
        us: median of one run, in microseconds.
        against_us: the same of the other.
        ratio: median of the paired ratios: each pair ran one after the other.
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
    """Time two steps alternately, `inner` runs of each at a time, and return the ratio of the first to the second."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + max(3, rounds // 20)):
        # The order alternates.
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

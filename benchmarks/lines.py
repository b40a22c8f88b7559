"""What a benchmark reports: lines, each with its spread and its target, in sections."""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.compare import compare

SLACK = 1.1  # a target counts as missed beyond that


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: what was measured.
        value: the result.
        low: 25th percentile of it, over the rounds.
        high: 75th percentile.
        unit: of the value: `times` for ratios, `/s` for rates, else a unit of time or size.
        target: what it should be at least or at most; None where nothing is promised.
        at_most: whether the target is the most; otherwise the least.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    target: float | None = None
    at_most: bool = True

    @property
    def missed(self) -> bool:
        """Whether the value misses its target by more than a tenth."""
        if self.target is None:
            return False
        return self.value > self.target * SLACK if self.at_most else self.value * SLACK < self.target


@dataclasses.dataclass(frozen=True)
class Section:
    """Lines that belong together.

    Attributes:
        title: what they are about.
        text: what was done, and how to read it.
        lines: the figures.
        picture: file name of a picture of them, beside the report; or empty.
    """

    title: str
    text: str
    lines: list[Line]
    picture: str = ""


def ratio(
    what: str, step: Callable[[], Any], other: Callable[[], Any], rounds: int, target: float | None, *, inner: int = 1
) -> Line:
    """A step's time as a ratio to another step's, both timed alternately."""
    figure = compare(what, step, "", other, rounds=rounds, inner=inner, target=target)
    return Line(what, figure.ratio, figure.low, figure.high, "times", target)


def spread(what: str, values: list[float], unit: str, target: float | None = None, *, at_most: bool = True) -> Line:
    """A figure of several rounds: the median, and the interquartile range."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Line(what, middle, low, high, unit, target, at_most)


@contextmanager
def small_ray(store_bytes: int = 400 * 2**20, **options: Any) -> Iterator[None]:
    """A Ray of the benchmark's own, with two CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=store_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        **options,
    )
    try:
        yield
    finally:
        ray.shutdown()

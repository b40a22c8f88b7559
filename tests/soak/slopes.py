"""Slopes: how fast a figure grows, how sure that is, and whether it is more than the control's. Pure functions of series.

A series is cut into blocks of equal time, and each block is one value: its median, or a quantile of the calls in it. So neither a
single outlier nor the noise within a block counts, and neighbours are nearly independent. The slope is Theil and Sen's: the median
of the slopes of all pairs of blocks. Its interval is Sen's, from the variance of Kendall's statistic, and needs no assumption about
how the noise is distributed. A single step has no slope by it: nearly half of the pairs are flat.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

BLOCKS = 16
LEAST_BLOCKS = 8  # with fewer, the interval below has no end
# Some sixty figures are judged in a run, each at this many standard deviations on one side: one run in thirty would find
# something in noise alone, if there were no tolerance.
_DEVIATIONS = 3.29
HOUR_S = 3600.0

Series = Sequence[tuple[float, float]]  # seconds, value


class Slope(NamedTuple):
    """How fast something grows.

    Attributes:
        per_hour: in the figure's unit.
        low, high: the interval in which it lies, for all that the series says.
    """

    per_hour: float
    low: float
    high: float


class Tolerance(NamedTuple):
    """How much more than the control a figure may grow.

    Attributes:
        per_hour: in the figure's unit.
        in_all: the same within one run, however short: what comes from Ray's and Python's allocators, say, in a few minutes.
    """

    per_hour: float
    in_all: float

    def over(self, span_s: float) -> float:
        """What that is for a run that is judged over so many seconds, per hour."""
        return max(self.per_hour, self.in_all * HOUR_S / span_s)


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least that part of them does not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def blocks(
    series: Series,
    begin_s: float,
    end_s: float,
    *,
    of: Callable[[Sequence[float]], float] = statistics.median,
    least: int = 1,
) -> dict[int, float]:
    """One value for each block of time between two moments, by the block's number.

    Args:
        series: in any order.
        begin_s: when the first block begins: the end of the warm-up.
        end_s: when the last one ends.
        of: makes one value of a block's.
        least: a block with fewer values is left out.
    """
    found: dict[int, list[float]] = {}
    for at, value in series:
        if begin_s <= at < end_s:
            found.setdefault(int((at - begin_s) / (end_s - begin_s) * BLOCKS), []).append(value)
    return {number: of(values) for number, values in sorted(found.items()) if len(values) >= least}


def slope(values: dict[int, float], span_s: float) -> Slope | None:
    """The slope of blocks, where so many seconds have `BLOCKS` of them; None if there are too few to tell."""
    count = len(values)
    if count < LEAST_BLOCKS:
        return None
    block_h = span_s / BLOCKS / HOUR_S
    points = sorted(values.items())
    slopes = sorted(
        (after - before) / ((late - early) * block_h)
        for number, (early, before) in enumerate(points)
        for late, after in points[number + 1 :]
    )
    spread = _DEVIATIONS * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[-1 - low])


def difference(ours: dict[int, float], control: dict[int, float]) -> dict[int, float]:
    """Our blocks less the control's, where both have one: what the machine did to both is gone."""
    return {number: value - control[number] for number, value in ours.items() if number in control}


def grows(more: Slope | None, tolerance_per_hour: float) -> bool:
    """Whether something grows by more than the control, beyond noise and tolerance."""
    return more is not None and more.low > tolerance_per_hour

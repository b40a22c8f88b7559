"""What a soak reports: a row for each figure, judged. Plain values, to JSON and as a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.table import Table

from . import slopes
from .rounds import KINDS
from .slopes import Slope, Tolerance

# What a figure may grow beyond the control's, and how much of that one run may show, however short. These are chosen, not
# measured: a control against another control (`--against-itself`) would show what they must be.
MEMORY = Tolerance(per_hour=1.0, in_all=0.5)  # MB
COUNT = Tolerance(per_hour=0.5, in_all=0.25)  # threads, files, processes, leases, objects
STORE = Tolerance(per_hour=500_000, in_all=100_000)  # bytes
LATENCY = Tolerance(per_hour=math.log(1.1), in_all=math.log(1.1))  # of the logarithm: a tenth
# What only our side has is like the control's actor that holds references: Ray keeps something of each call to any of them.
LIKE = {"relays": "registry", "copy owner": "registry", "exit delay": "registry"}
LEAST_CALLS = {"median": 3, "p99": 100}  # in a block


@dataclass(frozen=True)
class Parameters:
    """What a soak is.

    Attributes:
        seconds: how long it works.
        seed: of the order of the rounds, and of the sizes.
        rate: rounds a second, on each side.
        kinds: of rounds.
        shards, replicas: of the registry.
        warm_up: the part of the time that isn't judged.
        fills: whether what is bounded is filled before.
        plant: leaks that are planted, to see them found.
        against_itself: a control takes our place: what it finds is noise.
        slack: times what one run may show, but of latencies: a short soak is all warm-up.
    """

    seconds: float = 3600.0
    seed: int = 1
    rate: float = 10.0
    kinds: tuple[str, ...] = KINDS
    shards: int = 1
    replicas: int = 1
    warm_up: float = 0.2
    fills: bool = True
    plant: tuple[str, ...] = ()
    against_itself: bool = False
    slack: float = 1.0

    @property
    def each_s(self) -> float:
        """Seconds from one look to the next."""
        return min(5.0, max(0.25, self.seconds / 200))

    @property
    def warm_up_s(self) -> float:
        return self.seconds * self.warm_up


@dataclass
class Side:
    """What one side has shown.

    Attributes:
        series: by figure, values by the second of the soak.
        calls: by name, how long each took, by the second of the soak.
        end: what it said at its end.
    """

    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    calls: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)

    def add(self, at_s: float, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.series.setdefault(name, []).append((at_s, value))


@dataclass(frozen=True)
class Row:
    """A figure, judged.

    Attributes:
        name: of the figure.
        unit: of its values; slopes are in that an hour, those of latencies in % an hour.
        start, end: the first and the last block after the warm-up.
        ours, control: slopes.
        more: the slope of ours less the control's, block by block; it decides.
        tolerance: what `more` may surely be.
        grows: the verdict.
    """

    name: str
    unit: str
    start: float
    end: float
    ours: Slope
    control: Slope | None
    more: Slope
    tolerance: float
    grows: bool


@dataclass
class Report:
    """The outcome of a soak.

    Attributes:
        parameters: what it was.
        rows: the figures that could be judged.
        too_few: the names of those that could not: there were too few values.
        failed: what has failed besides: calls, what is left, containers that have grown.
        rounds: done on our side, and on the other.
        missed: rounds for which there was no time.
    """

    parameters: Parameters
    rows: list[Row]
    too_few: list[str]
    failed: list[str]
    rounds: tuple[int, int]
    missed: tuple[int, int]

    def grown(self) -> list[str]:
        """The names of the figures that grow."""
        return [row.name for row in self.rows if row.grows]

    def is_flat(self) -> bool:
        """Whether nothing grows, and nothing has failed."""
        return not self.grown() and not self.failed

    def to_json(self, **more: Any) -> str:
        """JSON text; with more fields, such as the series."""
        fields = {**asdict(self), "grown": self.grown()}
        return json.dumps({**fields, **more}, indent=1) + "\n"

    def table(self) -> Table:
        """For people."""
        told = self.parameters
        table = Table(
            "figure", "start", "end", "slope/h", "control's", "more than the control's", "may be", "",
            title=f"{told.seconds:g} s, seed {told.seed}, {told.rate:g} rounds/s, shards: {told.shards}, replicas: {told.replicas}, "
            f"the first {told.warm_up_s:g} s left out",
            title_justify="left",
        )  # fmt: skip
        for row in self.rows:
            is_log = row.unit == "ms"
            table.add_row(
                f"{row.name} [{row.unit}]" if row.unit else row.name,
                _short(row.start),
                _short(row.end),
                _slope(row.ours, is_log),
                "-" if row.control is None else _slope(row.control, is_log),
                _slope(row.more, is_log),
                f"{_change(row.tolerance, is_log)}{'%' * is_log}",
                "GROWS" if row.grows else "ok",
            )
        return table

    def summary(self) -> str:
        """Some lines below the table."""
        lines = [
            f"rounds: {self.rounds[0]}, control {self.rounds[1]}; missed: {self.missed[0]}, control {self.missed[1]}",
            f"judged: {len(self.rows)} figures; grow: {', '.join(self.grown()) or 'none'}",
        ]
        if self.too_few:
            lines.append(f"too few values to judge: {', '.join(self.too_few)}")
        return "\n".join([*lines, *self.failed])


def judge(parameters: Parameters, ours: Side, control: Side) -> Report:
    """Compare the two sides."""
    rows, too_few = [], []
    for name, unit, tolerance, cut in _figures(ours):
        row = _row(name, unit, tolerance, cut, parameters, ours, control)
        if row is None:
            too_few.append(name)
        else:
            rows.append(row)
    ends = ours.end, control.end
    failed = [f"failed: {each}" for each in ours.end["errors"]]
    failed += [f"left: {each}" for each in ours.end["left"].get("left", ())]
    for path, (before, after) in ours.end["left"].get("grown", {}).items():
        failed.append(f"container: {path}: {before} elements after the warm-up, {after} at the end")
    if ours.end["store_left"] > control.end["store_left"]:
        failed.append(f"left in the store: {ours.end['store_left']} bytes, control {control.end['store_left']}")
    return Report(
        parameters,
        rows,
        too_few,
        failed,
        rounds=(ends[0]["done"], ends[1]["done"]),
        missed=(ends[0]["missed"], ends[1]["missed"]),
    )


Cut = Callable[[Side, float, float], dict[int, float]]  # a side's blocks between two moments


def _figures(side: Side) -> list[tuple[str, str, Tolerance, Cut]]:
    """What is judged: name, unit, tolerance, and how it is cut into blocks."""
    found: list[tuple[str, str, Tolerance, Cut]] = []
    for name in sorted(side.series):
        kind = name.split(",")[0]
        tolerance = {"memory": MEMORY, "store": STORE if name.endswith("bytes") else COUNT}.get(kind, COUNT)
        found.append((name, "MB" if kind == "memory" else "", tolerance, partial(_of_series, name)))
    for name in sorted(side.calls):
        for which, part in (("median", 0.5), ("p99", 0.99)):
            found.append((f"{name}, {which}", "ms", LATENCY, partial(_of_calls, name, which, part)))
    return found


def _of_series(name: str, side: Side, begin_s: float, end_s: float) -> dict[int, float]:
    """What comes and goes all the time is as much as there is at least: a leak lifts that."""
    kind, _, played = name.partition(", ")
    series = side.series.get(name) or side.series.get(f"{kind}, {LIKE.get(played, '')}", [])
    return slopes.blocks(series, begin_s, end_s, of=min if kind in ("store", "leases") else statistics.median)


def _of_calls(name: str, which: str, part: float, side: Side, begin_s: float, end_s: float) -> dict[int, float]:
    """Logarithms: what grows by a tenth has the same slope, however long it takes."""
    series = side.calls.get(name, ())
    found = slopes.blocks(series, begin_s, end_s, of=partial(slopes.quantile, part=part), least=LEAST_CALLS[which])
    return {number: math.log(value) for number, value in found.items()}


def _row(
    name: str, unit: str, tolerance: Tolerance, cut: Cut, parameters: Parameters, ours: Side, control: Side
) -> Row | None:
    begin_s, end_s = parameters.warm_up_s, parameters.seconds
    span_s = end_s - begin_s
    own, other = cut(ours, begin_s, end_s), cut(control, begin_s, end_s)
    is_pair = len(other) >= slopes.LEAST_BLOCKS  # what only our side has is flat on the other
    more = slopes.slope(slopes.difference(own, other) if is_pair else own, span_s)
    slope = slopes.slope(own, span_s)
    if more is None or slope is None:
        return None
    ends = [own[min(own)], own[max(own)]]
    start, end = (1000 * math.exp(value) for value in ends) if unit == "ms" else ends
    slack = 1.0 if unit == "ms" else parameters.slack
    allowed = Tolerance(tolerance.per_hour, slack * tolerance.in_all).over(span_s)
    verdict = slopes.grows(more, allowed)
    return Row(name, unit, start, end, slope, slopes.slope(other, span_s), more, allowed, verdict)


def _change(value: float, is_log: bool) -> str:
    """A slope, with its sign; those of logarithms in %."""
    if not is_log:
        return f"{value:+.3g}"
    percent = 100 * math.expm1(min(value, 20.0))
    return f"{percent:+.0f}" if percent < 10_000 else ">10,000"


def _slope(slope: Slope, is_log: bool) -> str:
    low, high = _change(slope.low, is_log), _change(slope.high, is_log)
    return f"{_change(slope.per_hour, is_log)}{'%' * is_log} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

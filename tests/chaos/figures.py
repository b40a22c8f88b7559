"""What a storm reports: the five figures, what was done, and how long recoveries took. Plain values, to JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
import statistics
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from .rules import FIGURES, Verdict

_MOST_TRACES = 50
_MOST_EXCUSED = 3  # traces of each name


@dataclass(frozen=True)
class Parameters:
    """What a storm is.

    Attributes:
        seconds: how long the killer is at work.
        seed: of the plan and of the stories.
        shards: of the registry.
        replicas: of each lease.
        nodes: of the cluster, with the head.
        jobs: of several players, at a time; one more is a driver, and one a Ray Client.
        players: of each job.
        stories: that go on at a time.
        anchored: judge, and kill, as if every hold were known to the owner.
        plant: faults that are planted, to see whether they are found.
    """

    seconds: float = 600.0
    seed: int = 1
    shards: int = 3
    replicas: int = 2
    nodes: int = 3
    jobs: int = 3
    players: int = 3
    stories: int = 8
    anchored: bool = True
    plant: tuple[str, ...] = ()


@dataclass
class Report:
    """The outcome of a storm. Thread-safe.

    Attributes:
        parameters: what it was.
        figures: lost, early, leaked, hung, wrong; all must be 0.
        traces: of what counts for one of the figures, and of some of what was excused.
        excused: answers that would have counted, but for something that is not promised, by its name.
        calls: answers by step and error.
        players: answers by the kind of process that gave them.
        garbage: what became of calls that nobody should make.
        stories: told to the end, by kind.
        actions: what the killer did, by kind; skipped ones by themselves.
        recoveries_s: from each kill of a shard until the registry had recovered, by kind.
        payloads: that were made.
        spilled_bytes: that Ray wrote to disk.
        left_bytes: that the stores and disks held when all payloads had ended.
        left: Ray's list of references at that time, if it was too much.
        histories: what had happened to each payload of a finding until then.
    """

    parameters: Parameters
    figures: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FIGURES, 0)))
    traces: list[str] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    players: Counter[str] = field(default_factory=Counter)
    garbage: Counter[str] = field(default_factory=Counter)
    stories: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    payloads: int = 0
    spilled_bytes: int = 0
    left_bytes: int = 0
    left: list[str] = field(default_factory=list)
    histories: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._unsaid: list[str] = []

    def note(self, verdict: Verdict, about: str) -> None:
        """Count a verdict."""
        with self._lock:
            if verdict.figure is not None:
                self.figures[verdict.figure] += 1
            if verdict.excused:
                self.excused[verdict.excused] += 1
            is_worth = verdict.figure is not None or 0 < self.excused[verdict.excused] <= _MOST_EXCUSED
            if is_worth and len(self.traces) < _MOST_TRACES:
                self.traces.append(f"{verdict.figure or f'excused, {verdict.excused}'}: {about}: {verdict.why}")
                self._unsaid.append(self.traces[-1])

    def news(self) -> list[str]:
        """The traces that are new since this was last asked."""
        with self._lock:
            news, self._unsaid = self._unsaid, []
            return news

    def count(self, what: Counter[str], name: str) -> None:
        """Count one more in one of the counters."""
        with self._lock:
            what[name] += 1

    def recovered(self, kind: str, seconds: float) -> None:
        """A recovery took so long."""
        with self._lock:
            self.recoveries_s.setdefault(kind, []).append(round(seconds, 3))

    def all_zero(self) -> bool:
        """Whether nothing was lost, early, leaked, hung or wrong."""
        return not any(self.figures.values())

    def recovery(self) -> tuple[float, float] | None:
        """Median and worst time to recover, in seconds; None without any."""
        times = [each for kind in self.recoveries_s.values() for each in kind]
        return (statistics.median(times), max(times)) if times else None

    def to_json(self) -> str:
        """JSON text."""
        # Not `asdict(self)`, which makes nonsense of counters.
        fields: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields["parameters"] = asdict(self.parameters)
        recovery = self.recovery()
        fields["recovery_median_s"], fields["recovery_worst_s"] = recovery or (None, None)
        return json.dumps(fields, indent=2) + "\n"

    def table(self) -> Table:
        """For people."""
        told = self.parameters
        mode = "" if told.anchored else ", without what anchoring promises"
        table = Table(
            title=f"{told.seconds:g} s, seed {told.seed}, {told.shards} shards, {told.replicas} replicas, {told.nodes} nodes{mode}",
            title_justify="left", show_header=False,
        )  # fmt: skip
        for name in FIGURES:
            table.add_row(name, str(self.figures[name]), "" if not self.figures[name] else "must be 0")
        table.add_section()
        table.add_row("excused", str(sum(self.excused.values())), _counts(self.excused) or "what is not promised")
        table.add_row("payloads", str(self.payloads), _counts(self.stories))
        table.add_row("calls", str(sum(self.calls.values())), _counts(self.calls))
        table.add_row("answers", str(sum(self.players.values())), _counts(self.players))
        table.add_row("garbage", str(sum(self.garbage.values())), _counts(self.garbage))
        table.add_row("failures", str(sum(self.actions.values())), _counts(self.actions))
        table.add_row("spilled", f"{self.spilled_bytes / 1e6:.0f} MB", f"left at the end: {self.left_bytes} bytes")
        for kind, times in self.recoveries_s.items():
            table.add_row(
                f"recovery, {kind}",
                str(len(times)),
                f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s",
            )
        recovery = self.recovery()
        if recovery:
            table.add_row("recovery", "", f"median {recovery[0]:.2f} s, worst {recovery[1]:.2f} s")
        return table


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

"""The soak: that it tells growth from noise, by series that are known; that planted leaks are found; and a minute of it."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.soak import processes, slopes
from tests.soak.control import Control
from tests.soak.ours import Ours
from tests.soak.report import Parameters, Report, Side, judge
from tests.soak.rounds import KINDS
from tests.soak.slopes import HOUR_S, Tolerance
from tests.support.environment import ROOT

END = {"done": 100, "missed": 0, "errors": [], "left": {}, "store_left": 0}
NONE = Tolerance(per_hour=1.0, in_all=0.0)


def series(of: Callable[[float], float], noise: float = 0.0, count: int = 720) -> list[tuple[float, float]]:
    """An hour, in which a value depends on the part of it that is over."""
    chance = random.Random(7)
    return [(number * HOUR_S / count, of(number / count) + chance.gauss(0, noise)) for number in range(count)]


def slope(of: Callable[[float], float], noise: float = 0.0) -> slopes.Slope:
    found = slopes.slope(slopes.blocks(series(of, noise), 0, HOUR_S), HOUR_S)
    assert found is not None
    return found


def test_what_is_flat_has_no_slope() -> None:
    """Without noise there is nothing to doubt; with it, the interval says how much there is, and is narrower than the noise."""
    assert slope(lambda _: 50.0) == (0, 0, 0)
    found = slope(lambda _: 50.0, noise=1.0)
    assert found.low < 0 < found.high
    assert found.high - found.low < 2
    assert not slopes.grows(found, NONE.per_hour)


def test_what_grows_is_found_with_its_slope() -> None:
    """Also within noise that is half as large as all that it grows by."""
    assert slope(lambda part: 50 + 3 * part) == pytest.approx((3, 3, 3))
    found = slope(lambda part: 50 + 3 * part, noise=1.5)
    assert found.low < 3 < found.high
    assert slopes.grows(found, NONE.per_hour)


def test_less_than_the_tolerance_does_not_count() -> None:
    """And the tolerance of a short run is what one run may show."""
    assert not slopes.grows(slope(lambda part: 0.9 * part), NONE.per_hour)
    tolerance = Tolerance(per_hour=1.0, in_all=0.5)
    assert tolerance.over(HOUR_S) == 1.0
    assert tolerance.over(600) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "of",
    [
        lambda part: 50 + 20 * (part > 0.5),
        lambda part: 50 + 20 * (part > 0.2),
        lambda part: 50 + 500 * (abs(part - 0.7) < 0.01),
        lambda part: 50 + 500 * (part > 0.97),
        lambda part: 50 + 5 * math.sin(20 * part),
        lambda part: 50 - 20 * part,
    ],
    ids=["a step", "an early step", "a peak", "a peak at the end", "waves", "falling"],
)
def test_what_does_not_go_on_growing_is_no_growth(of: Callable[[float], float]) -> None:
    """Steps, peaks and waves."""
    assert not slopes.grows(slope(of, noise=0.5), NONE.per_hour)


def test_stairs_are_growth() -> None:
    """Many steps, as of an allocator that takes a megabyte at a time."""
    assert slopes.grows(slope(lambda part: 50 + math.floor(10 * part), noise=0.1), NONE.per_hour)


def test_what_happens_to_both_sides_counts_for_neither() -> None:
    """A machine that gets slower: each side seems to grow, the difference is flat."""
    control = slopes.blocks(series(lambda part: 1 + 2 * part + math.sin(9 * part)), 0, HOUR_S)
    ours = slopes.blocks(series(lambda part: 2 + 2 * part + math.sin(9 * part), noise=0.1), 0, HOUR_S)
    more = slopes.slope(slopes.difference(ours, control), HOUR_S)
    assert more is not None
    assert more.low < 0 < more.high
    assert slopes.difference({1: 5.0, 2: 7.0}, {2: 1.0, 3: 1.0}) == {2: 6.0}


def test_a_series_is_cut_after_the_warm_up() -> None:
    """Into blocks of equal time; those with too few values are left out, and too few blocks say nothing."""
    rising = [(float(number), float(number)) for number in range(320)]
    found = slopes.blocks(rising, 160, 320)
    assert len(found) == slopes.BLOCKS
    assert found[0] == 164.5  # of 160 to 169
    assert slopes.blocks([*rising[:200], *rising[205:210]], 160, 320, least=6).keys() == {0, 1, 2, 3}
    assert slopes.slope(dict.fromkeys(range(slopes.LEAST_BLOCKS - 1), 1.0), 160) is None
    assert slopes.quantile([5, 1, 4, 2, 3], 0.5) == 3
    assert slopes.quantile(range(1, 201), 0.99) == 198


def sides(ours: dict[str, Any], control: dict[str, Any], **calls: Callable[[float], float]) -> tuple[Side, Side]:
    """Two sides with these figures, and calls of each name on our side; the control's stay the same."""
    chance = random.Random(5)
    flat = {name: [(at, chance.uniform(0.001, 0.002)) for at, _ in series(lambda _: 0, count=3000)] for name in calls}
    slower = {name: [(at, of(at / HOUR_S) * value) for at, value in flat[name]] for name, of in calls.items()}
    return (
        Side({name: series(of, 0.2) for name, of in ours.items()}, slower, dict(END)),
        Side({name: series(of, 0.2) for name, of in control.items()}, flat, dict(END)),
    )


def verdicts(ours: Side, control: Side) -> Report:
    return judge(Parameters(), ours, control)


def test_the_verdict_is_by_comparison_with_the_control() -> None:
    """What grows on both sides is Ray's; what grows on ours only, or more, is not. What only we have is compared, too."""
    both = {"memory, driver": lambda part: 50 + 30 * part, "memory, registry": lambda part: 50 + 5 * part}
    own = {
        "memory, relays": lambda part: 50 + 5 * part,
        "leases, live": lambda part: 20 * part,
        "threads, relays": lambda _: 9,
    }
    found = verdicts(*sides({**both, **own}, {**both, "threads, registry": lambda _: 20}))
    assert found.grown() == ["leases, live"]
    assert not found.is_flat()
    more = {**both, "memory, driver": lambda part: 50 + 33 * part}
    found = verdicts(*sides(more, both))
    assert found.grown() == ["memory, driver"]
    [row] = [row for row in found.rows if row.grows]
    assert row.more.low < 3 < row.more.high
    assert row.control is not None
    assert row.control.low < 30 < row.control.high
    assert "GROWS" in str([list(column.cells) for column in found.table().columns])


def test_latencies_are_compared_by_ratio() -> None:
    """Calls that take half as long again after an hour are found, by their median and by their tail."""
    found = verdicts(*sides({}, {}, dumps=lambda part: 3 + 1.5 * part, loads=lambda _: 10.0))
    assert found.grown() == ["dumps, median", "dumps, p99"]
    assert {row.name for row in found.rows} == {
        f"{name}, {which}" for name in ("dumps", "loads") for which in ("median", "p99")
    }
    assert verdicts(*sides({}, {}, dumps=lambda part: 3 + 0.2 * part)).is_flat()


@pytest.mark.parametrize(
    "end",
    [
        {"errors": ["take: LeaseLostError()"]},
        {"left": {"left": ["a lease"]}},
        {"left": {"grown": {"driver: x._y": [3, 300]}}},
        {"store_left": 100_000},
    ],
)
def test_what_fails_or_is_left_fails_the_soak(end: dict[str, Any]) -> None:
    """Calls, leases, containers, bytes in the store."""
    ours, control = sides({"memory, driver": lambda _: 50}, {"memory, driver": lambda _: 50})
    assert verdicts(ours, control).is_flat()
    ours.end |= end
    found = verdicts(ours, control)
    assert not found.is_flat()
    assert len(found.failed) == 1
    assert found.failed[0] in found.summary()
    assert json.loads(found.to_json())["failed"] == found.failed


@pytest.mark.parametrize(
    ("command", "played"),
    [
        ("ray::SafeRefsRegistry", "registry"),
        ("ray::SafeRefsRelay.lend", "relays"),
        ("ray::Keeper.keep", "registry"),
        ("ray::IDLE", "workers"),
        ("ray::safe_refs.duplicate", "workers"),
        ("/lib/ray/core/src/ray/raylet/raylet --x=/gcs_server", "raylet"),
        ("/lib/ray/core/src/ray/gcs/gcs_server --x", "gcs_server"),
        ("python log_monitor.py", ""),
    ],
)
def test_processes_are_known_by_their_command_lines(command: str, played: str) -> None:
    """Each has its part."""
    assert processes.part(command) == played


def test_a_process_is_seen_with_its_memory_threads_and_files() -> None:
    """This one, and one that it has started."""
    before, over = processes.has(os.getpid()), threading.Event()
    held, file = b"\1" * 40_000_000, os.open("/dev/null", os.O_RDONLY)
    thread = threading.Thread(target=over.wait)
    thread.start()
    after = processes.has(os.getpid())
    over.set()
    thread.join()
    os.close(file)
    assert after["memory"] - before["memory"] == pytest.approx(len(held) / 1e6, rel=0.2)
    assert {name: after[name] - before[name] for name in ("threads", "files")} == {"threads": 1, "files": 1}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in processes.family(os.getpid())
        assert processes.Watch(os.getpid()).look()["processes, all"] >= 2
        child.kill()


def test_both_sides_do_the_same_rounds() -> None:
    """Each kind of round is there on each side."""
    for kind in (*KINDS, "passing"):
        assert callable(getattr(Ours, kind))
        assert callable(getattr(Control, kind))


ENOUGH = 140  # rounds, of 200


def soak(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """A soak in a process of its own: its exit status, its report, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *arguments, "--json", str(folder / "report.json"), "--log", str(folder / "log")],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    said = f"{done.stdout}\n{done.stderr}\n{(folder / 'log').read_text()[-4000:]}"
    assert done.returncode in (0, 1), said
    return done.returncode, json.loads((folder / "report.json").read_text()), said


def test_a_few_seconds_say_how_they_went(tmp_path: Path) -> None:
    """All kinds of rounds, on both sides: none fails, and nothing is left at the end. What grows takes longer to tell."""
    _, report, said = soak(tmp_path, "--seconds", "5", "--rate", "20", "--without-filling", "--slack", "30")
    assert [each for each in report["failed"] if not each.startswith("container: ")] == [], said
    assert min(report["rounds"]) >= 2 * len(KINDS), said
    assert {"memory, registry", "threads, borrower", "files, borrower"} <= {row["name"] for row in report["rows"]}, said


@pytest.mark.long
@pytest.mark.timeout(300)
def test_planted_leaks_are_found_in_a_short_soak(tmp_path: Path) -> None:
    """A leak of each kind, in the registry and in a borrower: memory, time, threads and files; and nothing else grows as fast."""
    for seconds in ("8", "24"):
        status, report, said = soak(
            tmp_path,
            *("--seconds", seconds, "--rate", "25", "--without-filling", "--slack", "10"),
            *("--kinds", "take", "borrow"),
            *("--plant", "memory", "latency", "threads", "files"),
        )
        if report["rounds"][0] >= ENOUGH:  # what is planted grows with the rounds, of which a busy machine makes few
            break
    assert status == 1, said
    grown = set(report["grown"])
    assert {"memory, registry", "threads, borrower", "files, borrower"} <= grown, said
    # On a busy machine the control's noise may be too much for a verdict: here our own slope decides, if there were enough rounds.
    slower = [row for row in report["rows"] if row["name"] in ("take, median", "round, median") and row["ours"][1] > 0]
    assert slower or report["rounds"][0] < ENOUGH, said
    assert {name for name in grown if report_unit(report, name) != "ms"} <= {
        *("memory, registry", "threads, borrower", "files, borrower", "memory, borrower"),
    }, said
    assert [each for each in report["failed"] if not each.startswith("container: ")] == [], said
    assert any("parts.ended.closure" in each for each in report["failed"]), said
    assert any("threads planted" in each for each in report["failed"]), said


def report_unit(report: dict[str, Any], name: str) -> str:
    return next(str(row["unit"]) for row in report["rows"] if row["name"] == name)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_minute_is_flat(tmp_path: Path) -> None:
    """Nothing grows, fails or is left, after a warm-up of twenty seconds; what one run may show is wider for that."""
    status, report, said = soak(tmp_path, "--seconds", "75", "--warm-up", "0.3", "--slack", "3")
    assert status == 0, said
    assert report["rounds"][0] > 500
    names = {row["name"] for row in report["rows"]}
    for played in ("driver", "registry", "relays", "copy owner", "borrower", "workers", "raylet", "gcs_server"):
        assert {f"{what}, {played}" for what in ("memory", "threads", "files")} <= names, names
    assert {"store, bytes", "leases, live", "processes, all", "dumps, median", "release, median"} <= names

"""The leak benchmark, in a short form: what it says of the four ways, and that its report and picture can be relied on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need the extra `bench`")

from benchmarks.leak.__main__ import fault
from benchmarks.leak.figures import Report
from benchmarks.leak.picture import draw
from benchmarks.leak.table import for_markdown
from tests.support.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS, HANDOVERS, SIZE = 2, 10, 5_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A short run: its JSON, and the folder that it wrote to. What is handed over in all is more than the store holds."""
    out = tmp_path_factory.mktemp("leak")
    sizes = ["--rounds", str(ROUNDS), "--handovers", str(HANDOVERS), "--size", str(SIZE), "--store", "80000000"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.leak", *sizes, "--patience", "1", "--quiet", "2", "--out", str(out), "--json", "-"],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"the benchmark failed:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout), out


def way(run: tuple[Any, Path], name: str) -> Any:
    (found,) = [each for each in run[0]["ways"] if each["way"] == name]
    assert found["handed_over"] == ROUNDS * HANDOVERS
    return found


@pytest.mark.long
def test_plain_pickle_loses_all(run: tuple[Any, Path]) -> None:
    """Of references that went through plain pickle not one leads to its object, and no byte is left."""
    figures = way(run, "pickle")
    assert figures["lost"] == ROUNDS * HANDOVERS
    assert figures["let_go"]["pinned_bytes"] == 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["ray.cloudpickle", "home-made registry"])
def test_the_usual_ways_leak_all(run: tuple[Any, Path], name: str) -> None:
    """`ray.cloudpickle` and a registry that never forgets lose nothing and keep everything, on disk what memory can't hold."""
    figures = way(run, name)
    assert figures["lost"] == 0
    after_each = [each["pinned_bytes"] for each in figures["rounds"]]
    assert after_each == pytest.approx([HANDOVERS * SIZE, 2 * HANDOVERS * SIZE], rel=0.01)
    assert figures["let_go"]["pinned_bytes"] == pytest.approx(ROUNDS * HANDOVERS * SIZE, rel=0.01)
    assert figures["let_go"]["disk_bytes"] > 0
    assert figures["let_go"]["spilled_bytes"] > 0


@pytest.mark.long
def test_safe_refs_neither_loses_nor_leaks(run: tuple[Any, Path]) -> None:
    """By safe_refs every object arrives, is held while its payload is under way, and is gone once it is released."""
    figures = way(run, "safe_refs")
    assert figures["lost"] == 0
    assert figures["lost_because"] == {}
    for reading in figures["under_way"]:
        assert reading["pinned_bytes"] == pytest.approx(HANDOVERS * SIZE, rel=0.01)
    for reading in [*figures["rounds"], figures["let_go"], figures["workers_died"]]:
        assert reading["pinned_bytes"] == 0
        assert reading["spilled_bytes"] == 0


@pytest.mark.long
def test_the_run_leaves_its_report_and_picture(run: tuple[Any, Path]) -> None:
    """A run leaves JSON that reads back as the same report, the table, an SVG and a PNG, and names neither host nor folder."""
    fields, out = run
    text = (out / "leak.json").read_text()
    assert json.loads(text) == fields
    assert Report.from_json(text).to_json() == text
    assert str(out) not in text
    assert str(ROOT) not in text
    assert "<svg" in (out / "leak.svg").read_text()
    assert (out / "leak.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "leak.md").read_text() == for_markdown(Report.from_json(text))


def test_the_picture_of_a_report_is_always_the_same(tmp_path: Path) -> None:
    """Drawing a report twice gives the same SVG to the byte, so that git shows a change only where a figure has changed."""
    report = Report.from_json((RESULTS / "leak.json").read_text())
    (tmp_path / "again").mkdir()
    assert draw(report, tmp_path)[0].read_bytes() == draw(report, tmp_path / "again")[0].read_bytes()


def test_a_leak_or_a_loss_fails_the_run() -> None:
    """The benchmark's exit status tells when safe_refs lost or leaked anything, be it one object or one byte."""
    report = Report.from_json((RESULTS / "leak.json").read_text())
    assert fault(report) == ""
    *others, ours = report.ways
    for change in ({"lost": 1}, {"memory_bytes": 1}, {"disk_bytes": 1}):
        reading = dataclasses.replace(ours.let_go, **change)
        spoilt = dataclasses.replace(report, ways=[*others, dataclasses.replace(ours, let_go=reading)])
        assert fault(spoilt)
    empty = [dataclasses.replace(each, memory_bytes=0, disk_bytes=0) for each in ours.under_way]
    blind = dataclasses.replace(report, ways=[*others, dataclasses.replace(ours, under_way=empty)])
    assert fault(blind), "a measurement that sees nothing while objects are held must not pass"


def test_the_readme_shows_the_last_run() -> None:
    """The table in benchmarks/README.md is the one that was measured, to the figure."""
    report = Report.from_json((RESULTS / "leak.json").read_text())
    assert (RESULTS / "leak.md").read_text() == for_markdown(report)
    assert for_markdown(report) in (ROOT / "benchmarks" / "README.md").read_text()

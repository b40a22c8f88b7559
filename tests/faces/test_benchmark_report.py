"""The report of `make bench`: what it says of targets, and that each part of it runs, in a short form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("proxystore", reason="the benchmarks need the extra `bench`")

from benchmarks.lines import Line, Section
from benchmarks.report import PARTS, as_markdown
from tests.support.environment import ROOT

SECTIONS = {
    "plain": {"Objects without references"},
    "references": {
        "Borrowed references",
        "References, out and in",
        "Many at once, and without waiting",
        "Importing",
    },
    "handover": {"Handing over a value"},
    "memory": {"Memory over time"},
    "million": {"A million leases"},
    "durable": {"Durable copies"},
    "room": {"Room and first calls"},
}


def test_a_target_is_missed_beyond_a_tenth() -> None:
    """In the report as in the exit status: met, within a tenth, or missed; rates are to be high, ratios low."""
    lines = {
        "met": Line("a ÷ b", 1.0, 0.9, 1.1, "times", 1.0),
        "near": Line("c ÷ d", 1.09, 1.0, 1.2, "times", 1.0),
        "off": Line("e ÷ f", 1.2, 1.1, 1.3, "times", 1.0),
        "fast": Line("leases", 20_000.0, 19_000.0, 21_000.0, "/s", 15_000, at_most=False),
        "slow": Line("leases, too", 13_000.0, 12_000.0, 14_000.0, "/s", 15_000, at_most=False),
        "shown": Line("g ÷ h", 7.0, 6.0, 8.0, "times"),
    }
    assert [name for name, line in lines.items() if line.missed] == ["off", "slow"]
    text = as_markdown([Section("Title", "Text.", list(lines.values()))], {"cores": "2"})
    rows = [row for row in text.splitlines() if row.startswith(tuple(f"| {line.what} |" for line in lines.values()))]
    assert [row.split("|")[-2].strip() for row in rows] == [
        "met",
        "within a tenth",
        "**missed**",
        "met",
        "**missed**",
        "",
    ]
    assert "| leases | 20,000/s | 19,000 to 21,000 | ≥ 15,000/s | met |" in rows


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.long if part == "plain" else pytest.mark.slow) for part in PARTS]
)
def test_each_part_writes_its_report(tmp_path: Path, part: str) -> None:
    """RESULTS.md, the figures as JSON, and the pictures that the report shows; figures of all sections, none without its spread."""
    command = [sys.executable, "-m", "benchmarks.report", "--rounds", "20", "--only", part, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figures = json.loads((tmp_path / "results" / "bench.json").read_text())
    assert {section["title"] for section in figures["sections"]} == SECTIONS[part]
    assert figures["machine"]["ray"]
    text = (tmp_path / "RESULTS.md").read_text()
    for section in figures["sections"]:
        assert section["lines"]
        for line in section["lines"]:
            assert line["low"] <= line["value"] <= line["high"], line
            assert f"| {line['what']} |" in text
        if section["picture"]:
            assert (tmp_path / "results" / section["picture"]).read_bytes().startswith(b"<?xml")

"""`make bench`: each promise of speed, measured against what one would use instead, in one report.

Writes RESULTS.md, and the figures as JSON and pictures to results/. Run as
`python -m benchmarks.report [--rounds N] [--only PART ...] [--out DIR] [--check]`; with `--check` nothing is written, and the exit
status is 1 if a target is missed by more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.lines import Line, Section

HERE = Path(__file__).resolve().parent
PICTURES = "results"
_USUAL = 1000  # rounds


def _plain(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import plain

    return [plain.measure(max(7, rounds // 40))], {}


def _references(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import speed

    return list(speed.measure(rounds)), {}


def _handover(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import handover

    section = handover.measure(rounds / _USUAL)
    return [section], {section.picture: handover.bars(section)}


def _memory(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import mapreduce

    section, curves = mapreduce.measure(max(2, 5 * rounds // _USUAL))
    section = dataclasses.replace(section, picture="memory.svg")
    return [section], {section.picture: curves}


def _million(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import million

    return [million.measure(1000 * rounds, max(2, 7 * rounds // _USUAL))], {}


def _durable(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import durable

    return [durable.measure(rounds / _USUAL)], {}


def _room(rounds: int) -> tuple[list[Section], dict[str, Any]]:
    from benchmarks import room

    return [room.measure(max(2, 5 * rounds // _USUAL))], {}


PARTS: dict[str, Callable[[int], tuple[list[Section], dict[str, Any]]]] = {
    "plain": _plain,
    "references": _references,
    "handover": _handover,
    "memory": _memory,
    "million": _million,
    "durable": _durable,
    "room": _room,
}


def where() -> dict[str, str]:
    """The machine and the versions."""
    rows = {name: str(value) for name, value in machine().items()}
    for package in ("proxystore", "redis", "numpy"):
        rows[package] = importlib.metadata.version(package)
    rows["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    rows["system"] = f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"
    rows["load average before"] = f"{os.getloadavg()[0]:.1f}"
    rows["date"] = time.strftime("%Y-%m-%d")
    return rows


def as_text(line: Line) -> tuple[str, str, str, str]:
    """A line's value, its interquartile range, its target, and whether the target was met."""
    form = "{:,.0f}" if line.unit in ("/s", "bytes") else "{:,.3f}" if abs(line.value) < 10 else "{:,.1f}"
    unit = "" if line.unit == "times" else f" {line.unit}" if line.unit != "/s" else "/s"
    target = "" if line.target is None else f"{'≤' if line.at_most else '≥'} {line.target:,g}{unit}"
    verdict = (
        "" if line.target is None else "**missed**" if line.missed else "met" if _is_met(line) else "within a tenth"
    )
    spread = f"{form.format(line.low)} to {form.format(line.high)}"
    return form.format(line.value) + unit, spread, target, verdict


def _is_met(line: Line) -> bool:
    assert line.target is not None  # noqa: S101 # for mypy
    return line.value <= line.target if line.at_most else line.value >= line.target


def as_markdown(sections: list[Section], machine: dict[str, str]) -> str:
    """The report."""
    rows = ["# Results of `make bench`", "", "Made by `python -m benchmarks.report`; not edited by hand.", ""]
    rows += ["| | |", "| :-- | :-- |", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    rows += [
        "Two things are measured alternately. Each figure is the median of the paired ratios, with the interquartile range. A target",
        "is *missed* if the figure is off by more than a tenth: a shared machine cannot show less.",
        "",
    ]
    for section in sections:
        rows += [f"## {section.title}", "", section.text, ""]
        rows += ["| what | value | interquartile range | target | |", "| :-- | --: | --: | --: | :-- |"]
        rows += [f"| {line.what} | {' | '.join(as_text(line))} |" for line in section.lines]
        rows.append("")
        if section.picture:
            rows += [f"![{section.title}]({PICTURES}/{section.picture})", ""]
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the report, and say whether the targets were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_USUAL, help="rounds of small calls; other rounds scale with it")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--out", type=Path, default=HERE, metavar="DIR", help="where RESULTS.md and results/ are written"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; the exit status says whether the targets were met"
    )
    chosen = parser.parse_args(argv)
    machine, sections = where(), list[Section]()
    drawn: dict[str, Any] = {}
    for part in chosen.only:
        found, pictures = PARTS[part](chosen.rounds)
        sections += found
        drawn |= pictures
        for section in found:
            print(f"\n{section.title}")
            for line in section.lines:
                value, spread, target, verdict = as_text(line)
                print(f"  {line.what:72} {value:>14}  ({spread})  {target} {verdict.strip('*')}", flush=True)
    missed = [line for section in sections for line in section.lines if line.missed]
    print(f"\n{len(missed)} target(s) missed by more than a tenth")
    if not chosen.check:
        from benchmarks.pictures import draw

        folder = chosen.out / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        draw(drawn, folder)
        (chosen.out / "RESULTS.md").write_text(as_markdown(sections, machine), encoding="utf-8")
        figures = {"machine": machine, "sections": [dataclasses.asdict(section) for section in sections]}
        (folder / "bench.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

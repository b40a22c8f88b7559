"""`python -m benchmarks.leak`: each way in a process and a Ray of its own, then the table, the JSON and the picture.

Exit status 1 says that safe_refs lost or leaked something; 2 that a run failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from .figures import Parameters, Report, Result
from .picture import draw
from .table import for_markdown, for_terminal
from .ways import WAYS

ROOT = Path(__file__).resolve().parents[2]
_STARTS_S = 60.0  # a Ray and three workers take up to 10 s to start on an idle machine


class RunError(Exception):
    """The run of one way failed; the message has what it printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    parameters = Parameters(
        rounds=options.rounds,
        handovers=options.handovers,
        size_bytes=options.size,
        store_bytes=options.store,
        patience_s=options.patience,
        quiet_s=options.quiet,
    )
    errors = Console(stderr=True)
    try:
        report = measure_all(parameters, errors)
    except RunError as failure:
        errors.print(str(failure), markup=False, highlight=False)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "leak.json").write_text(report.to_json())
    (options.out / "leak.md").write_text(for_markdown(report))
    draw(report, options.out)
    if options.json:
        sys.stdout.write(report.to_json())
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(for_terminal(report))
    complaint = fault(report)
    if complaint:
        errors.print(complaint, markup=False, highlight=False)
    return 1 if complaint else 0


def fault(report: Report) -> str:
    """What is wrong with safe_refs' figures: an object lost, or bytes pinned when no reference was left. Empty if nothing.

    A store that shows nothing even while payloads are under way is a fault too: such a measurement couldn't show a leak.
    """
    ours = next(each for each in report.ways if each.way == "safe_refs")
    if ours.lost or ours.let_go.pinned_bytes:
        why = f" {ours.lost_because}" if ours.lost_because else ""
        return f"safe_refs lost {ours.lost} objects{why} and left {ours.let_go.pinned_bytes} bytes pinned"
    if not all(each.pinned_bytes for each in ours.under_way):
        return "the store showed nothing pinned while payloads were under way: this Ray doesn't report what is measured here"
    return ""


def measure_all(parameters: Parameters, progress_on: Console) -> Report:
    """Run every way, one after the other.

    Raises:
        RunError: one of the runs failed.
    """
    results = []
    with Progress(console=progress_on, transient=True) as progress:
        task = progress.add_task("", total=len(WAYS))
        for way in WAYS:
            progress.update(task, description=way)
            results.append(measure_one(way, parameters))
            progress.advance(task)
    return Report(
        made_on=datetime.now(timezone.utc).date().isoformat(),
        python=platform.python_version(),
        ray=version("ray"),
        safe_refs=version("safe-refs"),
        cores=len(os.sched_getaffinity(0)),
        parameters=parameters,
        ways=results,
    )


def measure_one(way: str, parameters: Parameters) -> Result:
    """Run one way in a process of its own.

    Raises:
        RunError: it failed, or took far longer than its waits allow for.
    """
    waits = 2 * parameters.rounds + 2
    limit_s = _STARTS_S + waits * (20 + parameters.handovers * parameters.patience_s)
    with tempfile.TemporaryDirectory(prefix="leak-") as folder:
        output = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks.leak.one_way", way, json.dumps(asdict(parameters)), str(output)]
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"{way}: no result within {limit_s:g} s") from None
        if run.returncode:
            raise RunError(f"{way}: failed with status {run.returncode}\n{run.stdout}\n{run.stderr}")
        return Result.from_fields(json.loads(output.read_text()))


def _environment() -> dict[str, str]:
    """This process's, with Ray's and safe_refs' settings at their defaults: what people get who set nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SAFE_REFS_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    usual = Parameters()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leak", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=_count, default=usual.rounds, help="rounds of hand-overs")
    parser.add_argument("--handovers", type=_count, default=usual.handovers, help="objects handed over in each round")
    parser.add_argument("--size", type=_count, default=usual.size_bytes, help="bytes of one object")
    parser.add_argument(
        "--store",
        type=_count,
        default=usual.store_bytes,
        help="bytes of the object store; Ray takes no less than 78643200",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=usual.patience_s,
        help="seconds without an object after which the rest of a round is lost",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=usual.quiet_s,
        help="seconds for which the store's figures must stand still",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="folder for leak.json, leak.md, leak.svg, leak.png",
    )
    parser.add_argument("--json", choices=["-"], help="print the JSON in place of the table")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())

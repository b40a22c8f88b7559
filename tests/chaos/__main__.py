"""`python -m tests.chaos`: a storm, then its report as a table, and as JSON where asked for.

Exit status 1 says that something was lost, early, leaked, hung or wrong; 2 that the storm itself failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .figures import Parameters
from .plan import draw_plan
from .rules import FIGURES
from .storm import storm


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    parameters = Parameters(
        seconds=options.seconds,
        seed=options.seed,
        shards=options.shards,
        replicas=options.replicas,
        nodes=options.nodes,
        anchored=not options.without_anchoring,
        plant=tuple(options.plant),
    )
    if options.plan:
        for action in draw_plan(parameters.seed, parameters.seconds):
            print(*action)
        return 0
    # Ray tells of each death, on whatever is there to write to. It may do so elsewhere: the report says what matters.
    errors = Console(file=os.fdopen(os.dup(2), "w"))
    ray_says = os.open(options.ray_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    out = Console(file=os.fdopen(os.dup(1), "w"), width=None if sys.stdout.isatty() else 140)
    os.dup2(ray_says, 1)
    os.dup2(ray_says, 2)
    try:
        report = storm(parameters, lambda text: errors.print(text, markup=False, highlight=False))
    except Exception:
        errors.print(traceback.format_exc(), markup=False, highlight=False)
        return 2
    if options.json:
        options.json.write_text(report.to_json(), encoding="utf-8")
    for trace in report.traces:
        out.print(trace, markup=False, highlight=False)
    out.print(report.table())
    return 0 if report.all_zero() else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    usual = Parameters()
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="how long the killer is at work")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the plan and the stories")
    parser.add_argument("--shards", type=int, default=usual.shards, help="of the registry")
    parser.add_argument("--replicas", type=int, default=usual.replicas, help="of each lease")
    parser.add_argument("--nodes", type=int, default=usual.nodes, help="of the cluster, with the head")
    parser.add_argument(
        "--without-anchoring",
        action="store_true",
        help="spare, and excuse, what anchoring is needed for: borrowers that die after dumps, shards that die one after the other",
    )
    parser.add_argument("--plant", nargs="*", choices=FIGURES, default=[], help="faults to plant, to see them found")
    parser.add_argument("--json", type=Path, help="write the report there, too")
    parser.add_argument("--ray-log", default=os.devnull, help="where what Ray prints goes")
    parser.add_argument("--plan", action="store_true", help="print the plan, and do nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.soak`: a soak, then its report as a table, and as JSON where asked for.

Exit status 1 says that something grows more than in the control, that a call failed, or that something is left; 2 that the soak
itself failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .plants import PLANTS
from .report import Parameters, judge
from .rounds import KINDS
from .run import run


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    parameters = Parameters(
        seconds=options.seconds,
        seed=options.seed,
        rate=options.rate,
        kinds=tuple(options.kinds),
        shards=options.shards,
        replicas=options.replicas,
        warm_up=options.warm_up,
        fills=not options.without_filling,
        plant=tuple(options.plant),
        against_itself=options.against_itself,
        slack=options.slack,
    )
    errors = Console(stderr=True)
    try:
        ours, control = run(parameters, options.log, lambda text: errors.print(text, markup=False, highlight=False))
        report = judge(parameters, ours, control)
        if control.end["errors"]:
            raise RuntimeError(f"calls of the control failed: {control.end['errors']}")
    except Exception:
        errors.print(traceback.format_exc(), markup=False, highlight=False)
        return 2
    if options.json:
        series = {"ours": ours.series, "control": control.series}
        options.json.write_text(report.to_json(series=series), encoding="utf-8")
    out = Console(width=None if sys.stdout.isatty() else 160)
    out.print(report.table())
    out.print(report.summary(), markup=False, highlight=False)
    return 0 if report.is_flat() else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    usual = Parameters()
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="how long it works")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the rounds' order and sizes")
    parser.add_argument("--rate", type=float, default=usual.rate, help="rounds a second, on each side")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="of rounds, to find what it is that grows"
    )
    parser.add_argument("--shards", type=int, default=usual.shards, help="of the registry")
    parser.add_argument("--replicas", type=int, default=usual.replicas, help="of each lease")
    parser.add_argument("--warm-up", type=float, default=usual.warm_up, help="the part of the time that isn't judged")
    parser.add_argument(
        "--without-filling", action="store_true", help="don't fill what is bounded before: a short soak"
    )
    parser.add_argument("--plant", nargs="*", choices=PLANTS, default=[], help="leaks to plant, to see them found")
    parser.add_argument("--against-itself", action="store_true", help="two controls, to see what is noise")
    parser.add_argument(
        "--slack", type=float, default=usual.slack, help="times what one run may show of noise: for a short one"
    )
    parser.add_argument("--json", type=Path, help="write the report there, too, with the series")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="where what Ray prints goes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

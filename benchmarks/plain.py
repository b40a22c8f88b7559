"""Objects without references, against `pickle` and `cloudpickle`."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import os
import pickle
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import cloudpickle

import safe_refs
from benchmarks.lines import Line, Section, ratio, spread
from benchmarks.shapes import Point

_INNER = 2000  # times that a small object is pickled for one reading


def measure(rounds: int) -> Section:
    """All objects, out and in.

    Args:
        rounds: readings of each.
    """
    lines: list[Line] = []
    gc.disable()  # its pauses belong to neither side
    try:
        for name, obj in plain_objects().items():
            lines += _small(name, obj, rounds) if name == "small dict" else _large(name, obj, rounds)
        lines += _of_main(rounds)
    finally:
        gc.enable()
    text = (
        "All with protocol 5. For a small dict the figure is the time beyond pickle's, in microseconds; the others are ratios. "
        "Pickle cannot carry objects of `__main__` and lambdas to another process, so they are compared with cloudpickle only."
    )
    return Section("Objects without references", text, lines)


def plain_objects() -> dict[str, Any]:
    """Objects without references, small and large."""
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    objects: dict[str, Any] = {
        "small dict": {"name": "x", "size": 3, "tags": ["a", "b"]},
        "10,000 dataclasses": [Point(n, str(n)) for n in range(10_000)],
        "10,000 Fractions": [Fraction(n, n + 1) for n in range(10_000)],
        "10,000 datetimes": [now + datetime.timedelta(seconds=n) for n in range(10_000)],
        "100,000 ints": list(range(100_000)),
        "nested dicts": {str(n): {"n": n, "inner": {"list": [n, n + 1]}} for n in range(5_000)},
        "16 MB of bytes": os.urandom(2**24),
    }
    try:
        import numpy as np
    except ModuleNotFoundError:
        pass
    else:
        objects["16 MB array"] = np.random.default_rng(0).random(2**21)
    return objects


def _small(name: str, obj: Any, rounds: int) -> list[Line]:
    data = pickle.dumps(obj, 5)
    return [
        _beyond(
            f"dumps: {name}, beyond pickle", lambda: safe_refs.dumps(obj), lambda: pickle.dumps(obj, 5), rounds, 1.0
        ),
        ratio(
            f"dumps: {name} ÷ cloudpickle",
            lambda: safe_refs.dumps(obj),
            lambda: cloudpickle.dumps(obj),
            rounds,
            1.0,
            inner=_INNER,
        ),
        _beyond(
            f"loads: {name}, beyond pickle", lambda: safe_refs.loads(data), lambda: pickle.loads(data), rounds, 0.5
        ),
    ]


def _beyond(what: str, step: Callable[[], Any], other: Callable[[], Any], rounds: int, target_us: float) -> Line:
    """How much longer a step takes than another, in microseconds; both are timed alternately."""
    found = []
    for number in range(rounds + 3):
        took = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            run = (step, other)[which]
            begun = time.perf_counter()
            for _ in range(_INNER):
                run()
            took[which] = (time.perf_counter() - begun) / _INNER * 1e6
        found.append(took[0] - took[1])
    return spread(what, found[3:], "µs", target_us)


def _large(name: str, obj: Any, rounds: int) -> list[Line]:
    data = pickle.dumps(obj, 5)
    return [
        ratio(f"dumps: {name} ÷ pickle", lambda: safe_refs.dumps(obj), lambda: pickle.dumps(obj, 5), rounds, 1.15),
        ratio(
            f"dumps: {name} ÷ cloudpickle", lambda: safe_refs.dumps(obj), lambda: cloudpickle.dumps(obj), rounds, 1.0
        ),
        ratio(f"loads: {name} ÷ pickle", lambda: safe_refs.loads(data), lambda: pickle.loads(data), rounds, 1.05),
    ]


def _of_main(rounds: int) -> list[Line]:
    mine: Any = dataclasses.make_dataclass("Mine", ["x", "y"])
    mine.__module__ = "__main__"
    main: Any = sys.modules["__main__"]
    main.Mine = mine
    few, many = mine(1, "a"), [mine(number, str(number)) for number in range(10_000)]
    lines = [
        ratio(
            f"dumps: {name} ÷ cloudpickle",
            lambda obj=obj: safe_refs.dumps(obj),  # type: ignore[misc] # mypy can't infer a lambda's default
            lambda obj=obj: cloudpickle.dumps(obj),  # type: ignore[misc] # likewise
            rounds,
            1.15,
            inner=inner,
        )
        for name, obj, inner in (
            ("an object of a class of __main__", few, 50),
            ("10,000 objects of a class of __main__", many, 1),
            ("a lambda", lambda x: x + 1, 200),
        )
    ]
    del main.Mine
    return lines

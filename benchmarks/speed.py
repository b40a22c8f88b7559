"""How fast many at once go: the targets of passing references on in bulk, by threads, and without waiting.

Each figure is a ratio of two things done in turn, as in `overhead`; rates are counts over the same run. Run as
`python -m benchmarks.speed [--rounds N] [--json FILE]`; exit status 1 if a target is missed by more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import pickle
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # or Ray replaces 127.0.0.1 by the machine's own address

import safe_refs
from benchmarks.overhead import compare, machine

SLACK = 1.1  # a target counts as missed beyond that


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: was measured.
        value: what came of it.
        low: 25th percentile of it, over the rounds.
        high: 75th percentile.
        unit: of the value: `times` for ratios, `/s` for rates, `ms`.
        target: what it should be at least or at most; None where nothing is promised.
        at_most: whether the target is the most; otherwise the least.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    target: float | None = None
    at_most: bool = True

    @property
    def missed(self) -> bool:
        """Whether it is off its target by more than a tenth."""
        if self.target is None:
            return False
        return self.value > self.target * SLACK if self.at_most else self.value * SLACK < self.target


def ratio(what: str, step: Callable[[], Any], other: Callable[[], Any], rounds: int, target: float) -> Line:
    """A step's time as a ratio to another's, done in turn."""
    figure = compare(what, step, "", other, rounds=rounds, target=target)
    return Line(what, figure.ratio, figure.low, figure.high, "times", target)


def spread(what: str, values: list[float], unit: str, target: float | None = None, *, at_most: bool = True) -> Line:
    """A figure of several rounds: the median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Line(what, middle, low, high, unit, target, at_most)


def with_ray(rounds: int) -> list[Line]:
    """All that needs a registry."""
    import ray

    @ray.remote(num_cpus=0)
    class Bare:
        def __init__(self) -> None:
            self.held: dict[bytes, Any] = {}

        def hold(self, call: tuple[bytes, Any]) -> None:
            self.held[call[0]] = call[1]

        def give(self, key: bytes) -> Any:
            return self.held[key]

    bare: Any = Bare.remote()  # type: ignore[attr-defined] # Ray's decorator hides it
    ref = ray.put(b"x" * 1000)
    many = [ray.put(number) for number in range(1000)]
    ray.get(bare.hold.remote((b"one", [ref])))
    ray.get(bare.hold.remote((b"many", many)))
    large = os.urandom(2**24)
    made: list[bytes] = []
    one, thousand = safe_refs.dumps(ref), safe_refs.dumps(many)
    made += [one, thousand]

    def pickle_and_call() -> None:
        pickle.dumps(large, 5)
        ray.get(bare.hold.remote((b"one", [ref])))

    few = max(15, rounds // 40)
    lines = [
        ratio(
            "dumps, 1 reference ÷ bare call",
            lambda: made.append(safe_refs.dumps(ref)),
            lambda: ray.get(bare.hold.remote((b"one", [ref]))),
            rounds,
            1.08,
        ),
        ratio(
            "loads, 1 reference ÷ bare call",
            lambda: safe_refs.loads(one),
            lambda: ray.get(bare.give.remote(b"one")),
            rounds,
            1.08,
        ),
        _released(
            "dumps, 1,000 references ÷ bare call",
            lambda: safe_refs.dumps(many),
            lambda: ray.get(bare.hold.remote((b"many", many))),
            few,
            0.4,
        ),
        ratio(
            "loads, 1,000 references ÷ bare call",
            lambda: safe_refs.loads(thousand),
            lambda: ray.get(bare.give.remote(b"many")),
            few,
            0.4,
        ),
        _released(
            "dumps, 16 MB and 1 reference ÷ pickle and bare call",
            lambda: safe_refs.dumps((large, ref)),
            pickle_and_call,
            few,
            1.15,
        ),
    ]
    safe_refs.release(made)
    lines += _pipelining(ref, few)
    lines += _threads(ref, few)
    lines += _bulk(ref, few)
    return lines


def _released(what: str, make: Callable[[], bytes], other: Callable[[], Any], rounds: int, target: float) -> Line:
    """The ratio of a `dumps` whose lease is released outside of the time that counts."""
    ratios = []
    for number in range(rounds + 3):
        took = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            payload = (make, other)[which]()
            took[which] = time.perf_counter() - begun
            if which == 0:
                safe_refs.release(payload)
        ratios.append(took[0] / took[1])
    return spread(what, ratios[3:], "times", target)


def _pipelining(ref: Any, rounds: int) -> list[Line]:
    """`wait=False`, for the caller against `ray.cloudpickle`, in all, and against waiting."""
    from ray import cloudpickle

    leaky: Any = cloudpickle.dumps
    obj = {"x": ref}
    count = 1000
    caller, rate, gain = [], [], []
    safe_refs.flush()
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(count):
            leaky(obj)  # it pins the object for good, which is one object here
        leaking = time.perf_counter() - begun
        begun = time.perf_counter()
        payloads = [safe_refs.dumps(obj, wait=False) for _ in range(count)]
        returned = time.perf_counter() - begun
        safe_refs.flush()
        held = time.perf_counter() - begun
        safe_refs.release(payloads)
        begun = time.perf_counter()
        payloads = [safe_refs.dumps(obj) for _ in range(50)]
        waiting = (time.perf_counter() - begun) / 50
        safe_refs.release(payloads)
        caller.append(returned / leaking)
        rate.append(count / held)
        gain.append(waiting / (held / count))
    return [
        spread("dumps(wait=False), for the caller ÷ ray.cloudpickle.dumps", caller, "times", 3.0),
        spread("dumps(wait=False), leases held", rate, "/s", 15_000, at_most=False),
        spread("dumps(wait=False), leases held ÷ waiting in one thread", gain, "times", 15.0, at_most=False),
    ]


def _threads(ref: Any, rounds: int) -> list[Line]:
    """Sixteen threads that wait, against one."""
    gains = []
    for _ in range(max(5, rounds // 3)):
        rates = []
        for threads in (1, 16):
            made: list[bytes] = []

            def work(made: list[bytes] = made) -> None:
                made.extend(safe_refs.dumps(ref) for _ in range(50))

            workers = [threading.Thread(target=work) for _ in range(threads)]
            begun = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            rates.append(len(made) / (time.perf_counter() - begun))
            safe_refs.release(made)
        gains.append(rates[1] / rates[0])
    return [spread("16 threads, waiting ÷ one thread", gains, "times", 5.0, at_most=False)]


def _bulk(ref: Any, rounds: int) -> list[Line]:
    """A thousand payloads at once, against one by one."""
    payloads = safe_refs.dumps_many([{"n": number, "ref": ref} for number in range(1000)])
    gains = []
    for _ in range(max(5, rounds // 3)):
        begun = time.perf_counter()
        safe_refs.loads_many(payloads)
        together = time.perf_counter() - begun
        begun = time.perf_counter()
        for payload in payloads[:100]:
            safe_refs.loads(payload)
        gains.append((time.perf_counter() - begun) * 10 / together)
    safe_refs.release(payloads)
    return [spread("loads_many of 1,000 ÷ one by one", gains, "times", 15.0, at_most=False)]


def imports(rounds: int) -> list[Line]:
    """What importing costs, in processes of their own."""

    def ms(code: str) -> float:
        program = f"import time\n{code.replace('BEGIN', 'begun = time.perf_counter()')}\nprint((time.perf_counter() - begun) * 1e3)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    return [
        spread("import safe_refs", [ms("BEGIN\nimport safe_refs") for _ in range(rounds)], "ms", 50.0),
        spread(
            "import safe_refs, after ray",
            [ms("import ray\nBEGIN\nimport safe_refs") for _ in range(rounds)],
            "ms",
            20.0,
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and say whether each target was met."""
    import ray

    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="runs of each call; a part of it for larger ones")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    chosen = parser.parse_args(argv)
    gc.disable()  # its pauses belong to neither side
    lines = imports(7)
    ray.init(
        num_cpus=2,
        object_store_memory=400 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        lines += with_ray(chosen.rounds)
    finally:
        ray.shutdown()
    print(" · ".join(f"{name} {value}" for name, value in machine().items()))
    for line in lines:
        target = "" if line.target is None else f"{'≤' if line.at_most else '≥'} {line.target:g}"
        print(
            f"{line.what:60} {line.value:12,.2f} {line.unit:3} ({line.low:,.2f} to {line.high:,.2f})  {target}"
            f"{' MISSED' if line.missed else ''}"
        )
    if chosen.json:
        with Path(chosen.json).open("w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "figures": [dataclasses.asdict(line) for line in lines]}, file, indent=1)
            file.write("\n")
    return int(any(line.missed for line in lines))


if __name__ == "__main__":
    sys.exit(main())

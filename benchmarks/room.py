"""What safe_refs takes of a machine: how long the first calls of a process take, and how many processes it has at rest.

Each round has a Ray of its own. The first `dumps` there starts the registry; those of a second driver find it running. Each is
compared with what any actor costs in the same moment: to start one and call it, or to call one for the first time.

At rest is when a number of seconds have passed without a call, longer than a relay waits for work.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safe_refs
from benchmarks.lines import Line, Section, small_ray, spread
from safe_refs.anchoring import relays

_RESTS_S = relays.STAYS_S + 5.0
_MB = 2**20

# A second driver: the first call of an actor that runs, the first `dumps`, and the first `loads`, in milliseconds.
_SECOND = """
import sys, time
import ray, safe_refs
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
ref = ray.put(1)
def timed(step):
    begun = time.perf_counter()
    made = step()
    print((time.perf_counter() - begun) * 1e3)
    return made
timed(lambda: ray.get(ray.get_actor("plain", namespace="plain").hello.remote()))
payload = timed(lambda: safe_refs.dumps(ref, wait=True))
timed(lambda: safe_refs.loads(bytes.fromhex(sys.argv[2])))
safe_refs.release(payload)
"""


class Plain:
    """An actor to compare with, and a borrower."""

    def hello(self) -> bool:
        """Answer."""
        return True

    def pin(self, refs: list[Any]) -> bytes:
        """Pin what was borrowed."""
        return safe_refs.dumps(refs[0])


def processes() -> list[int]:
    """The processes of our actors in this cluster.

    Private: Ray's table of actors has their process ids, seen in Ray 2.60.
    """
    import ray

    state: Any = ray._private.state
    rows = state.actors().values()
    return [row["Pid"] for row in rows if row["State"] == "ALIVE" and row["ActorClassName"].startswith("SafeRefs")]


def pss_mb(pids: list[int]) -> float:
    """Memory of processes, each page that several share divided among them, in MB."""
    rows = (Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids)
    return sum(int(row.split()[1]) for each in rows for row in each if row.startswith("Pss:")) * 1024 / _MB


def measure(rounds: int) -> Section:
    """All of it, in so many clusters, one after the other."""
    import ray

    found: dict[str, list[float]] = {}

    def note(what: str, value: float) -> None:
        found.setdefault(what, []).append(value)

    def at_rest(what: str) -> None:
        time.sleep(_RESTS_S)
        pids = processes()
        note(f"{what}: processes", len(pids))
        note(f"{what}: MB", pss_mb(pids))

    for _ in range(rounds):
        with small_ray():
            plain, starts = _timed(lambda: _answering(ray.remote(num_cpus=0)(Plain), "plain"))
            payload, took = _timed(lambda: safe_refs.dumps(ray.put(1), wait=True))
            note("start", took)
            note("start beside", starts)
            command = [sys.executable, "-c", _SECOND, ray.get_runtime_context().gcs_address, payload.hex()]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            bare, first, load = map(float, done.stdout.split())
            note("first dumps", first)
            note("first loads", load)
            note("first call", bare)
            at_rest("one lease")
            borrowed, took = _timed(partial(_pinned_by, plain, ray.put(2)))
            note("borrowed", took)
            at_rest("borrowed")
            durable = safe_refs.dumps(ray.put(3), durable=True)
            at_rest("durable")
            for each in (payload, borrowed, durable):
                safe_refs.release(each)
            safe_refs.shutdown(force=True)
    return Section("Room and first calls", TEXT, [*_first_calls(found), *_rest(found)])


TEXT = (
    "Each round has a Ray of its own. The first `dumps` starts the registry, and is compared with starting any actor and calling it. "
    f"Processes and their memory (PSS) are those of our own actors, {_RESTS_S:.0f} s after the last call."
)


def _first_calls(found: dict[str, list[float]]) -> list[Line]:
    ratios = [ours / theirs for ours, theirs in zip(found["start"], found["start beside"], strict=True)]
    return [
        spread("the first dumps in a cluster ÷ an actor that starts", ratios, "times"),
        spread("the first dumps in a cluster", found["start"], "ms"),
        spread("the first dumps of a process, where the registry runs", found["first dumps"], "ms"),
        spread("the first loads of a process", found["first loads"], "ms"),
        spread("an actor's first call by a process", found["first call"], "ms"),
        spread("a borrower's first dumps, which starts relays", found["borrowed"], "ms"),
    ]


def _rest(found: dict[str, list[float]]) -> list[Line]:
    lines = []
    for what, after in (
        ("one lease", "after a dumps and a loads"),
        ("borrowed", "after a dumps by a borrower"),
        ("durable", "after a durable dumps"),
    ):
        lines.append(spread(f"processes at rest, {after}", found[f"{what}: processes"], "processes", 2.0))
        lines.append(spread(f"their memory, {after}", found[f"{what}: MB"], "MB"))
    return lines


def _answering(class_: Any, name: str) -> Any:
    import ray

    actor = class_.options(name=name, namespace=name).remote()
    ray.get(actor.hello.remote())
    return actor


def _pinned_by(borrower: Any, ref: Any) -> Any:
    import ray

    return ray.get(borrower.pin.remote([ref]))


def _timed(step: Callable[[], Any]) -> tuple[Any, float]:
    """What a step gives, and how long it takes, in milliseconds."""
    begun = time.perf_counter()
    made = step()
    return made, (time.perf_counter() - begun) * 1e3


def main() -> None:
    """Print the lines."""
    for line in measure(3).lines:
        print(f"{line.what:60} {line.value:9.2f} {line.unit}  ({line.low:.2f} to {line.high:.2f})")


if __name__ == "__main__":
    main()

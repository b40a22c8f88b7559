"""One side, a process of its own: `python -m tests.soak.side '{"side": "ours", …}'`.

It starts its Ray and what it needs there, prints a line, waits for one on its standard input, and does its rounds. Meanwhile it
prints how long its calls took, and at the end what is left; each line is JSON, after a mark.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import tests.support.environment  # noqa: F401 # Ray reads the environment

# Ray's control service keeps a table of past tasks, up to 100,000 of them. It would fill through most of an hour, on both sides.
os.environ["RAY_task_events_report_interval_ms"] = "0"  # noqa: SIM112 # the name is Ray's

# isort: split
import ray

from safe_refs._ray.store import store_usage
from tests.support.cluster import LOCAL_RAY

from .calls import Calls
from .rounds import Rounds

MARK = "soak: "
RAY = {**LOCAL_RAY, "num_cpus": 2, "object_store_memory": 200_000_000}


def tell(**what: Any) -> None:
    print(MARK + json.dumps({"at": time.monotonic(), **what}), flush=True)


def make(options: dict[str, Any], calls: Calls) -> Rounds:
    """That side's rounds."""
    if options["side"] == "control":
        from .control import Control

        return Control(calls, options["seed"])
    from .ours import Ours  # the control imports none of it

    return Ours(
        calls,
        options["seed"],
        shards=options["shards"],
        replicas=options["replicas"],
        settles_s=min(20.0, options["seconds"] / 5),
        fills=options["fills"],
        planted=tuple(options["plant"]),
    )


def main() -> None:
    options = json.loads(sys.argv[1])
    ray.init(**RAY)
    calls = Calls()
    rounds = make(options, calls)
    rounds.prepare()
    tell(ready=os.getpid())
    sys.stdin.readline()
    begun = time.monotonic()
    looked = False

    def report() -> None:
        nonlocal looked
        if not looked and time.monotonic() - begun > options["warm_up_s"]:
            looked = True
            rounds.look()
        store = store_usage()
        figures = {"store, bytes": store.used_bytes, "store, objects": store.objects, **rounds.figures()}
        tell(calls=calls.news(), figures=figures)

    rounds.run(options["kinds"], options["seconds"], options["rate"], options["each_s"], report)
    left = rounds.finish()
    tell(done=rounds.done, missed=rounds.missed, errors=rounds.errors, left=left, store_left=store_usage().used_bytes)
    ray.shutdown()


if __name__ == "__main__":
    main()

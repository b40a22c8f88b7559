"""`python -m tests.interrupts.between ADDRESS MODE ROUNDS`: code that releases, in the middle of a release of the same thread.

The mode says what brings it: the collector, now and then ("destructor") or at every allocation, or a timer's signal.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
from typing import Any

import ray

import safe_refs


def main() -> None:
    address, mode, rounds = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    os.environ["SAFE_REFS_REGISTRY"] = f"between-{os.getpid()}"
    safe_refs.init(timeout=15)
    ref = ray.put(b"x" * 1000)
    payload = safe_refs.dumps(ref)
    took: list[float] = []
    failed: list[str] = []

    def release(what: bytes) -> None:
        begun = time.monotonic()
        try:
            safe_refs.release(what)
        except Exception as error:
            failed.append(repr(error))
        took.append(time.monotonic() - begun)

    class Holder:
        def __init__(self) -> None:
            self.payload = safe_refs.dumps(ref)
            self.me: Any = self

        def __del__(self) -> None:
            release(self.payload)

    def on(*_: object) -> None:
        release(payload)
        signal.setitimer(signal.ITIMER_REAL, 0.0053)

    if mode == "every allocation":
        gc.set_threshold(1, 100_000, 100_000)
    if mode == "signal":
        signal.signal(signal.SIGALRM, on)
        signal.setitimer(signal.ITIMER_REAL, 0.005)
    slowest_s = 0.0
    for _ in range(int(rounds)):
        if mode != "signal":
            Holder()
        each = safe_refs.dumps(ref)
        begun = time.monotonic()
        safe_refs.release(each)
        slowest_s = max(slowest_s, time.monotonic() - begun)
        if len(failed) > 3:
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.set_threshold(700, 10, 10)
    gc.collect()
    safe_refs.release(payload)
    stats = safe_refs.stats()
    left = stats.live_leases if stats else 0
    safe_refs.shutdown()
    found = {"nested": len(took), "slowest_s": max([slowest_s, *took]), "failed": failed, "left": left, "hung": []}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""`python -m tests.interrupts.checkpoint ADDRESS SECONDS`: a loop of calls, and a signal handler that calls `dumps`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time

import ray

import safe_refs


def main() -> None:
    os.environ["SAFE_REFS_TIMEOUT"] = "6"
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
    os.environ["SAFE_REFS_REGISTRY"] = f"checkpoint-{os.getpid()}"
    state = ray.put("state")
    safe_refs.release(safe_refs.dumps(state))
    saved: list[bytes] = []
    slowest_s = [0.0]
    failed: list[str] = []
    idle = threading.Event()
    is_over = False

    def save(*_: object) -> None:
        begun = time.monotonic()
        try:
            saved.append(safe_refs.dumps({"checkpoint": state}, ttl=60))
        except Exception as error:
            failed.append(repr(error))
        slowest_s[0] = max(slowest_s[0], time.monotonic() - begun)
        idle.set()

    def nudge() -> None:
        while not is_over:
            time.sleep(0.02)
            if idle.is_set():
                idle.clear()
                os.kill(os.getpid(), signal.SIGUSR1)

    idle.set()
    signal.signal(signal.SIGUSR1, save)
    thread = threading.Thread(target=nudge)
    thread.start()
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until and not failed:
        try:
            safe_refs.release(safe_refs.dumps({"batch": state}, ttl=60))
        except Exception as error:
            failed.append(f"the interrupted call: {error!r}")
    is_over = True
    thread.join()
    safe_refs.shutdown()
    print(json.dumps({"saved": len(saved), "slowest_s": slowest_s[0], "failed": failed, "hung": []}))


if __name__ == "__main__":
    main()

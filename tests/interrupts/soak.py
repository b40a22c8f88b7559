"""Random signals, threads at work, and a busy collector: whatever comes in between, nothing hangs and nothing is left behind.

    main thread   goes through the ways of `injector`, over and over; two signals come at random moments:
                  SIGUSR1, whose handler raises, as a time limit would, and SIGUSR2, whose handler calls safe_refs
    4 threads     the same ways, without signals; what they make and drop are circles with destructors that release payloads
    collector     runs at nearly every allocation, in whichever thread

`python -m tests.interrupts.soak ADDRESS SECONDS SEED` prints what it has counted, as JSON. It is a process of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

import ray

import safe_refs
from tests.support.cluster import as_actor

from .injector import OURS, TimeLimitError
from .ways import WAYS

HUNG_S = 10.0  # a call takes milliseconds, and a second on a busy machine
NAMES = ("dumps", "borrowed", "loads", "release", "take", "posted", "pin", "scope", "pipeline", "many", "pickler")


class Circle:
    """Garbage that only the collector finds, and that ends a lease then."""

    def __init__(self, payload: bytes, soak: Soak) -> None:
        self.payload, self.soak, self.me = payload, soak, self

    def __del__(self) -> None:
        with self.soak.timed("a destructor"):
            safe_refs.release(self.payload)


class Soak:
    """What is done, and its figures."""

    def __init__(self) -> None:
        self.calls = self.raised = self.handled = self.destroyed = 0
        self.slowest_s = 0.0
        self.failed: list[str] = []
        self.hung: list[str] = []
        self.is_over = False
        self._is_armed = False
        self._handlers = 0  # one in the other
        self._since: dict[tuple[int, int], tuple[float, str]] = {}  # by thread and depth: what it is in the middle of
        self._depth = threading.local()
        self._own = [ray.put(number) for number in range(4)]
        self._maker = as_actor(Maker).remote()
        self._borrowed: Any = ray.get(self._maker.make.remote(), timeout=60)[0]

    @contextlib.contextmanager
    def timed(self, what: str) -> Any:
        """A call of safe_refs, which is to end soon and well."""
        depth = getattr(self._depth, "now", 0)
        self._depth.now = depth + 1
        key = threading.get_ident(), depth
        begun = time.monotonic()
        self._since[key] = begun, what
        self.calls += 1
        try:
            yield
        except Exception as error:
            if not self.is_over:
                self.failed.append(f"{what}: {error!r}")
                traceback.print_exc()
        finally:
            self._depth.now = depth
            self._since.pop(key, None)
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    def work(self, seed: int, *, armed: bool = False) -> None:
        """Go through ways at random, until it is over."""
        mine = random.Random(seed)  # noqa: S311 # no secret
        while not self.is_over:
            name = mine.choice(NAMES)
            way = WAYS[name]
            ref = self._borrowed if way.borrows else mine.choice(self._own)
            begun, made = None, list[Any]()
            with self.timed(name):
                begun = way.begin(ref, made)
            with self.timed(name):
                try:
                    self._is_armed = armed or self._is_armed
                    way.act(begun, made)
                except TimeLimitError:
                    self.raised += 1
                finally:
                    self._is_armed = self._is_armed and not armed
            with self.timed(name):
                safe_refs.release(made)
            if mine.random() < 0.3:
                with self.timed("a circle"):
                    Circle(safe_refs.dumps(ref), self)

    def on_raise(self, number: int, frame: FrameType | None) -> None:
        """Raise in the middle of one of our calls, once; what was returned is the caller's, and a destructor is left alone."""
        is_inside = False
        while self._is_armed and frame is not None:
            if frame.f_code is Circle.__del__.__code__:
                return
            is_inside = is_inside or frame.f_code.co_filename.startswith(OURS)
            frame = frame.f_back
        if is_inside and self._is_armed:
            self._is_armed = False
            raise TimeLimitError

    def on_call(self, number: int, frame: FrameType | None) -> None:
        """Call safe_refs in the middle of whatever it is, also of another handler's call."""
        if self._handlers == 2:
            return
        was_armed, self._is_armed = self._is_armed, False
        self.handled, self._handlers = self.handled + 1, self._handlers + 1
        with self.timed("a handler"):
            payload = safe_refs.dumps(self._own)
            safe_refs.loads(payload)
            safe_refs.release(payload)
        self._is_armed, self._handlers = was_armed, self._handlers - 1

    def send(self, seed: int) -> None:
        """Send signals to the main thread, at random moments."""
        mine = random.Random(seed)  # noqa: S311 # no secret
        main = threading.main_thread().ident or 0
        while not self.is_over:
            time.sleep(mine.expovariate(1 / 0.01))
            signal.pthread_kill(main, mine.choice((signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2)))

    def watch(self) -> None:
        """See what hangs."""
        while not self.is_over:
            time.sleep(1)
            now = time.monotonic()
            for key, (begun, what) in list(self._since.items()):
                if now - begun > HUNG_S:
                    self.hung.append(f"{what}: for more than {HUNG_S:g} s")
                    self._since.pop(key, None)
                    faulthandler.dump_traceback()


class Maker:
    """Owns what others borrow."""

    def make(self) -> list[Any]:
        self.ref = ray.put("borrowed")
        return [self.ref]


def main() -> None:
    address, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    faulthandler.dump_traceback_later(seconds + 120, exit=True)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    os.environ["SAFE_REFS_REGISTRY"] = f"soak-{os.getpid()}"
    safe_refs.init()
    safe_refs.release(safe_refs.dumps(ray.put(1)))
    soak = Soak()
    gc.set_threshold(50, 2, 2)
    signal.signal(signal.SIGUSR1, soak.on_raise)
    signal.signal(signal.SIGUSR2, soak.on_call)
    threads = [threading.Thread(target=soak.work, args=(seed * 100 + number,), daemon=True) for number in range(4)]
    threads += [threading.Thread(target=soak.send, args=(seed * 100 + 50,), daemon=True)]
    threads += [threading.Thread(target=soak.watch, daemon=True)]
    for thread in threads:
        thread.start()
    timer = threading.Timer(seconds, lambda: setattr(soak, "is_over", True))
    timer.start()
    soak.work(seed * 100 + 99, armed=True)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for thread in threads:
        thread.join(HUNG_S)
        if thread.is_alive():
            soak.hung.append(f"{thread.name} at the end")
    gc.set_threshold(700, 10, 10)
    gc.collect()
    safe_refs.flush()
    until = time.monotonic() + 20
    while (left := safe_refs.leases()) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.1)
    for each in left:
        print(each, file=sys.stderr)
    is_worth = soak.raised > 0 and soak.handled > 0
    print(
        json.dumps(
            {
                "seconds": seconds,
                "calls": soak.calls,
                "raised": soak.raised,
                "handled": soak.handled,
                "slowest_s": round(soak.slowest_s, 2),
                "hung": soak.hung,
                "failed": soak.failed[:20],
                "left": len(left),
                "is_worth": is_worth,
            }
        ),
        flush=True,
    )
    safe_refs.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()

"""What the two sides have in common: the rounds, at a fixed rate and in an order drawn from the seed, and who does them.

A round puts an object or some, hands them over in its way, reads them, and leaves nothing behind but what ends by itself soon.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from tests.support.cluster import as_actor

from .calls import Calls

KINDS = (
    *("load_and_release", "take", "use_up", "expire", "scope", "pin", "awaited", "many", "posted", "durable"),
    *("borrow", "borrow_in_task", "read_in_task", "threads", "actor_handle"),
)
MANY = 10
TTL_S = 3.0  # of what ends by itself
PASSING_EVERY_S = 30.0  # an actor is born, passed on, and ends
SIZES = (100, 1_000, 10_000, 100_000)
THREADS = 2


class Counter:
    """An actor that is itself passed on."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


class Passing(Counter):
    """The same, for a moment."""


class Rounds:
    """One side's rounds; each side says how it hands over.

    Args:
        calls: where it notes how long its calls took.
        seed: of the order and the sizes.
    """

    def __init__(self, calls: Calls, seed: int) -> None:
        self.timed, self.note, self._news = calls.timed, calls.note, calls.news
        self.errors: list[str] = []
        self.done = self.missed = 0
        self._turns = random.Random(seed)
        self._chosen = random.Random(seed)  # threads share it
        self._values = [bytes(size) for size in SIZES]
        self.counter = as_actor(Counter).remote()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="soak")
        self._births = ThreadPoolExecutor(1, thread_name_prefix="births")
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="loop", daemon=True).start()

    def prepare(self) -> None:
        """Do each kind twice: what starts at its first use has started then."""
        for kind in (*KINDS, *KINDS, "passing"):
            self._do(kind)
        self._news()
        self.done = 0

    def run(self, kinds: Sequence[str], seconds: float, rate: float, each_s: float, tell: Callable[[], None]) -> None:
        """Do rounds.

        Args:
            kinds: of these.
            seconds: for how long.
            rate: so many a second.
            each_s: seconds between two calls of `tell`.
            tell: is called between rounds.
        """
        begun = time.monotonic()
        turns: list[str] = []
        next_s, tell_s, birth_s = 0.0, each_s, PASSING_EVERY_S / 2
        while (now_s := time.monotonic() - begun) < seconds:
            if now_s < next_s:
                time.sleep(next_s - now_s)
            elif now_s - next_s > 1:  # a machine that stood still is not made up for
                self.missed += int((now_s - next_s) * rate)
                next_s = now_s
            next_s += 1 / rate
            turns = turns or self._turns.sample(kinds, len(kinds))
            self._do(turns.pop())
            if now_s > birth_s:
                birth_s += PASSING_EVERY_S
                self._births.submit(self._do, "passing")
            if now_s > tell_s:
                tell_s += each_s
                tell()
        self._births.shutdown()
        self.pool.shutdown()
        tell()

    def _do(self, kind: str) -> None:
        try:
            with self.timed("round"):
                getattr(self, kind)()
        except Exception as error:
            if len(self.errors) < 50:
                self.errors.append(f"{kind}: {error!r}")
        self.done += 1

    def put(self) -> Any:
        """A new object."""
        value = self._chosen.choice(self._values)
        with self.timed("put"):
            return ray.put(value)

    def read(self, ref: Any) -> None:
        """Get it."""
        with self.timed("get"):
            ray.get(ref, timeout=30)

    def awaited(self) -> None:
        asyncio.run_coroutine_threadsafe(self.await_all(), self.loop).result(60)

    async def await_all(self) -> None:
        """What `awaited` does, in the loop."""
        raise NotImplementedError

    def load_and_release(self) -> None:
        raise NotImplementedError

    def threads(self) -> None:
        for done in [self.pool.submit(self.load_and_release) for _ in range(THREADS)]:
            done.result(60)

    def figures(self) -> dict[str, float]:
        """What only this side knows of itself."""
        return {}

    def look(self) -> None:
        """See which containers there are."""

    def finish(self) -> dict[str, Any]:
        """End, and say what is left."""
        return {}

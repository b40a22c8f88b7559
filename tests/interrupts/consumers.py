"""Consumers of a queue that fail, or are killed, at each line of ours between receiving a message and acknowledging it.

`python -m tests.interrupts.consumers ADDRESS MODE EVERY WAY...` delivers a message for each so manieth line that a consumer executes.
At that line an exception is raised (`raise`), or the consumer's process is killed (`kill`). Then the queue delivers the message once
more, until somebody acknowledges it: who has processed it, and who is told that its lease has ended. It prints what it found as JSON.

Lost is a message that was acknowledged and that nobody has processed; left is a lease, or an object, that is there in the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

import safe_refs
from tests.support import store
from tests.support.cluster import as_actor
from tests.support.values import value
from tests.support.waiting import comes

from .injector import Injector, TimeLimitError

Work = Callable[[Any], None]

ENDS_S = 8.0
MOST_DELIVERIES = 4
AHEAD = 4  # processes that start before they are needed
DIES_S = 60.0


def plainly(message: Any, work: Work) -> None:
    with safe_refs.consume(message) as obj:
        work(obj)


def in_a_loop(message: Any, work: Work) -> None:
    async def consume() -> None:
        async with safe_refs.consume(message) as obj:
            work(obj)

    asyncio.run(consume())


def several(message: Any, work: Work) -> None:
    with safe_refs.consume([message, message]) as (obj, _):
        work(obj)


# By name: how it is consumed, and how many uses its lease has.
WAYS: dict[str, tuple[Callable[[Any, Work], None], int | None]] = {
    "with": (plainly, None),
    "uses": (plainly, 9),
    "async": (in_a_loop, 9),
    "many": (several, 9),
}


class Consumer:
    """A consumer that notes in files what it has processed, as it may be killed."""

    def __init__(self, environment: dict[str, str], folder: str) -> None:
        os.environ.update(environment)
        self._folder = Path(folder)

    def warm_up(self, message: bytes, way: str) -> int:
        """Consume a message; how many lines of ours that takes."""
        counted = Injector()
        counted.run(partial(WAYS[way][0], message, self._process))
        return counted.lines

    def consume(self, message: bytes, way: str, at: int) -> str:
        """Consume a message, and be killed at that line; where that is, if it was not executed."""
        injector = Injector(at, partial(os.kill, os.getpid(), signal.SIGKILL))
        injector.run(partial(WAYS[way][0], message, self._process))
        return f"line {at} of {injector.lines}"

    def _process(self, obj: Any) -> None:
        read = ray.get(obj, timeout=20)
        (self._folder / f"{int.from_bytes(read[:8], 'big')}.{time.monotonic_ns()}").touch()


class Queue:
    """Delivers messages until they are acknowledged.

    Args:
        way: of `WAYS`.
        kills: consumers are processes that are killed; otherwise an exception is raised in this one.
        folder: where it is noted what was processed.
    """

    def __init__(self, way: str, kills: bool, folder: Path) -> None:
        self.way = way
        self.found: Counter[str] = Counter()
        self.lost: list[str] = []
        self.left: list[str] = []
        self.failed: list[str] = []
        self.lines = 0
        self._kills = kills
        self._folder = folder
        self._here = Consumer({}, str(folder))
        self._ready: list[Any] = []
        self._number = 0

    def go(self, every: int) -> None:
        if not self._kills:
            for _ in range(3):  # until what is known from the last call is known
                self.lines = self._here.warm_up(self._message(), self.way)
        else:
            self._start()
            self.lines = ray.get(self._ready[0][1], timeout=DIES_S)
        for at in range(1, self.lines + 1, every):
            self._deliver(at)
        for actor, _ in self._ready:
            ray.kill(actor)
        gc.collect()  # a task of asyncio that has failed is in a cycle with its error
        if not store.is_empty(10):
            self.left.append(store.left(0))

    def _message(self) -> bytes:
        self._number += 1
        return safe_refs.dumps(ray.put(value(self._number)), uses=WAYS[self.way][1])

    def _start(self) -> None:
        while len(self._ready) < AHEAD:
            environment = {name: os.environ[name] for name in ("SAFE_REFS_REGISTRY", "SAFE_REFS_TIMEOUT")}
            actor = as_actor(Consumer).remote(environment, str(self._folder))
            actor.warm_up.remote(self._message(), self.way)
            self._ready.append((actor, actor.warm_up.remote(self._message(), self.way)))

    def _deliver(self, at: int) -> None:
        message, number = self._message(), self._number
        where = self._killed(message, at) if self._kills else self._fails(message, at)
        for _ in range(MOST_DELIVERIES):
            if not where or self._is_acknowledged(message):
                break
            self.found["delivered again, and failed"] += 1
        else:
            self.failed.append(f"{where}: was never acknowledged")
        times = len([*self._folder.glob(f"{number}.*")])
        self.found["messages"] += 1
        self.found["processed twice"] += times > 1
        if not times:
            self.lost.append(where)
        if not comes(lambda: not safe_refs.leases(sizes=False), ENDS_S):
            self.left.append(where)
            safe_refs.release(message)

    def _fails(self, message: bytes, at: int) -> str:
        """Deliver it to a consumer that fails at that line; where, or nothing if it has acknowledged it."""

        def fail() -> None:
            raise TimeLimitError

        injector = Injector(at, fail)
        try:
            injector.run(partial(WAYS[self.way][0], message, self._here._process))
        except (TimeLimitError, safe_refs.RegistryUnavailableError):  # an event loop drops what its own callback raises
            self.found["failed"] += 1
            return f"{self.way} {at} {injector.where}"
        except Exception as error:
            self.failed.append(f"{self.way} {at} {injector.where}: {error!r}")
            return f"{self.way} {at} {injector.where}"
        return ""

    def _killed(self, message: bytes, at: int) -> str:
        """The same, to one that is killed."""
        self._start()
        actor, warm = self._ready.pop(0)
        self._start()
        ray.get(warm, timeout=DIES_S)
        try:
            ray.get(actor.consume.remote(message, self.way, at), timeout=DIES_S)
        except ray.exceptions.RayActorError:
            self.found["killed"] += 1
            return f"{self.way} {at}"
        return ""

    def _is_acknowledged(self, message: bytes) -> bool:
        """The message comes to a consumer that lives."""
        try:
            WAYS[self.way][0](message, self._here._process)
        except (safe_refs.LeaseReleasedError, safe_refs.LeaseUsedUpError):
            self.found["told that it was consumed"] += 1
        except Exception as error:
            self.failed.append(f"{self.way}: {error!r}")
            return False
        return True


def main() -> None:
    address, mode, every, *ways = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    os.environ["SAFE_REFS_TIMEOUT"] = "5"
    os.environ["SAFE_REFS_REGISTRY"] = f"consumed-{os.getpid()}"
    safe_refs.init()
    found: dict[str, Any] = {"lines": {}, "lost": [], "left": [], "failed": [], "hung": [], "counts": {}}
    try:
        for name in ways or WAYS:
            with tempfile.TemporaryDirectory() as folder:
                queue = Queue(name, mode == "kill", Path(folder))
                queue.go(int(every))
            found["lines"][name], found["counts"][name] = queue.lines, queue.found
            for kind in ("lost", "left", "failed"):
                found[kind] += getattr(queue, kind)
    finally:
        safe_refs.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""`ray.shutdown()` at random moments, with calls of every kind under way: what is judged is said at `Figures`.

    main thread    ray.init, threads and tasks begin, a random moment passes, ray.shutdown (now and then from another thread); judge
    KINDS          each in a thread of its own, over and over; some threads go on for a moment after the end
    TASKS          each in a task of one event loop, in a thread of its own

`python -m tests.interrupts.leaving ADDRESS ROUNDS SEED` prints what it has counted, as JSON. It is a process of its own.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import ray

import safe_refs
from tests.support.cluster import LOCAL_RAY, as_actor

from .leaving_kinds import KINDS, MOST_CALLS, TASKS, TIMEOUT_S

LATE_S = 2.0  # what a busy machine may add to that
GONE_S = 8.0  # until no thread of ours is left: one that has nothing to do ends after five seconds
LONGEST_MOMENT_S = 0.5
GOES_ON_S = 0.1  # calls are made for so long after the end
AT_ONCE = 6  # threads, and as many tasks


class Maker:
    """Owns what others borrow."""

    def make(self) -> list[Any]:
        self.ref = ray.put("borrowed")
        return [self.ref]


class Round:
    """One connection. Its calls, and what became of them."""

    def __init__(self, own: Any, borrowed: Any) -> None:
        self.own = own
        self.borrowed = borrowed
        self.is_over = False
        self.calls = self.refused = 0
        self.failed: list[str] = []
        self.late: list[str] = []
        self.under_way: dict[object, tuple[float, str]] = {}

    def work(self, name: str, act: Callable[[Round], None]) -> None:
        """In a thread: the same over and over, until it is over."""
        while not self.is_over:
            with self.watched(name):
                act(self)
            time.sleep(0.001)  # when all are refused, they are not to keep the machine busy

    def loop(self, tasks: dict[str, Callable[[Round], Awaitable[None]]]) -> None:
        """In a thread: tasks of an event loop, each over and over."""

        async def repeat(name: str, act: Callable[[Round], Awaitable[None]]) -> None:
            while not self.is_over:
                with self.watched(f"aio {name}"):
                    await act(self)
                await asyncio.sleep(0.001)

        async def all_of_them() -> None:
            await asyncio.gather(*(repeat(*task) for task in tasks.items()))

        asyncio.run(all_of_them())

    def watched(self, name: str) -> Watched:
        return Watched(self, name)


class Watched:
    """Some calls that end one way or the other, in time: well, or with a named error once the process has left."""

    def __init__(self, round_: Round, name: str) -> None:
        self._round = round_
        self._name = name

    def __enter__(self) -> None:
        self._round.calls += 1
        self._round.under_way[self] = time.monotonic(), self._name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        begun, _name = self._round.under_way.pop(self)
        if time.monotonic() - begun > MOST_CALLS * TIMEOUT_S + LATE_S:
            self._round.late.append(f"{self._name}: after {time.monotonic() - begun:.1f} s, {error!r:.200}")
        if isinstance(error, safe_refs.RegistryUnavailableError):
            self._round.refused += 1
        elif error is not None:
            self._round.failed.append(
                f"{self._name}: {error!r:.200}, from {traceback.extract_tb(error.__traceback__)[-3:]}"
            )
            traceback.print_exception(error)
        return True


def ours() -> list[str]:
    """Threads of safe_refs that live."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("safe_refs"))


class Leaving:
    """The rounds, and their figures.

    Args:
        address: of the cluster, `ray://…` for a Ray Client; or `local`: each round has a Ray of its own, which ends with it.
        seed: for the moments.

    Attributes:
        started: Rays that somebody started who was not asked to.
        hung: calls that were not answered by their deadline, and threads that stayed.
        failed: calls that ended with something else than a named error; rounds after which Ray did not work.
    """

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._random = random.Random(seed)  # noqa: S311 # no secret
        self.rounds = self.calls = self.refused = 0
        self.started: list[str] = []
        self.hung: list[str] = []
        self.failed: list[str] = []
        self.slowest_s = self.longest_end_s = 0.0  # from the end to the last answer; the end itself
        self._init: Any = ray.init
        ray.init = self._note_init

    def _note_init(self, *_: Any, **__: Any) -> Any:
        self.started.append("".join(traceback.format_stack(limit=12)))
        raise RuntimeError("a Ray that nobody asked for")

    def connect(self) -> Any:
        """The handle of an actor that owns what others borrow."""
        options: dict[str, Any] = {"name": f"maker-{os.getpid()}", "lifetime": "detached", "get_if_exists": True}
        how: dict[str, Any] = {"address": self._address, "log_to_driver": False, "logging_level": logging.CRITICAL}
        self._init(**(LOCAL_RAY if self._address == "local" else how), namespace="leaving")
        return as_actor(Maker).options(**options).remote()

    def round(self) -> None:
        """Connect, begin, leave, and judge."""
        maker = self.connect()
        borrowed: Any = ray.get(maker.make.remote(), timeout=60)
        now = Round(ray.put(self.rounds), borrowed[0])
        if self._address == "local":  # else the moment would come while the registry starts, always
            safe_refs.release(safe_refs.dumps(now.own, timeout=60))
        kinds = self._random.sample(sorted(KINDS), AT_ONCE)
        tasks = self._random.sample(sorted(TASKS), AT_ONCE)
        threads = [threading.Thread(target=now.work, args=(name, KINDS[name]), daemon=True) for name in kinds]
        threads.append(threading.Thread(target=now.loop, args=({name: TASKS[name] for name in tasks},), daemon=True))
        for thread in threads:
            thread.start()
        time.sleep(self._random.uniform(0.0, LONGEST_MOMENT_S))
        begun = time.monotonic()
        if self._random.random() < 0.3:
            leaves = threading.Thread(target=ray.shutdown)
            leaves.start()
            leaves.join()
        else:
            ray.shutdown()
        left = time.monotonic()
        self.longest_end_s = max(self.longest_end_s, left - begun)
        time.sleep(GOES_ON_S)
        now.is_over = True
        for thread in threads:
            thread.join(max(left + TIMEOUT_S + LATE_S - time.monotonic(), 0.01))
        self.slowest_s = max(self.slowest_s, time.monotonic() - left)
        print(
            f"round {self.rounds}: shutdown {left - begun:.2f} s, {time.monotonic() - left:.2f} s",
            kinds,
            tasks,
            file=sys.stderr,
        )
        if any(thread.is_alive() for thread in threads):
            faulthandler.dump_traceback()
        self.hung += [f"{name}: not answered" for _, name in now.under_way.values()] + now.late
        self.failed += now.failed
        self.calls, self.refused, self.rounds = self.calls + now.calls, self.refused + now.refused, self.rounds + 1
        if ray.is_initialized():
            self.failed.append("a Ray that nobody asked for")
            ray.shutdown()

    def judge_next(self) -> None:
        """The next connection works; `flush` has nothing left but what the last one said, once."""
        self.connect()
        for _ in range(2):
            try:
                safe_refs.flush()
            except safe_refs.RegistryUnavailableError as error:
                print("flush:", error, file=sys.stderr)
        payload = safe_refs.dumps(ray.put("next"), timeout=60)
        if ray.get(safe_refs.loads(payload)) != "next" or safe_refs.release(payload) != 1:
            self.failed.append("the next connection does not work")
        ray.shutdown()
        until = time.monotonic() + GONE_S
        while ours() and time.monotonic() < until:
            time.sleep(0.1)
        self.hung += [f"thread {name} stays" for name in ours()]


def main() -> None:
    address, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ["SAFE_REFS_REGISTRY"] = f"leaving-{os.getpid()}"
    os.environ["SAFE_REFS_TIMEOUT"] = str(TIMEOUT_S)
    faulthandler.dump_traceback_later(rounds * 10 + 90, exit=True)
    found = Leaving(address, seed)
    ray.get(found.connect().make.remote(), timeout=60)
    safe_refs.release(safe_refs.dumps(ray.put(1), timeout=60))
    ray.shutdown()
    begun = time.monotonic()
    for _ in range(rounds):
        found.round()
    seconds = time.monotonic() - begun
    found.judge_next()
    ray.kill(found.connect())
    safe_refs.shutdown(force=True)
    ray.shutdown()
    figures = {"rounds": found.rounds, "calls": found.calls, "refused": found.refused, "seconds": round(seconds, 1)}
    figures |= {"slowest_s": round(found.slowest_s, 2), "longest_end_s": round(found.longest_end_s, 2)}
    figures["is_worth"] = found.calls > found.refused > rounds  # calls worked, and were under way in the end
    lists = {"started": found.started[:10], "hung": found.hung[:20], "failed": found.failed[:20]}
    print(json.dumps(figures | lists), flush=True)


if __name__ == "__main__":
    main()

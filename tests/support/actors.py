"""The parts that processes play in tests: who owns objects, borrows them, reads them; and an actor that is itself passed on."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import ray

import safe_refs

from .cluster import as_actor
from .values import outcome, reads


class Process:
    """A process of its own, which keeps references."""

    def __init__(self) -> None:
        self.refs: list[Any] = []

    def set_up(self, environment: dict[str, str]) -> int:
        """Change its environment; its pid."""
        os.environ.update(environment)
        return self.pid()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, refs: list[Any]) -> int:
        """Keep references, and no others; its pid."""
        self.refs = refs
        return self.pid()

    def drop(self) -> None:
        self.refs = []

    def end(self) -> None:
        """End in order, from within."""
        ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped


class Owner(Process):
    """Makes objects for others."""

    def give(self, *values: Any) -> list[Any]:
        """References of new objects, of which it keeps none."""
        return [ray.put(each) for each in values]

    def put(self, *values: Any) -> list[Any]:
        """The same, and it keeps them."""
        made = self.give(*values)
        self.refs += made
        return made

    def pinned(self, each: Any) -> bytes:
        """A payload of a new object, of which it keeps no reference."""
        return safe_refs.dumps(ray.put(each))

    def give_counter(self) -> list[Any]:
        """A new `Counter`, of which it keeps no handle."""
        return [as_actor(Counter).remote()]


class Reader(Process):
    """Another process than the owner: opens payloads, and keeps what it has resolved."""

    def opens(self, payload: bytes) -> int | str:
        """What comes of opening a payload; see `outcome`. It keeps nothing of it."""
        return outcome(lambda: safe_refs.loads(payload, timeout=10))

    def load(self, payloads: list[bytes]) -> int:
        """Resolve payloads of one reference each, and keep these; its pid."""
        return self.keep([safe_refs.loads(payload) for payload in payloads])

    def get(self) -> Any:
        """The value behind the first of its references."""
        return ray.get(self.refs[0], timeout=20)

    def read(self) -> list[int | str]:
        """What comes of reading each of its references."""
        return [reads(ref) for ref in self.refs]

    def read_first(self) -> int | str:
        return outcome(lambda: self.refs[0])


class Borrower(Reader):
    """Gets references in one call, and pins them in a later one."""

    def be_busy(self) -> None:
        """Three threads that read the first reference all the time, as fast as they can."""
        self.errors: list[str] = []
        self.reads = 0

        def read() -> None:
            while True:
                try:
                    ray.get(self.refs[0], timeout=10)
                    self.reads += 1
                except Exception as error:
                    self.errors.append(repr(error))

        for _ in range(3):
            threading.Thread(target=read, daemon=True).start()

    def seen_by_threads(self) -> tuple[int, list[str]]:
        return self.reads, self.errors

    def dumps(self) -> bytes:
        """A payload of the first of its references."""
        return safe_refs.dumps(self.refs[0])

    def dumps_all(self) -> bytes:
        """A payload of all of them."""
        return safe_refs.dumps(self.refs)

    def dumps_each(self, often: int, seed: int) -> list[bytes]:
        """Dumps, loads and releases in a random order; what is left over."""
        chance = random.Random(seed)  # noqa: S311 # only a seed's draws can be drawn again
        held: list[bytes] = []
        for _ in range(often):
            held.append(safe_refs.dumps(chance.sample(self.refs, min(10, len(self.refs)))))
            if len(held) > 20:
                safe_refs.release(held.pop(chance.randrange(len(held))))
            if chance.random() < 0.1:
                safe_refs.loads(chance.choice(held))
        return held

    def load_and_dumps(self, payload: bytes) -> bytes:
        self.load([payload])
        return self.dumps()


class AsyncBorrower:
    """The same, as an asyncio actor."""

    async def keep(self, refs: list[Any]) -> None:
        self.refs = refs

    async def dumps(self, environment: dict[str, str]) -> bytes:
        os.environ.update(environment)
        return safe_refs.dumps(self.refs[0])

    async def end(self) -> None:
        ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped


class Counter:
    """An actor with a state, which is itself passed on."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


def borrower(**options: Any) -> Any:
    return as_actor(Borrower).options(max_restarts=0, **options).remote()


def counter(**options: Any) -> tuple[Any, int]:
    """A new `Counter`, and its process."""
    actor = as_actor(Counter).options(**options).remote()
    return actor, ray.get(actor.pid.remote(), timeout=60)

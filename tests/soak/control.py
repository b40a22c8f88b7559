"""The control: the same objects at the same rate, passed in-band to an actor that holds them. Plain Ray, as one would write it."""

from __future__ import annotations

import os
import time
from typing import Any

import ray

from tests.support.cluster import as_actor

from .calls import Calls
from .rounds import MANY, TTL_S, Passing, Rounds


class Keeper:
    """Holds references until it is told, or until their time is over."""

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[float, list[Any]]] = {}

    def keep(self, key: bytes, refs: list[Any], ttl: float = 60.0) -> bytes:
        now = time.monotonic()
        for other in [other for other, (until, _) in self.held.items() if until < now]:
            del self.held[other]
        self.held[key] = now + ttl, refs
        return key

    def keep_many(self, held: list[tuple[bytes, list[Any]]]) -> None:
        for key, refs in held:
            self.keep(key, refs)

    def keep_copies(self, key: bytes, refs: list[Any]) -> bytes:
        return self.keep(key, [ray.put(value) for value in ray.get(refs, timeout=30)])

    def give(self, key: bytes, take: bool = False) -> list[Any]:
        return (self.held.pop(key) if take else self.held[key])[1]

    def give_many(self, keys: list[bytes]) -> list[list[Any]]:
        return [self.give(key) for key in keys]

    def renew(self, key: bytes, ttl: float) -> None:
        self.held[key] = time.monotonic() + ttl, self.held[key][1]

    def drop(self, *keys: bytes) -> None:
        for key in keys:
            self.held.pop(key, None)


class PlainBorrower:
    """Passes on what another process owns, and reads it."""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    def pass_on(self, refs: list[Any]) -> tuple[bytes, float]:
        begun = time.perf_counter()
        key = ray.get(self.keeper.keep.remote(os.urandom(16), refs), timeout=60)
        return key, time.perf_counter() - begun

    def read(self, key: bytes) -> float:
        begun = time.perf_counter()
        refs = ray.get(self.keeper.give.remote(key), timeout=60)
        taken_s = time.perf_counter() - begun
        ray.get(refs, timeout=30)
        return taken_s


@ray.remote
def pass_on(keeper: Any, refs: list[Any]) -> bytes:
    key: bytes = ray.get(keeper.keep.remote(os.urandom(16), refs), timeout=60)
    return key


@ray.remote
def read(keeper: Any, key: bytes) -> int:
    return len(ray.get(ray.get(keeper.give.remote(key), timeout=60), timeout=30))


class Control(Rounds):
    """See `Rounds`."""

    def __init__(self, calls: Calls, seed: int) -> None:
        super().__init__(calls, seed)
        self.keeper: Any = as_actor(Keeper).remote()
        self.borrower: Any = as_actor(PlainBorrower).remote(self.keeper)

    def keep(self, refs: list[Any], **terms: Any) -> bytes:
        key: bytes = ray.get(self.keeper.keep.remote(os.urandom(16), refs, **terms), timeout=60)
        return key

    def give(self, key: bytes, take: bool = False) -> list[Any]:
        refs: list[Any] = ray.get(self.keeper.give.remote(key, take), timeout=60)
        return refs

    def drop(self, *keys: bytes) -> None:
        with self.timed("release"):
            ray.get(self.keeper.drop.remote(*keys), timeout=60)

    def load_and_release(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            key = self.keep([ref])
        with self.timed("loads"):
            [loaded] = self.give(key)
        self.read(loaded)
        with self.timed("renew"):
            ray.get(self.keeper.renew.remote(key, 60), timeout=60)
        self.drop(key)

    def take(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            key = self.keep([ref])
        with self.timed("take"):
            [loaded] = self.give(key, take=True)
        self.read(loaded)

    def use_up(self) -> None:
        key = self.keep([self.put()])
        for number in range(2):
            with self.timed("loads"):
                [loaded] = self.give(key, take=number == 1)
            self.read(loaded)

    def expire(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            key = self.keep([ref], ttl=TTL_S)
        self.give(key)

    def scope(self) -> None:
        with self.timed("scope"):
            keys = [self.keep([self.put()]) for _ in range(3)]
            ray.get(self.keeper.drop.remote(*keys), timeout=60)

    def pin(self) -> None:
        ref = self.put()
        with self.timed("pin"):
            key = self.keep([ref])
        with self.timed("resolve"):
            [loaded] = self.give(key)
        self.read(loaded)
        self.drop(key)

    async def await_all(self) -> None:
        ref = self.put()
        with self.timed("aio.dumps"):
            key = await self.keeper.keep.remote(os.urandom(16), [ref])
        with self.timed("aio.loads"):
            [loaded] = await self.keeper.give.remote(key)
        await loaded
        with self.timed("aio.release"):
            await self.keeper.drop.remote(key)

    def many(self) -> None:
        held = [(os.urandom(16), [self.put()]) for _ in range(MANY)]
        keys = [key for key, _ in held]
        with self.timed("dumps_many"):
            ray.get(self.keeper.keep_many.remote(held), timeout=60)
        with self.timed("loads_many"):
            ray.get(self.keeper.give_many.remote(keys), timeout=60)
        self.drop(*keys)

    def posted(self) -> None:
        ref, key = self.put(), os.urandom(16)
        kept = self.keeper.keep.remote(key, [ref])
        with self.timed("flush"):
            ray.get(kept, timeout=60)
        [loaded] = self.give(key)
        self.read(loaded)
        ray.get(self.keeper.drop.remote(key), timeout=60)

    def durable(self) -> None:
        ref, key = self.put(), os.urandom(16)
        with self.timed("dumps durable"):
            ray.get(self.keeper.keep_copies.remote(key, [ref]), timeout=60)
        [loaded] = self.give(key, take=True)
        self.read(loaded)

    def borrow(self) -> None:
        key, taken_s = ray.get(self.borrower.pass_on.remote([self.put()]), timeout=60)
        self.note("dumps borrowed", taken_s)
        self.note("loads by a borrower", ray.get(self.borrower.read.remote(key), timeout=60))
        [loaded] = self.give(key)
        self.read(loaded)
        ray.get(self.keeper.drop.remote(key), timeout=60)

    def borrow_in_task(self) -> None:
        key = ray.get(pass_on.remote(self.keeper, [self.put()]), timeout=60)
        self.give(key)
        ray.get(self.keeper.drop.remote(key), timeout=60)

    def read_in_task(self) -> None:
        key = self.keep([self.put(), self.put()])
        with self.timed("task that loads"):
            ray.get(read.remote(self.keeper, key), timeout=60)
        ray.get(self.keeper.drop.remote(key), timeout=60)

    def actor_handle(self) -> None:
        with self.timed("dumps of a handle"):
            key = self.keep([self.counter])
        [loaded] = self.give(key)
        ray.get(loaded.add.remote(), timeout=60)
        ray.get(self.keeper.drop.remote(key), timeout=60)

    def passing(self) -> None:
        key = self.keep([as_actor(Passing).remote()])
        [loaded] = self.give(key)
        ray.get(loaded.add.remote(), timeout=60)
        ray.get(self.keeper.drop.remote(key), timeout=60)

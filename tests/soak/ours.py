"""Our side: everything by which a lease comes and goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import ray

import safe_refs
from safe_refs import SafeRef, aio
from tests.support import growth
from tests.support.cluster import as_actor
from tests.support.waiting import comes

from .calls import Calls
from .plants import plant
from .rounds import MANY, SIZES, TTL_S, Passing, Rounds

_REGISTRY = "soak"
_FILLS = 10  # times
_FILL = 1_000
_MOST_RECENT = 4_096  # references that a process remembers to have borrowed
_DURABLE_FILLS = 10
_DURABLE_FILL = 20  # a copy owner frees the values of a hundred at a time
_MOST_TOMBSTONES = 500  # as `growth.BOUNDS` says


def fill(payload: bytes | None = None) -> None:
    """Fill what this process remembers of leases that have ended; and, of such a payload, of references that it borrows."""
    for _ in range(_FILLS):
        safe_refs.loads_many(safe_refs.dumps_many([ray.put(number) for number in range(_FILL)]), take=True)
    if payload is not None:
        safe_refs.loads(payload)


def nothing() -> None:
    """What a borrower does besides."""


class Borrower:
    """Pins what another process owns, and reads it."""

    def __init__(self) -> None:
        self.besides: Callable[[], None] = nothing

    def sizes(self) -> dict[str, int]:
        return growth.sizes(self)

    def fill(self, payload: bytes) -> None:
        fill(payload)

    def pass_on(self, refs: list[Any]) -> tuple[bytes, float]:
        self.besides()
        begun = time.perf_counter()
        payload = safe_refs.dumps(refs, ttl=60)
        return payload, time.perf_counter() - begun

    def read(self, payload: bytes) -> float:
        begun = time.perf_counter()
        refs = safe_refs.loads(payload)
        taken_s = time.perf_counter() - begun
        ray.get(refs, timeout=30)
        return taken_s


@ray.remote
def fill_worker(payload: bytes) -> None:
    fill(payload)


@ray.remote
def pass_on(refs: list[Any]) -> bytes:
    return safe_refs.dumps(refs, ttl=60)


@ray.remote
def read(payload: bytes) -> int:
    return len(ray.get(safe_refs.loads(payload), timeout=30))


class Ours(Rounds):
    """See `Rounds`.

    Args:
        calls, seed: as there.
        shards, replicas: of the registry.
        settles_s: what is still grown at the end has so long to come down.
        fills: whether to begin by filling what is bounded, so that it doesn't grow later.
        planted: names of leaks to plant.
    """

    def __init__(
        self,
        calls: Calls,
        seed: int,
        *,
        shards: int = 1,
        replicas: int = 1,
        settles_s: float = 20.0,
        fills: bool = True,
        planted: tuple[str, ...] = (),
    ) -> None:
        safe_refs.init(_REGISTRY, shards=shards, replicas=replicas, max_tombstones=_MOST_TOMBSTONES)
        super().__init__(calls, seed)
        self.borrower: Any = as_actor(Borrower).remote()
        self._fills = fills
        self._settles_s = settles_s
        self._before: dict[str, int] | None = None
        self._planted = planted

    def _fill(self) -> None:
        """In each process; last in the workers, by two tasks at once, for which there are two CPUs: Ray ends others before these."""
        fill()
        payload = safe_refs.dumps([ray.put(number) for number in range(_MOST_RECENT)])
        ray.get(self.borrower.fill.remote(payload), timeout=250)
        for _ in range(_DURABLE_FILLS):
            many = safe_refs.dumps_many([ray.put(bytes(max(SIZES))) for _ in range(_DURABLE_FILL)], durable=True)
            safe_refs.release(many)
        ray.get([fill_worker.remote(payload) for _ in range(2)], timeout=250)
        safe_refs.release(payload)

    def prepare(self) -> None:
        super().prepare()
        if self._fills:
            self._fill()
        plant(self._planted, _REGISTRY, self.borrower)

    def load_and_release(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            payload = safe_refs.dumps({"ref": ref}, label=f"label {self.done}")
        with self.timed("loads"):
            loaded = safe_refs.loads(payload)
        self.read(loaded["ref"])
        with self.timed("renew"):
            safe_refs.renew(payload, 60)
        with self.timed("release"):
            safe_refs.release(payload)

    def take(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            payload = safe_refs.dumps([ref], ttl=60)
        with self.timed("take"):
            [loaded] = safe_refs.loads(payload, take=True)
        self.read(loaded)

    def use_up(self) -> None:
        payload = safe_refs.dumps(self.put(), uses=2)
        for _ in range(2):
            with self.timed("loads"):
                loaded = safe_refs.loads(payload)
            self.read(loaded)

    def expire(self) -> None:
        ref = self.put()
        with self.timed("dumps"):
            payload = safe_refs.dumps(ref, ttl=TTL_S)
        safe_refs.loads(payload)

    def scope(self) -> None:
        with self.timed("scope"), safe_refs.scope():
            for _ in range(3):
                safe_refs.dumps(self.put())

    def pin(self) -> None:
        ref = self.put()
        with self.timed("pin"):
            handle = safe_refs.pin(ref)
        with self.timed("resolve"):
            found = SafeRef.parse(str(handle)).resolve()
        self.read(found)
        with self.timed("release"):
            handle.release()

    async def await_all(self) -> None:
        ref = self.put()
        with self.timed("aio.dumps"):
            payload = await aio.dumps([ref], ttl=60)
        with self.timed("aio.loads"):
            [loaded] = await aio.loads(payload)
        await loaded
        with self.timed("aio.release"):
            await aio.release(payload)

    def many(self) -> None:
        refs = [self.put() for _ in range(MANY)]
        with self.timed("dumps_many"):
            payloads = safe_refs.dumps_many(refs)
        with self.timed("loads_many"):
            safe_refs.loads_many(payloads)
        with self.timed("release"):
            safe_refs.release(payloads)

    def posted(self) -> None:
        ref = self.put()
        payload = safe_refs.dumps(ref, wait=False)
        with self.timed("flush"):
            safe_refs.flush()
        with safe_refs.consume(payload) as loaded:
            self.read(loaded)

    def durable(self) -> None:
        ref = self.put()
        with self.timed("dumps durable"):
            payload = safe_refs.dumps([ref], durable=True, ttl=60)
        [loaded] = safe_refs.loads(payload, take=True)
        self.read(loaded)

    def borrow(self) -> None:
        payload, taken_s = ray.get(self.borrower.pass_on.remote([self.put()]), timeout=60)
        self.note("dumps borrowed", taken_s)
        self.note("loads by a borrower", ray.get(self.borrower.read.remote(payload), timeout=60))
        [loaded] = safe_refs.loads(payload)
        self.read(loaded)
        safe_refs.release(payload)

    def borrow_in_task(self) -> None:
        payload = ray.get(pass_on.remote([self.put()]), timeout=60)
        safe_refs.loads(payload)
        safe_refs.release(payload)

    def read_in_task(self) -> None:
        payload = safe_refs.dumps([self.put(), self.put()])
        with self.timed("task that loads"):
            ray.get(read.remote(payload), timeout=60)
        safe_refs.release(payload)

    def actor_handle(self) -> None:
        with self.timed("dumps of a handle"):
            payload = safe_refs.dumps([self.counter])
        [loaded] = safe_refs.loads(payload)
        ray.get(loaded.add.remote(), timeout=60)
        safe_refs.release(payload)

    def passing(self) -> None:
        payload = safe_refs.dumps([as_actor(Passing).remote()], ttl=60)
        [loaded] = safe_refs.loads(payload)
        ray.get(loaded.add.remote(), timeout=60)
        safe_refs.release(payload)

    def figures(self) -> dict[str, float]:
        found = safe_refs.stats()
        return {} if found is None else {"leases, live": found.live_leases, "leases, unanchored": found.unanchored}

    def look(self) -> None:
        self._before = self._containers()

    def finish(self) -> dict[str, Any]:
        """End what ends, and see what is left: leases, and containers that have grown since `look`."""
        safe_refs.flush()
        before = self._before
        grown = {} if before is None else growth.still_grown(before, lambda: self._containers(before), self._settles_s)
        comes(lambda: gc.collect() >= 0 and not safe_refs.leases(sizes=False), 60)
        left = [str(each) for each in safe_refs.leases(sizes=False)]
        safe_refs.shutdown(_REGISTRY, force=True)
        return {"left": left, "grown": grown}

    def _containers(self, like: dict[str, int] | None = None) -> dict[str, int]:
        """Of the containers of all processes, or of those that were there before."""
        asked = {"borrower": self.borrower.sizes.remote(), **growth.ask_actors(_REGISTRY)}
        found = {"driver": growth.sizes(), **growth.answers(asked)}
        processes = None if like is None else {path.partition(": ")[0] for path in like}
        return {
            f"{process}: {path}": size
            for process, theirs in found.items()
            if processes is None or process in processes
            for path, size in theirs.items()
        }

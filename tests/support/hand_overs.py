"""A process that hands over references again and again, in all the ways in which a lease comes and goes; for tests of what grows."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray

import safe_refs
from safe_refs import aio

from . import growth
from .actors import Owner
from .cluster import as_actor

_THREADS = 4
_BULK = 500


class HandOvers:
    """An actor that does it, with an owner of its own for what it borrows.

    Args:
        environment: of this process.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self.owner = as_actor(Owner).remote()
        self.kept = safe_refs.dumps(ray.put("kept"))  # some lease is always live

    def run(self, kind: str, times: int) -> None:
        getattr(self, kind)(times)
        self.flushed()

    def flushed(self) -> None:
        safe_refs.flush()

    def sizes(self) -> dict[str, int]:
        return growth.sizes(self)

    def take(self, times: int) -> None:
        for number in range(times):
            safe_refs.loads(safe_refs.dumps(ray.put(number)), take=True)

    def use_up(self, times: int) -> None:
        for number in range(times // 2):
            payload = safe_refs.dumps(ray.put(number), uses=2)
            safe_refs.loads(payload)
            safe_refs.loads(payload)

    def release_at_once(self, times: int) -> None:
        for number in range(times):
            safe_refs.release(safe_refs.dumps(ray.put(number)))

    def load_and_release(self, times: int) -> None:
        for number in range(times):
            payload = safe_refs.dumps(ray.put(number), label=f"label {number}")
            safe_refs.loads(payload)
            safe_refs.renew(payload, 60)
            safe_refs.release(payload)

    def expire(self, times: int) -> None:
        for number in range(times):
            safe_refs.loads(safe_refs.dumps(ray.put(number), ttl=5 + number / 1000))
            if number % _BULK == 0:
                time.sleep(0.01)

    def many(self, times: int) -> None:
        for start in range(0, times, _BULK):
            payloads = safe_refs.dumps_many([ray.put(start + number) for number in range(min(_BULK, times - start))])
            safe_refs.loads_many(payloads)
            safe_refs.release(payloads)

    def unacknowledged(self, times: int) -> None:
        for number in range(times):
            safe_refs.release(safe_refs.dumps(ray.put(number), wait=False))

    def scope(self, times: int) -> None:
        """Scopes for ten each, inside one that stays open; and leases that are released before it ends."""
        with safe_refs.scope():
            for start in range(0, times, 20):
                with safe_refs.scope():
                    for number in range(10):
                        safe_refs.dumps(ray.put(start + number))
                for number in range(10):
                    safe_refs.release(safe_refs.dumps(ray.put(start + number)))

    def threads(self, times: int) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self.load_and_release, [times // _THREADS] * _THREADS))

    def distinct_timeouts(self, times: int) -> None:
        """Awaited and not, each with another deadline; as servers do that pass on the time that is left."""
        payload = safe_refs.dumps(ray.put(1))

        async def awaited() -> None:
            for number in range(times // 2):
                await aio.loads(payload, timeout=30 + number * 1e-4)

        asyncio.run(awaited())
        for number in range(times // 2):
            safe_refs.loads(payload, timeout=30 + number * 1e-4)
        safe_refs.release(payload)

    def borrow(self, times: int) -> None:
        """What another process owns is pinned here, and loaded or taken."""
        for start in range(0, times, 10):
            refs = ray.get(self.owner.give.remote(*range(start, start + 5)), timeout=60)
            for ref in refs:
                payload = safe_refs.dumps(ref)
                safe_refs.loads(payload)
                safe_refs.release(payload)
                safe_refs.loads(safe_refs.dumps(ref), take=True)

    def borrow_one(self, times: int) -> None:
        """The same object, pinned and released again and again."""
        [ref] = ray.get(self.owner.give.remote(1), timeout=60)
        for _ in range(times):
            safe_refs.release(safe_refs.dumps(ref))

    def borrow_beside_a_thread(self, times: int) -> None:
        """Where nothing can be anchored, as another thread is at work."""
        over = threading.Event()
        other = threading.Thread(target=over.wait, name="another")
        other.start()
        self.borrow(times // 2)
        self.borrow_one(times // 2)
        over.set()
        other.join()

    def fails(self, times: int) -> None:
        """Uses that are given back, payloads that have ended already, and registries that are not there."""
        for number in range(times // 12):  # each waits a little
            payload = safe_refs.dumps((ray.put(number), Unopenable()), uses=1)
            for _ in range(2):
                with suppress(LookupError):
                    safe_refs.loads(payload)
            safe_refs.release(payload)
            with suppress(LookupError):
                safe_refs.loads(payload)


class Unopenable:
    """It can't be opened."""

    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise LookupError


KINDS = tuple(
    name
    for name, what in vars(HandOvers).items()
    if not name.startswith("_") and callable(what) and name not in ("run", "flushed", "sizes")
)

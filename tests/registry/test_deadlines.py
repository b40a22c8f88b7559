"""A call's timeout bounds the whole call, also where many stand in line, behind something that does not respond."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import SafeRef, aio
from tests.support.loops import Ticks
from tests.support.processes import Driver
from tests.support.shards import stopped

TIMEOUT_S = 1.0
MARGIN_S = 0.5
AT_ONCE = 4  # of each kind, which is more than an event loop has threads


class Targets:
    """What calls are about.

    Attributes:
        ref: an own reference.
        payload: one that has a lease.
        handle: of that lease.
    """

    def __init__(self) -> None:
        self.ref = ray.put("value")
        self.payload = safe_refs.dumps(self.ref)
        self.handle: SafeRef[Any] = safe_refs.loads(self.payload, resolve=False)


async def _scoped(to: Targets) -> None:
    async with aio.scope(timeout=TIMEOUT_S):
        await aio.dumps(to.ref, wait=False)


async def _piped(to: Targets) -> None:
    async with aio.pipeline(timeout=TIMEOUT_S):
        await aio.dumps(to.ref, ttl=2, timeout=10)


async def _kept(to: Targets) -> None:
    async with aio.keepalive(to.payload, ttl=60, timeout=TIMEOUT_S):
        pass


async def _consumed(to: Targets) -> None:
    async with aio.consume(to.payload, timeout=TIMEOUT_S):
        pass


AWAITED: dict[str, Callable[[Targets], Awaitable[Any]]] = {
    "dumps": lambda to: aio.dumps(to.ref, timeout=TIMEOUT_S),
    "dumps_many": lambda to: aio.dumps_many([to.ref], timeout=TIMEOUT_S, wait=True),
    "loads": lambda to: aio.loads(to.payload, timeout=TIMEOUT_S),
    "loads_many": lambda to: aio.loads_many([to.payload], timeout=TIMEOUT_S),
    "pin": lambda to: aio.pin(to.ref, timeout=TIMEOUT_S, wait=True),
    "put": lambda to: aio.put(1, timeout=TIMEOUT_S, wait=True),
    "resolve": lambda to: aio.resolve(to.handle, timeout=TIMEOUT_S),
    "release": lambda to: aio.release(to.payload, timeout=TIMEOUT_S),
    "release by label": lambda to: aio.release(label="none", timeout=TIMEOUT_S),
    "renew": lambda to: aio.renew(to.payload, 60, timeout=TIMEOUT_S),
    "expires_in_s": lambda to: aio.expires_in_s(to.payload, timeout=TIMEOUT_S),
    "stats": lambda to: aio.stats(timeout=TIMEOUT_S),
    "make_durable": lambda to: aio.make_durable(to.handle, timeout=TIMEOUT_S),
    "scope": _scoped,
    "pipeline": _piped,
    "keepalive": _kept,
    "consume": _consumed,
}


def test_awaited_calls_behind_a_registry_that_does_not_respond(registry: str) -> None:
    """As many as you like at once: each ends by its own timeout, whatever the event loop's threads are busy with."""
    to = Targets()

    async def timed(name: str) -> tuple[float, str, str]:
        begun = time.monotonic()
        try:
            await AWAITED[name](to)
        except safe_refs.RegistryUnavailableError:
            return time.monotonic() - begun, name, "unavailable"
        return time.monotonic() - begun, name, "done"

    async def all_of_them() -> tuple[list[tuple[float, str, str]], float]:
        async with Ticks() as ticks:
            found = await asyncio.gather(*(timed(name) for name in AWAITED for _ in range(AT_ONCE)))
        return found, ticks.longest_s

    with stopped(registry, 0):
        found, busy_s = asyncio.run(all_of_them())
    assert [each for each in found if each[2] != "unavailable"] == []
    assert [each for each in found if each[0] > TIMEOUT_S + MARGIN_S + busy_s] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda to: safe_refs.release(to.payload, timeout=TIMEOUT_S),
        lambda to: safe_refs.dumps(to.ref, timeout=TIMEOUT_S, wait=True),
        lambda to: safe_refs.loads(to.payload, timeout=TIMEOUT_S),
    ],
    ids=["release", "dumps", "loads"],
)
def test_calls_that_stand_in_line(registry: str, call: Callable[[Targets], Any]) -> None:
    """Behind calls of other threads that wait for longer, some of which are given up by then."""
    to, took = Targets(), list[float]()

    def patient() -> None:
        safe_refs.loads(safe_refs.dumps(to.ref, timeout=30), timeout=30)
        safe_refs.release(safe_refs.dumps(to.ref, timeout=30), timeout=30)

    def timed() -> None:
        begun = time.monotonic()
        with pytest.raises(safe_refs.RegistryUnavailableError):
            call(to)
        took.append(time.monotonic() - begun)

    others = [threading.Thread(target=patient) for _ in range(2)]
    threads = [threading.Thread(target=timed) for _ in range(4 * AT_ONCE)]
    with stopped(registry, 0):
        for thread in (*others, *threads):
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(30)
    for thread in others:
        thread.join(30)
    assert len(took) == 4 * AT_ONCE
    assert max(took) < TIMEOUT_S + MARGIN_S


@pytest.mark.long
def test_a_borrower_whose_relays_do_not_respond(driver: Driver, registry: str) -> None:
    """Its pins end in time all the same: they are held, or it says that they are not."""
    found = driver(
        """
        import asyncio, os, signal
        from safe_refs import aio
        os.environ["SAFE_REFS_REGISTRY"] = args[0]

        @ray.remote(num_cpus=0)
        class Maker:
            def make(self):
                self.refs = [ray.put(number) for number in range(10)]
                return self.refs

        maker = Maker.remote()
        refs = ray.get(maker.make.remote())
        payloads = [safe_refs.dumps(refs[0]), safe_refs.dumps(refs[1])]
        relays = []
        for number in range(5):
            try:
                relay = ray.get_actor(f"relay:{number}", namespace="safe_refs")
                relays.append(ray.get(relay.where.remote(), timeout=30)[1])
            except ValueError:
                pass
        calls = {
            "the same": lambda: safe_refs.dumps(refs[1], timeout=1),
            "dumps": lambda: safe_refs.dumps(refs[2], timeout=1),
            "again": lambda: safe_refs.dumps(refs[3], timeout=1),
            "pin": lambda: safe_refs.pin(refs[4], timeout=1),
            "many": lambda: safe_refs.dumps_many([refs[5], refs[6]], timeout=1),
            "flush": lambda: [safe_refs.dumps(refs[7], wait=False, timeout=1), safe_refs.flush(1)][:1],
            "aio": lambda: asyncio.run(aio.dumps(refs[8], timeout=1)),
        }
        took = {}
        for pid in relays:
            os.kill(pid, signal.SIGSTOP)
        try:
            for name, call in calls.items():
                begun = time.monotonic()
                try:
                    payloads.append(call())
                    said = "held"
                except safe_refs.RegistryUnavailableError as error:
                    said = "not in time"
                took[name] = [time.monotonic() - begun, said]
        finally:
            for pid in relays:
                os.kill(pid, signal.SIGCONT)
        safe_refs.release(payloads)
        print(json.dumps([len(relays), took]))
        """,
        registry,
    )
    assert found[0] > 0
    assert {name: took_s for name, (took_s, _) in found[1].items() if took_s > TIMEOUT_S + MARGIN_S} == {}

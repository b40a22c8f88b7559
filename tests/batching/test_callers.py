"""Leases that are made for an event loop show the user's line, and not one of the thread that made the call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio
from tests.support.cluster import as_actor

MINE = re.compile(rf"{re.escape(str(Path(__file__)))}:\d+ in (\w+)")

MAKES: dict[str, Callable[[], Awaitable[Any]]] = {
    "dumps": lambda: aio.dumps(ray.put(1)),
    "dumps without waiting": lambda: aio.dumps(ray.put(1), wait=False),
    "durable dumps": lambda: aio.dumps(ray.put(1), durable=True),
    "dumps_many": lambda: aio.dumps_many([ray.put(1)]),
    "pin": lambda: aio.pin(ray.put(1)),
    "durable pin": lambda: aio.pin(ray.put(1), durable=True),
    "put": lambda: aio.put(1),
}


def sources() -> list[str]:
    return [row.source for row in safe_refs.leases()]


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_who_awaits_is_the_source(cluster: str, make: Callable[[], Awaitable[Any]]) -> None:
    """Whichever function it is."""

    async def awaits() -> None:
        await make()
        await aio.flush()

    asyncio.run(awaits())
    (source,) = sources()
    found = MINE.fullmatch(source)
    assert found, source
    assert found[1] == "awaits"
    safe_refs.release(safe_refs.leases())


def ended_by(payload: bytes) -> str:
    with pytest.raises(safe_refs.LeaseReleasedError) as caught:
        safe_refs.loads(payload)
    return caught.value.by


def test_who_awaits_has_ended_it(cluster: str) -> None:
    """By a release, or at the end of a scope, of a handle's block or of a consumer's."""

    async def ends() -> None:
        payload = safe_refs.dumps(ray.put(1))
        await aio.release(payload)
        assert MINE.search(ended_by(payload)), ended_by(payload)
        async with safe_refs.scope():
            payload = safe_refs.dumps(ray.put(1))
        assert MINE.search(ended_by(payload)), ended_by(payload)
        payload = safe_refs.dumps(ray.put(1))
        async with safe_refs.inspect(payload).handles[0]:
            pass
        assert MINE.search(ended_by(payload)), ended_by(payload)
        payload = safe_refs.dumps(ray.put(1))
        async with safe_refs.consume(payload):
            pass
        assert MINE.search(ended_by(payload)), ended_by(payload)

    asyncio.run(ends())


def test_a_call_that_is_a_task_is_named_by_it(cluster: str) -> None:
    """A task of its own has no line of the user's; the tasks' names can be given."""

    async def gathers() -> list[Any]:
        made = await asyncio.gather(
            aio.dumps(ray.put(1)), asyncio.create_task(aio.put(2), name="nightly"), aio.dumps_many([ray.put(3)])
        )
        return [*made]

    made = asyncio.run(gathers())
    assert all("asyncio task '" in source for source in sources()), sources()
    assert "asyncio task 'nightly'" in sources()
    safe_refs.release(made)


def test_in_an_async_actor(cluster: str) -> None:
    """There, too."""

    class Service:
        async def work(self) -> bytes:
            return (await aio.dumps_many([ray.put(1)]))[0]

    service = as_actor(Service).remote()
    payload = ray.get(service.work.remote(), timeout=60)
    (source,) = sources()
    assert source.endswith(" in work"), source
    safe_refs.release(payload)


def test_what_a_caller_is_stays_in_its_call(cluster: str) -> None:
    """A thread of the user's own, later in the same task, is not taken for that caller's."""

    async def later() -> bytes:
        await aio.release(await aio.put(1))
        return await asyncio.to_thread(safe_refs.dumps, ray.put(2))

    payload = asyncio.run(later())
    (source,) = sources()
    assert "thread.py" in source, source  # of the pool
    safe_refs.release(payload)

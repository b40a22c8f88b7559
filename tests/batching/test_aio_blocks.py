"""Blocks of an event loop's tasks: `async with` a pipeline, a scope, a handle; what their ends do doesn't block the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import ray

import safe_refs
from safe_refs import SafeRef, aio, terms
from safe_refs.pipelines import Pipeline
from tests.support.loops import Ticks
from tests.support.shards import stopped
from tests.support.waiting import wait_until

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def waits() -> bool:
    return terms.ask(None, None, None, None, None).waits


async def silent(block: Coroutine[Any, Any, T]) -> T:
    """The result of a block whose end has to wait, as the registry is silent for a second; the loop goes on meanwhile."""
    async with Ticks() as ticks:
        with stopped("default", 0):
            task = asyncio.ensure_future(block)
            await asyncio.sleep(1)
            assert not task.done()
        result = await task
    assert ticks.longest_s < 0.5  # a second if anything had waited in the loop
    return result


def test_a_pipeline_is_its_tasks(cluster: str) -> None:
    """Inside nothing waits; at its end all is held, also if the block raises; other tasks wait as before."""

    async def piped() -> list[bytes]:
        async with aio.pipeline():
            payloads = [await aio.dumps(ray.put(number)) for number in range(10)]
            payloads.append(safe_refs.dumps(ray.put("by the function that is not awaited")))
            assert all(handle.address.soon for each in payloads for handle in safe_refs.inspect(each).handles)
        assert len(safe_refs.leases()) == 11
        assert waits()
        return payloads

    async def fails(payloads: list[bytes]) -> None:
        async with aio.pipeline():
            payloads.append(await aio.dumps(ray.put("raised")))
            raise ZeroDivisionError

    async def live() -> None:
        payloads, other = await asyncio.gather(piped(), asyncio.to_thread(waits))
        assert other
        with pytest.raises(ZeroDivisionError):
            await fails(payloads)
        assert waits()
        assert await aio.release(payloads) == 12

    run(live())


def test_the_end_of_a_pipeline_does_not_block_the_loop(cluster: str) -> None:
    """It waits for the registry, and other tasks go on."""
    safe_refs.init()

    async def block() -> bytes:
        async with aio.pipeline():
            return await aio.dumps(ray.put(1))

    async def live() -> None:
        assert await aio.release(await silent(block())) == 1

    run(live())


def test_a_pipelines_end_raises_what_failed(cluster: str, registry: str) -> None:
    """As `flush` does, and it is closed then."""
    safe_refs.init(registry, max_leases=1)

    async def pass_on(pipeline: Pipeline) -> None:
        async with pipeline:
            assert repr(pipeline) == "<pipeline open>"
            await aio.dumps_many([ray.put(1), ray.put(2)])

    async def live() -> None:
        pipeline = aio.pipeline()
        assert repr(pipeline) == "<pipeline not entered>"
        with pytest.raises(safe_refs.RegistryFullError):
            await pass_on(pipeline)
        assert repr(pipeline) == "<pipeline closed>"
        assert waits()
        with pytest.raises(RuntimeError, match=r"call pipeline\(\) again"):
            async with pipeline:
                pass

    run(live())


def test_a_pipeline_decorates_a_function(cluster: str) -> None:
    """Each call has a pipeline of its own, also one inside another."""

    @safe_refs.pipeline()
    def pass_on(depth: int) -> list[bytes]:
        assert not waits()
        return [safe_refs.dumps(ray.put(depth)), *(pass_on(depth - 1) if depth else [])]

    payloads = pass_on(2)
    assert waits()
    assert len(safe_refs.leases()) == 3
    assert safe_refs.release(payloads) == 3


def test_who_is_cancelled_at_a_pipelines_end_is_out_of_it(cluster: str) -> None:
    """What was passed on is held all the same."""
    safe_refs.init()
    made: list[bytes] = []

    async def block() -> bool:
        try:
            async with aio.pipeline():
                made.append(await aio.dumps(ray.put(1)))
        except asyncio.CancelledError:
            return waits()
        return False

    async def live() -> None:
        with stopped("default", 0):
            task = asyncio.ensure_future(block())
            await asyncio.sleep(0.2)
            task.cancel()
            assert await task

    run(live())
    wait_until(lambda: len(safe_refs.leases()) == 1)
    assert safe_refs.release(made) == 1


def test_a_handle_releases_at_the_end_of_a_block(cluster: str) -> None:
    """Whatever ends the block; the loop goes on meanwhile, although the registry is silent."""
    safe_refs.init()

    async def live() -> None:
        async with await aio.pin(ray.put("v")) as handle:
            assert await handle == "v"
        with pytest.raises(safe_refs.LeaseReleasedError):
            await handle
        other = await aio.pin(ray.put("w"))
        with pytest.raises(ZeroDivisionError):
            async with other:
                raise ZeroDivisionError
        assert await aio.release(other) == 0
        third = await aio.pin(ray.put("x"))
        await silent(enter(third))
        assert await aio.release(third) == 0

    run(live())


async def enter(handle: SafeRef[str]) -> None:
    async with handle:
        pass


def test_a_handles_block_releases_although_its_task_is_cancelled(cluster: str) -> None:
    """Even before the loop had a thread for it."""
    safe_refs.init()
    handle = safe_refs.pin(ray.put("v"))
    free = threading.Event()

    async def live() -> None:
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, free.wait, 10) for _ in range(64)]
        task = asyncio.ensure_future(enter(handle))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        free.set()
        await asyncio.gather(*busy)

    run(live())
    wait_until(lambda: safe_refs.leases() == [])

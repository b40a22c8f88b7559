"""`safe_refs.aio`: the same names, awaitable; nothing blocks the loop, and a cancelled task leaves nothing held."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
import ray

import safe_refs
from safe_refs import aio
from safe_refs.registry.calls import Registry
from tests.support.cluster import as_actor
from tests.support.loops import Ticks
from tests.support.shards import Start, stopped
from tests.support.waiting import comes, wait_until

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def none_is_held() -> None:
    """Nothing is held, also when what may have been on its way has had the time to arrive: it would have been there within 0.5 s."""
    comes(lambda: bool(safe_refs.leases()), 0.5)
    wait_until(lambda: safe_refs.leases() == [])


def test_the_names_and_arguments_are_the_same() -> None:
    """What is awaited takes what is called."""
    for name in aio.__all__:
        mine = getattr(aio, name)
        if mine is getattr(safe_refs, name, None):  # gives a context manager, which `async with` takes as `with` does
            assert name in ("consume", "keepalive", "pipeline", "scope"), name
            continue
        assert inspect.iscoroutinefunction(mine), name
        if hasattr(safe_refs, name):
            theirs = inspect.signature(getattr(safe_refs, name))
            assert [*inspect.signature(mine).parameters] == [*theirs.parameters], name


def test_a_life_of_a_lease(cluster: str) -> None:
    """Made, listed, read, prolonged, released, missed."""

    async def live() -> None:
        payload = await aio.dumps({"ref": ray.put("there")}, ttl=100, label="awaited")
        assert [row.label for row in await aio.leases()] == ["awaited"]
        assert await (await aio.loads(payload))["ref"] == "there"
        (handle,) = safe_refs.inspect(payload).handles
        assert await handle == "there"
        assert await aio.get(handle) == "there"
        assert await (await aio.resolve(handle)) == "there"
        await aio.renew(payload, 1000)
        assert (await aio.expires_in_s(payload) or 0) > 900
        figures = await aio.stats()
        assert figures is not None
        assert figures.live_leases == 1
        assert await aio.release(payload) == 1
        with pytest.raises(safe_refs.LeaseReleasedError):
            await aio.loads(payload)
        with pytest.raises(safe_refs.LeaseReleasedError):
            await handle
        assert await aio.loads(await aio.dumps([1, 2])) == [1, 2]

    run(live())


def test_many_and_without_waiting(cluster: str) -> None:
    """The other forms, too."""

    async def live() -> None:
        refs = [ray.put(number) for number in range(30)]
        payloads = await aio.dumps_many(refs)
        loaded = await aio.loads_many(payloads)
        assert loaded == refs
        payloads.append(await aio.dumps(refs[0], wait=False))
        await aio.flush()
        first, second = await aio.pin(refs[:2])
        assert [await first, await second] == [0, 1]
        assert len(safe_refs.leases()) == 32
        assert await aio.release([*payloads, first]) == 32

    run(live())


def test_many_tasks_share_calls(start: Start) -> None:
    """Five hundred at once, with two replicas."""
    start(2, 2)

    async def live() -> None:
        refs = [ray.put(number) for number in range(500)]
        payloads = await asyncio.gather(*(aio.dumps({"n": n, "ref": ref}) for n, ref in enumerate(refs)))
        loaded = await asyncio.gather(*(aio.loads(payload) for payload in payloads))
        assert [(each["n"], each["ref"]) for each in loaded] == list(enumerate(refs))
        assert await aio.release(payloads) == 500

    run(live())


def test_the_loop_goes_on_while_the_registry_is_silent(cluster: str) -> None:
    """For everything that asks it, also on first contact."""

    async def live() -> float:
        async with Ticks() as ticks:
            payload = await aio.dumps(ray.put(1))  # which may start it
            with stopped("default", 0):
                waiting = [
                    asyncio.ensure_future(each)
                    for each in (
                        aio.dumps(ray.put(2)),
                        aio.dumps_many([ray.put(3)]),
                        aio.loads(payload),
                        aio.loads_many([payload]),
                        aio.renew(payload, 100),
                        aio.stats(),
                        aio.leases(),
                    )
                ]
                done, _ = await asyncio.wait(waiting, timeout=1)
                assert not done
            second, third, *_ = await asyncio.gather(*waiting)
            assert await aio.release([payload, second, *third]) == 3
        return ticks.longest_s

    assert run(live()) < 0.5  # 1 s and more if anything had waited in the loop


def test_who_is_cancelled_leaves_nothing_held(cluster: str) -> None:
    """The pin may be on its way already."""
    safe_refs.init()

    async def live() -> None:
        with stopped("default", 0):
            task = asyncio.ensure_future(aio.dumps(ray.put(1)))
            done, _ = await asyncio.wait([task], timeout=0.1)
            assert not done
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(live())
    none_is_held()


def test_the_loop_goes_on_while_what_was_cancelled_ends(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To release a lease may wait: for the control store, where a shard is, if it has just died. The loop stood still meanwhile."""
    safe_refs.init()
    refs, release_later = [ray.put(number) for number in range(3)], Registry.release_later

    def take_long(registry: Registry, leases: Sequence[bytes]) -> None:
        time.sleep(1)
        release_later(registry, leases)

    async def live() -> float:
        async with Ticks() as ticks:
            for make in (aio.dumps(refs[0]), aio.dumps_many(refs), aio.pin(refs)):
                with stopped("default", 0):
                    task = asyncio.ensure_future(make)
                    done, _ = await asyncio.wait([task], timeout=0.2)
                    assert not done
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()
            await asyncio.to_thread(none_is_held)
        return ticks.longest_s

    monkeypatch.setattr(Registry, "release_later", take_long)
    assert run(live()) < 0.5


def test_who_is_cancelled_while_many_are_made_leaves_nothing_held(cluster: str) -> None:
    """They are made by a thread, which goes on."""
    safe_refs.init()
    refs = [ray.put(number) for number in range(3)]

    async def live() -> None:
        for make in (aio.dumps_many(refs), aio.pin(refs)):
            with stopped("default", 0):
                task = asyncio.ensure_future(make)
                done, _ = await asyncio.wait([task], timeout=0.2)
                assert not done
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(none_is_held)

    run(live())
    wait_until(lambda: safe_refs.leases() == [])


@pytest.mark.long
def test_what_was_cancelled_by_the_end_of_its_loop_is_not_held(cluster: str) -> None:
    """The loop is closed before the registry answers."""
    safe_refs.init()
    refs = [ray.put(number) for number in range(3)]
    for make in (lambda: aio.dumps(refs[0]), lambda: aio.dumps_many(refs), lambda: aio.pin(refs)):
        silence = contextlib.ExitStack()
        silence.enter_context(stopped("default", 0))
        ends = threading.Timer(1.0, silence.close)  # the loop's end waits for its threads
        ends.start()
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(make(), 0.3))
        ends.join()
        none_is_held()


def test_without_references_no_ray_is_needed() -> None:
    """Also without waiting."""
    code = """
import asyncio, sys
from safe_refs import aio
print([asyncio.run(aio.loads(asyncio.run(aio.dumps([1], wait=wait)))) for wait in (True, False)], "ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[[1], [1]] False\n", done.stderr


def test_a_scope_belongs_to_its_task(cluster: str) -> None:
    """What is made inside ends with it; another task's does not."""

    async def inside() -> bytes:
        async with safe_refs.scope():
            payload = await aio.dumps(ray.put("in"))
            assert await (await aio.loads(payload)) == "in"
        return payload

    async def live() -> None:
        ended, outside = await asyncio.gather(inside(), aio.dumps(ray.put("out")))
        with pytest.raises(safe_refs.LeaseReleasedError):
            await aio.loads(ended)
        assert await aio.release(outside) == 1

    run(live())


def test_in_an_async_actor(cluster: str) -> None:
    """Many calls at once; the actor answers others meanwhile."""

    class Service:
        async def work(self, number: int) -> bytes:
            payload = await aio.dumps({"n": number, "ref": ray.put(number)})
            loaded = await aio.loads(payload)
            assert await loaded["ref"] == number
            return payload

        async def ping(self) -> str:
            return "pong"

        async def slowest(self, often: int) -> float:
            async with Ticks() as ticks:
                await asyncio.gather(*(self.work(number) for number in range(often)))
            return ticks.longest_s

    service = as_actor(Service).remote()
    payloads = ray.get([service.work.remote(number) for number in range(40)], timeout=60)
    with stopped("default", 0):
        waiting = service.work.remote(99)
        assert ray.get(service.ping.remote(), timeout=20) == "pong"
    payloads.append(ray.get(waiting, timeout=60))
    assert [ray.get(safe_refs.loads(each)["ref"], timeout=20) for each in payloads] == [*range(40), 99]
    assert safe_refs.release(payloads) == 41
    assert ray.get(service.slowest.remote(50), timeout=60) < 1
    assert safe_refs.shutdown() == 50

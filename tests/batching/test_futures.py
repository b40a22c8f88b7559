"""Requests of event loops: without Ray, to a registry that is none."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

import pytest

from safe_refs._ray import exits
from safe_refs.batching import futures, unacknowledged
from safe_refs.batching.groups import Batched
from safe_refs.batching.unacknowledged import Unacknowledged
from safe_refs.errors import OwnerGoneError, RegistryFullError, RegistryUnavailableError
from safe_refs.registry.calls import Registry
from safe_refs.registry.sessions import Session
from tests.support.loops import Ticks
from tests.support.registries import HELD, FakeRegistry, FakeSession, plan, wanted, within
from tests.support.waiting import until, wait_until

T = TypeVar("T")


@pytest.fixture
def session() -> Iterator[FakeSession]:
    made = FakeSession()
    made.sender = Batched(cast(Session, made))
    yield made
    for registry in made.registries.values():
        registry.gate.set()
    made.sender.close()


@pytest.fixture
def one(session: FakeSession) -> FakeRegistry:
    return session.registry("one")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def pin(one: FakeRegistry, each: Any, seconds: float = 20) -> Coroutine[Any, Any, Any]:
    return futures.pin(one.here.sender, cast(Registry, one), each, within(seconds))


def test_many_tasks_share_calls(session: FakeSession, one: FakeRegistry) -> None:
    """Pins and resolves."""

    async def live() -> None:
        plans = [plan([number]) for number in range(300)]
        assert await asyncio.gather(*(pin(one, each) for each in plans)) == [HELD] * 300
        found = await asyncio.gather(
            *(futures.resolve(session.sender, wanted(each.lease), within(20)) for each in plans)
        )
        assert found == [[number] for number in range(300)]

    run(live())
    assert len(one.asked) < 100


def test_the_loop_goes_on_while_the_registry_is_silent(session: FakeSession, one: FakeRegistry) -> None:
    """Also while a wing takes its time over what was pinned, which it did in the loop once."""

    class Slow(list[Any]):
        def pop(self, *_: Any) -> Any:
            time.sleep(1)
            raise OwnerGoneError("a wing says so")

    async def live() -> float:
        async with Ticks() as ticks:
            one.gate.clear()
            tasks = [asyncio.ensure_future(pin(one, plan([1], borrowed=number < 1))) for number in range(3)]
            tasks.append(asyncio.ensure_future(futures.resolve(session.sender, wanted(b"x"), within(20))))
            done, _ = await asyncio.wait(tasks, timeout=0.3)
            assert not done
            one.held[b"x"] = ["X"]
            session.refuse = Slow([1])
            one.gate.set()
            failed, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failed, OwnerGoneError)
        assert others[-1] == ["X"]
        return ticks.longest_s

    assert run(live()) < 0.5


def test_errors_are_the_registrys(one: FakeRegistry) -> None:
    """Each task gets its own; and the error keeps nothing alive until the next garbage collection."""

    class Ref:
        pass

    alive: list[Any] = []

    async def live() -> None:
        ref = Ref()
        alive.append(weakref.ref(ref))
        each = plan([ref])
        del ref
        with pytest.raises(RegistryFullError) as caught:
            await pin(one, each)
        del caught

    gc.collect()
    gc.disable()
    try:
        one.fail = [RegistryFullError("full"), RegistryFullError("full")]
        asyncio.run(live())
        wait_until(lambda: alive[0]() is None)
    finally:
        gc.enable()


def test_who_is_cancelled_holds_nothing(session: FakeSession, one: FakeRegistry) -> None:
    """If the pin comes through all the same, it is released, and wings hear that it isn't held."""

    async def live() -> None:
        one.gate.clear()
        task = asyncio.ensure_future(pin(one, each))
        await until(lambda: bool(one.asked))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        one.gate.set()
        await until(lambda: each.lease in one.ended)

    each = plan([1], borrowed=True)
    run(live())
    assert each.lease not in one.held
    wait_until(lambda: [held for _, held, _ in session.told] == [False])


def test_the_loop_may_be_closed_before_the_answer(one: FakeRegistry) -> None:
    """Nothing is held then, either."""
    each = plan()
    one.gate.clear()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(pin(one, each), 0.2))
    one.gate.set()
    wait_until(lambda: each.lease in one.ended)
    assert each.lease not in one.held


def test_a_future_ends_by_a_deadline_of_its_own(session: FakeSession, one: FakeRegistry) -> None:
    """Whatever becomes of the thread that sends: here it never calls back. There was no such deadline."""

    async def live() -> None:
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.3 s"):
            await pin(one, plan(), 0.3)
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.3 s"):
            await futures.resolve(session.sender, wanted(b"x"), within(0.3))
        assert time.monotonic() - begun < 3

    session.sender.post = session.sender.post_resolve = lambda *_: None
    run(live())


def test_posting_does_not_block_the_loop(
    session: FakeSession, one: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there is no room, a thread waits for it: the loop stood still, up to the timeout."""
    monkeypatch.setattr(unacknowledged, "_MOST", 2)
    monkeypatch.setattr(exits, "call_before_exit", lambda hook, first: None)
    posted = Unacknowledged(cast(Session, session))

    async def live() -> float:
        one.gate.clear()
        async with Ticks() as ticks:
            for _ in range(2):
                await futures.post(posted, "one", plan(), within(20))
            third = asyncio.ensure_future(futures.post(posted, "one", plan(), within(20)))
            done, _ = await asyncio.wait([third], timeout=0.6)
            assert not done
            one.gate.set()
            await third
        return ticks.longest_s

    try:
        assert run(live()) < 0.4
        posted.flush(within(20))
        assert len(one.held) == 3
    finally:
        posted.close()

"""`consume`: a queue's consumer has the object for a block, and the lease ends when the block has succeeded."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseReleasedError, LeaseUsedUpError, RegistryUnavailableError, aio
from tests.support.cluster import as_actor
from tests.support.faulty import faulty, live, payload
from tests.support.loops import Ticks
from tests.support.shards import place
from tests.support.waiting import until, wait_until


class FailedError(Exception):
    """The consumer's own."""


def consume(target: Any, work: Callable[[Any], Any], **how: Any) -> Any:
    """What the work on a message gives."""
    with safe_refs.consume(target, **how) as obj:
        return work(obj)


def consume_in_a_loop(target: Any, work: Callable[[Any], Any], **how: Any) -> Any:
    """The same, in an event loop, which goes on meanwhile."""

    async def consuming() -> Any:
        async with Ticks() as ticks, aio.consume(target, **how) as obj:
            found = await asyncio.to_thread(work, obj)
        assert ticks.longest_s < 1
        return found

    return asyncio.run(consuming())


def got(obj: Any) -> Any:
    """Values in place of references."""
    return [got(each) for each in obj] if isinstance(obj, list) else ray.get(obj, timeout=20)


def fail(obj: Any) -> None:
    raise FailedError


both_ways = pytest.mark.parametrize("consuming", [consume, consume_in_a_loop], ids=["with", "async with"])


def test_it_is_the_same_in_aio() -> None:
    """One object is both kinds of context manager, and each is entered once."""
    assert aio.consume is safe_refs.consume
    once = safe_refs.consume(pickle.dumps("plain"))
    with once as obj:
        assert obj == "plain"
    with pytest.raises(RuntimeError, match="entered once"):
        once.__enter__()
    with pytest.raises(RuntimeError, match="entered once"):
        asyncio.run(once.__aenter__())
    assert repr(once) == "<consume of 1 target(s)>"


@pytest.mark.usefixtures("cluster")
@both_ways
@pytest.mark.parametrize("terms", [{}, {"uses": 1}, {"uses": 3}], ids=["no uses", "one use", "three uses"])
def test_the_lease_ends_when_the_block_succeeds(consuming: Any, terms: dict[str, int]) -> None:
    """Not while it runs, where it can be seen; a message that is delivered once more is refused by name."""
    data = payload("one", **terms)
    assert consuming(data, lambda obj: (got(obj), live())) == (["one"], 0 if terms == {"uses": 1} else 1)
    assert live() == 0
    with pytest.raises(LeaseUsedUpError if terms == {"uses": 1} else LeaseReleasedError):
        consuming(data, got)


@pytest.mark.usefixtures("cluster")
@both_ways
@pytest.mark.parametrize("terms", [{}, {"uses": 1}, {"uses": 3}], ids=["no uses", "one use", "three uses"])
def test_the_lease_stays_when_the_block_raises(consuming: Any, terms: dict[str, int]) -> None:
    """And the use is given back, whether opening fails or the block: the next consumer finds all as it was."""
    data = payload("one", **terms)
    for _ in range(3):
        with pytest.raises(FailedError):
            consuming(data, fail)
        with faulty(), pytest.raises(ModuleNotFoundError):
            consuming(data, got)
        (info,) = safe_refs.leases()
        assert info.uses_left == terms.get("uses")
    assert consuming(data, got) == ["one"]
    assert live() == 0


@pytest.mark.usefixtures("cluster")
@both_ways
def test_many_at_once(consuming: Any) -> None:
    """Payloads, handles and their texts, and pickles without references: a list in their order. All end together, or none."""
    handle, other = safe_refs.pin(ray.put("handle"), uses=1), safe_refs.pin(ray.put("text"))
    targets = [handle, payload("one"), str(other), pickle.dumps("plain"), payload("two", uses=1)]

    def work(objs: list[Any]) -> Any:
        return [objs[0], got(objs[1]), objs[2], objs[3], got(objs[4])]

    with pytest.raises(FailedError):
        consuming(iter(targets), fail)
    assert live() == 4
    assert consuming(targets, work) == ["handle", ["one"], "text", "plain", ["two"]]
    assert live() == 0
    assert consuming([], lambda objs: objs) == []
    with pytest.raises(LeaseUsedUpError):
        consuming([payload_of_nobody := payload("left"), handle], work)
    assert live() == 1
    safe_refs.release(payload_of_nobody)


@pytest.mark.usefixtures("cluster")
@both_ways
def test_one_handle_gives_its_value(consuming: Any) -> None:
    """And an actor's handle the actor."""
    assert consuming(safe_refs.pin(ray.put("value")), lambda value: value) == "value"
    assert consuming(str(safe_refs.pin(ray.put("value"))), lambda value: value) == "value"
    assert consuming(memoryview(payload("view")), got) == ["view"]
    assert live() == 0


@pytest.mark.usefixtures("cluster")
@both_ways
def test_out_of_band_buffers_and_other_arguments_are_those_of_loads(consuming: Any) -> None:
    """As `loads` takes them."""
    buffers: list[pickle.PickleBuffer] = []
    data = safe_refs.dumps([ray.put("one"), pickle.PickleBuffer(b"out of band")], buffer_callback=buffers.append)
    assert consuming(data, lambda obj: bytes(obj[1]), buffers=buffers) == b"out of band"
    old = b"(S'\\xe9'\np0\nl."  # as Python 2 wrote it
    assert consuming(old, lambda obj: obj, encoding="latin-1") == ["é"]
    taken = set(inspect.signature(safe_refs.consume).parameters) - {"target"}
    assert taken == set(inspect.signature(safe_refs.loads).parameters) - {"data", "resolve", "take", "anchored"}


@pytest.mark.parametrize(
    ("target", "how", "said"),
    [
        (5, {}, "not int"),
        ([5], {}, "not int"),
        ([[b"nested"]], {}, "not list"),
        ([b"one", b"two"], {"buffers": []}, "one at a time"),
    ],
)
def test_mistakes_are_told_at_once(target: Any, how: dict[str, Any], said: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(TypeError, match=said):
        safe_refs.consume(target, **how)


def test_a_registry_that_does_not_answer_at_the_end(registry: str) -> None:
    """The block has succeeded, and the lease may be left: it is raised, so that the message comes again."""
    data = payload("one")
    pid = place(registry, 0)[1]
    try:
        with pytest.raises(RegistryUnavailableError):
            consume(data, lambda obj: os.kill(pid, signal.SIGSTOP), timeout=1)
        assert consume(pickle.dumps("plain"), len, timeout=1) == 5  # for which nobody is asked
    finally:
        os.kill(pid, signal.SIGCONT)
    with suppress(LeaseReleasedError), safe_refs.consume(data) as obj:
        assert got(obj) == ["one"]
    assert live() == 0


@pytest.mark.usefixtures("cluster")
def test_a_consumer_that_is_cancelled_keeps_the_lease() -> None:
    """In the block, and while it waits to enter it."""
    data = payload("one", uses=1)

    async def work(begun: asyncio.Event) -> None:
        async with safe_refs.consume(data):
            begun.set()
            await asyncio.sleep(60)

    async def cancel() -> None:
        for waits in (True, False):
            begun = asyncio.Event()
            task = asyncio.ensure_future(work(begun))
            if waits:
                await begun.wait()
            else:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: live() == 1)

    asyncio.run(cancel())

    def is_there() -> bool:
        try:
            with safe_refs.consume(data) as obj:
                return bool(got(obj) == ["one"])
        except safe_refs.LeaseUsedUpError:  # the answer to who was cancelled is still on its way, and then given back
            return False

    wait_until(is_there)


@pytest.mark.usefixtures("cluster")
def test_a_generator_that_is_closed_keeps_the_lease() -> None:
    """One that consumes, and one that does so in a loop, and is closed when that has ended."""
    data = payload("one", uses=1)

    async def messages() -> AsyncIterator[Any]:
        async with safe_refs.consume(data) as obj:
            yield obj

    async def read() -> None:
        async for obj in messages():
            assert await asyncio.to_thread(got, obj) == ["one"]
            break

    asyncio.run(read())
    wait_until(lambda: live() == 1)
    coroutine = safe_refs.consume(data).__aenter__()
    coroutine.close()
    with safe_refs.consume(data) as obj:
        assert got(obj) == ["one"]


class Consumer:
    """A process that is killed while it consumes."""

    def consume(self, data: bytes, place: str) -> None:
        with safe_refs.consume(data) as obj:
            assert ray.get(obj, timeout=20) == ["one"]
            Path(place).touch()
            time.sleep(60)


@pytest.mark.usefixtures("cluster")
def test_a_consumer_that_is_killed_leaves_the_message(tmp_path: Any) -> None:
    """With its object; where uses count, it has spent one."""
    data, counted = payload("one"), payload("one", uses=2)
    for message in (data, counted):
        there = tmp_path / str(message is data)
        consumer = as_actor(Consumer).remote()
        consumer.consume.remote(message, str(there))
        wait_until(there.exists)
        ray.kill(consumer)
    assert sorted(str(info.uses_left) for info in safe_refs.leases()) == ["1", "None"]
    with safe_refs.consume([data, counted]) as objs:
        assert got(objs) == [["one"], ["one"]]
    assert live() == 0

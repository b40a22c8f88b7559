"""A use whose object can't be opened is given back, by whatever opened it: nobody else had it, and nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseReleasedError, LeaseUsedUpError, aio
from tests.support.cluster import as_actor
from tests.support.faulty import Faulty, Unable, faulty, live, payload
from tests.support.loops import Ticks
from tests.support.shards import Start, both, decider, kill, place, stopped, wait_until_whole
from tests.support.store import is_empty
from tests.support.tasks import when_told
from tests.support.values import MB
from tests.support.waiting import until, wait_until

USES: dict[str, Callable[[bytes], Any]] = {
    "loads": safe_refs.loads,
    "load": lambda data: safe_refs.load(io.BytesIO(data)),
    "pickle": pickle.loads,
    "loads_many": lambda data: safe_refs.loads_many([data])[0],
    "aio.loads": lambda data: asyncio.run(aio.loads(data)),
    "aio.loads_many": lambda data: asyncio.run(aio.loads_many([data]))[0],
}
TAKES: dict[str, Callable[[bytes], Any]] = {
    "loads": lambda data: safe_refs.loads(data, take=True),
    "load": lambda data: safe_refs.load(io.BytesIO(data), take=True),
    "loads_many": lambda data: safe_refs.loads_many([data], take=True)[0],
    "aio.loads": lambda data: asyncio.run(aio.loads(data, take=True)),
    "aio.loads_many": lambda data: asyncio.run(aio.loads_many([data], take=True))[0],
}
WAYS: list[tuple[Callable[[bytes], Any], dict[str, int], type[Exception]]]
WAYS = [(way, {"uses": 1}, LeaseUsedUpError) for way in USES.values()]
WAYS += [(way, {}, LeaseReleasedError) for way in TAKES.values()]
NAMES = [*(f"use {name}" for name in USES), *(f"take {name}" for name in TAKES)]


def stats() -> safe_refs.RegistryStats:
    found = safe_refs.stats()
    assert found is not None
    return found


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.fixture(params=["one shard", "two replicas"])
def registry_of(request: pytest.FixtureRequest) -> Iterator[str]:
    """A registry of the tests' own, with one shard, or with two that hold each lease."""
    if request.param == "one shard":
        yield request.getfixturevalue("registry")
    else:
        yield request.getfixturevalue("start")(2, 2)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("way", "terms", "end"), WAYS, ids=NAMES)
def test_it_can_be_had_again(way: Callable[[bytes], Any], terms: dict[str, int], end: type[Exception]) -> None:
    """As often as opening fails, by whatever exception, an interrupt too. Who opens it then has the only use."""
    data = payload("one", "two", **terms)
    before = stats()
    for fault, error in ((None, ModuleNotFoundError), (interrupted, KeyboardInterrupt), (None, ModuleNotFoundError)):
        with faulty(fault), pytest.raises(error):
            way(data)
        assert live() == 1
    assert ray.get(way(data), timeout=20) == ["one", "two"]
    with pytest.raises(end):
        way(data)
    after = stats()
    assert after.pinned == before.pinned
    assert after.released + after.used_up == before.released + before.used_up + 1, "each end counts once"


def test_it_can_be_had_again_from_either(registry_of: str) -> None:
    """From one shard, and from two that hold the lease; it ends on both."""
    taken, used, shared = payload("taken"), payload("used", uses=1), payload("shared", uses=2)
    for _ in range(3):
        with faulty():
            for data, take in ((taken, True), (used, False), (shared, False)):
                with pytest.raises(ModuleNotFoundError):
                    safe_refs.loads(data, take=take)
            with pytest.raises(ModuleNotFoundError):
                safe_refs.loads_many([shared, used, shared])
    assert live() == 3
    assert sorted(str(info.uses_left) for info in safe_refs.leases()) == ["1", "2", "None"]
    assert ray.get(safe_refs.loads(taken, take=True) + safe_refs.loads(used), timeout=20) == ["taken", "used"]
    assert ray.get([refs[0] for refs in safe_refs.loads_many([shared, shared])], timeout=20) == ["shared"] * 2
    assert live() == 0
    figures = stats()
    assert (figures.pinned, figures.released, figures.used_up) == (3, 1, 2)


@pytest.mark.long
def test_a_shard_that_is_down_meanwhile_learns_of_it(start: Start) -> None:
    """The other one knows. Whichever of the two decides, both hold the lease in the end, and the next reader has it."""
    name = start(2, 2)
    several = [payload(number, uses=1) for number in range(8)]
    assert {decider(name, data) for data in several} == {0, 1}
    kill(name, 0)
    with faulty():
        for data in several:
            with pytest.raises(ModuleNotFoundError):
                safe_refs.loads(data)
    wait_until_whole(name)
    wait_until(lambda: both(name, "live_leases") == (8, 8))
    assert [ray.get(safe_refs.loads(data)[0], timeout=20) for data in several] == list(range(8))
    wait_until(lambda: both(name, "live_leases") == (0, 0))


@pytest.mark.usefixtures("cluster")
def test_a_lease_that_a_borrower_gave_back_outlives_it() -> None:
    """It holds what the reader has handed back, and the objects' owner knows: the reader may be killed."""
    data = payload(bytes(MB))
    reader = as_actor(Unable).remote()
    for _ in range(2):
        assert ray.get(reader.take.remote(data), timeout=60) == "No module named 'theirs'"
    wait_until(lambda: [info.depends_on for info in safe_refs.leases()] == [None])
    ray.kill(reader)
    gc.collect()
    time.sleep(1)  # nothing shows when Ray has dealt with the death
    assert ray.get(safe_refs.loads(data, take=True)[0], timeout=20) == bytes(MB)


@pytest.mark.usefixtures("cluster")
def test_of_many_all_are_given_back() -> None:
    """Also if it is not opening that fails, but one of the leases that has ended."""
    several = [payload(number, uses=1) for number in range(3)]
    ended = payload("ended")
    safe_refs.release(ended)
    for load in (safe_refs.loads_many, lambda datas: asyncio.run(aio.loads_many(datas))):
        with pytest.raises(LeaseReleasedError):
            load([*several, ended])
        wait_until(lambda: live() == 3)
    assert ray.get([refs[0] for refs in safe_refs.loads_many(several)], timeout=20) == [0, 1, 2]


@pytest.mark.usefixtures("cluster")
def test_an_error_keeps_nothing_of_what_could_not_be_opened() -> None:
    """Neither what was resolved, nor the use: whoever logs the error and goes on holds nothing."""
    kept: list[BaseException] = []
    gc.disable()
    try:
        for way in (*USES.values(), *TAKES.values()):
            data = safe_refs.dumps([ray.put(bytes(MB)), Faulty()], uses=1)
            with faulty():
                try:
                    way(data)
                except ModuleNotFoundError as error:
                    kept.append(error)
            safe_refs.release(data)
        assert len(kept) == len(WAYS)
        assert is_empty(10)
    finally:
        gc.enable()


@pytest.mark.usefixtures("cluster")
def test_a_handle_gives_back_what_it_could_not_get(tmp_path: Path) -> None:
    """The value isn't there in time, or whoever awaits it is cancelled."""
    told = tmp_path / "told"
    handle = safe_refs.pin(when_told.remote(str(told), "late"), uses=1)
    for _ in range(2):
        with pytest.raises(ray.exceptions.GetTimeoutError):
            handle.get(timeout=0.1)

    async def waits() -> None:
        async with Ticks() as ticks:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aio.get(handle), 0.2)
        assert ticks.longest_s < 0.5

    asyncio.run(waits())
    assert live() == 1
    told.touch()
    assert handle.get(timeout=20) == "late"
    with pytest.raises(LeaseUsedUpError):
        handle.get(timeout=1)


@pytest.mark.usefixtures("cluster")
def test_in_a_scope_it_is_the_scopes_again() -> None:
    """The scope that the lease was made in releases it. A scope that it was not made in leaves it alone."""
    message = payload("message")
    with safe_refs.scope(), faulty():
        for data in (payload("mine"), message):
            with pytest.raises(ModuleNotFoundError):
                safe_refs.loads(data, take=True)
        assert live() == 2
    assert live() == 1
    assert ray.get(safe_refs.loads(message, take=True)[0], timeout=20) == "message"


@pytest.mark.usefixtures("cluster")
def test_in_a_scope_many_are_the_scopes_again() -> None:
    """However many one call has taken."""
    for load in (safe_refs.loads_many, lambda datas, take: asyncio.run(aio.loads_many(datas, take=take))):
        with safe_refs.scope(), faulty():
            several = [payload(number) for number in range(100)]
            with pytest.raises(ModuleNotFoundError):
                load(several, take=True)
            assert live() == 100
        assert live() == 0


@pytest.mark.usefixtures("cluster")
def test_a_scope_that_closes_meanwhile_ends_it() -> None:
    """The object is still being opened, by a thread; then that fails, and the take is given back."""
    closed, begun = threading.Event(), threading.Event()

    def fault() -> None:
        begun.set()
        assert closed.wait(20)
        raise ModuleNotFoundError

    def load(data: bytes) -> None:
        with suppress(ModuleNotFoundError):
            safe_refs.loads(data, take=True)

    with faulty(fault):
        with safe_refs.scope():
            loading = threading.Thread(target=load, args=(payload("mine"),))
            loading.start()
            assert begun.wait(20)
        closed.set()
        loading.join(20)
    assert live() == 0


@pytest.mark.usefixtures("cluster")
def test_a_scope_forgets_what_was_taken() -> None:
    """By whatever takes it: it grows by nothing but live leases."""
    with safe_refs.scope() as scope:
        for way in TAKES.values():
            assert ray.get(way(payload("one")), timeout=20) == ["one"]
        assert repr(scope) == "<scope with 0 lease(s)>"


def test_who_is_cancelled_gives_it_back(registry: str) -> None:
    """The answer comes when nobody waits for it any more."""
    data = payload("one")

    async def cancel(load: Callable[[], Any]) -> None:
        with stopped(registry, 0):
            loading = asyncio.ensure_future(load())
            await asyncio.sleep(0.5)
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
        known.append(data)
        await until(lambda: stats().resolved == len(known))
        await until(lambda: live() == 1)

    known: list[bytes] = []  # for each that was cancelled
    asyncio.run(cancel(lambda: aio.loads(data, take=True)))
    asyncio.run(cancel(lambda: aio.loads_many([data], take=True)))
    assert ray.get(safe_refs.loads(data, take=True)[0], timeout=20) == "one"


def test_a_registry_that_does_not_respond_is_not_waited_for(registry: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error is the object's own, within two seconds or so. The use is spent, and the log says so."""
    data = payload("one", uses=1)
    pid = place(registry, 0)[1]

    def fault() -> None:
        os.kill(pid, signal.SIGSTOP)
        raise ModuleNotFoundError

    begun = time.monotonic()
    try:
        with faulty(fault), pytest.raises(ModuleNotFoundError) as raised:
            safe_refs.loads(data)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - begun < 5
    assert raised.value.__cause__ is None
    (line,) = [text for text in caplog.messages if "given back" in text]
    assert line.startswith("1 use(s) could not be given back, and stay spent: registry ")


class Inside:
    """Loads a payload while Ray pickles it, and can't open it."""

    def __init__(self, data: bytes, *refs: Any) -> None:
        self.data = data
        self.refs = refs

    def __reduce__(self) -> Any:
        with faulty(), suppress(ModuleNotFoundError):
            safe_refs.loads(self.data, take=True)
        return list, (self.refs,)


@pytest.mark.usefixtures("cluster")
def test_inside_rays_own_serialization() -> None:
    """What Ray pickles then is whole, and so is the lease."""
    data = payload("one")
    inner = ray.put("inner")
    outer: Any = ray.put(Inside(data, inner))
    del inner
    gc.collect()
    assert ray.get(ray.get(outer, timeout=20), timeout=20) == ["inner"]
    assert ray.get(safe_refs.loads(data, take=True)[0], timeout=20) == "one"


@pytest.mark.usefixtures("cluster")
def test_a_durable_lease_stays_durable() -> None:
    """It holds the registry's copies again."""
    data = payload(bytes(MB), durable=True, uses=1)
    with faulty(), pytest.raises(ModuleNotFoundError):
        safe_refs.loads(data)
    (info,) = safe_refs.leases()
    assert info.durable
    assert ray.get(safe_refs.loads(data)[0], timeout=20) == bytes(MB)

"""Payloads inside payloads: what the caller of `loads` says of the payload holds for those in it, too, whoever opens them."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import envelope
from safe_refs.aio import loads as aio_loads
from safe_refs.aio import loads_many as aio_loads_many
from tests.support.shards import stopped
from tests.support.waiting import wait_until

OPENERS: dict[str, Callable[[bytes], Any]] = {
    "safe_refs.loads": safe_refs.loads,
    "pickle.loads": pickle.loads,
    "load": lambda data: safe_refs.load(io.BytesIO(data)),
    "loads_many": lambda data: safe_refs.loads_many([data])[0],
}


class Box:
    """Makes a payload of what it holds, and opens it when it is opened itself."""

    def __init__(self, inside: Any, opener: str, fails: bool = False) -> None:
        self.inside, self.opener, self.fails = inside, opener, fails

    def __reduce__(self) -> Any:
        return opened, (safe_refs.dumps(self.inside), self.opener, self.fails)


def opened(data: bytes, opener: str, fails: bool) -> Box:
    box = Box(OPENERS[opener](data), opener)
    if fails:
        raise ImportError("the box fails")
    return box


LOADERS: dict[str, Callable[..., Any]] = {
    "loads": safe_refs.loads,
    "load": lambda data, **how: safe_refs.load(io.BytesIO(data), **how),
    "loads_many": lambda data, **how: safe_refs.loads_many([data], **how)[0],
    "aio.loads": lambda data, **how: asyncio.run(aio_loads(data, **how)),
    "aio.loads_many": lambda data, **how: asyncio.run(aio_loads_many([data], **how))[0],
}


@pytest.fixture(params=list(LOADERS))
def load(cluster: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield LOADERS[request.param]
    assert safe_refs.leases() == []


@pytest.mark.parametrize("opener", list(OPENERS))
def test_take_reaches_payloads_inside(load: Any, opener: str) -> None:
    """A payload in a payload in a payload, opened with `take=True`: no lease of them is left."""
    payload = safe_refs.dumps(
        [ray.put("outer"), Box([ray.put("middle"), Box(ray.put("inner"), "pickle.loads")], opener)]
    )
    assert len(safe_refs.leases()) == 3
    outer, middle = load(payload, take=True)
    assert ray.get([outer, middle.inside[0], middle.inside[1].inside], timeout=20) == ["outer", "middle", "inner"]


@pytest.mark.parametrize("opener", list(OPENERS))
def test_without_resolving_payloads_inside_give_handles(load: Any, opener: str) -> None:
    """With `resolve=False` there are handles in all of them, and the registry isn't asked: not even one that has stopped."""
    payload = safe_refs.dumps(
        [ray.put("outer"), Box([ray.put("middle"), Box(ray.put("inner"), "pickle.loads")], opener)]
    )
    with stopped("default", 0):
        outer, middle = load(payload, resolve=False)
    handles = [outer, middle.inside[0], middle.inside[1].inside]
    assert [each.get() for each in handles] == ["outer", "middle", "inner"]
    for each in handles:
        safe_refs.release(each)


def test_the_timeout_is_for_all_of_it(cluster: str) -> None:
    """A payload inside waits no longer than its caller has time left, however long it would wait by itself."""
    payload = safe_refs.dumps(Box(ray.put("inner"), "pickle.loads"))
    assert not envelope.is_payload(payload), "no reference but in the box"
    around = safe_refs.dumps([ray.put("outer"), Box(ray.put("inner"), "pickle.loads")])
    for data in (payload, around):
        with stopped("default", 0):
            begun = time.monotonic()
            with pytest.raises(safe_refs.RegistryUnavailableError):
                safe_refs.loads(data, timeout=1.0)
            assert time.monotonic() - begun < 5
    for row in safe_refs.leases():
        row.release()


@pytest.mark.parametrize("name", ["loads", "loads_many", "aio.loads", "aio.loads_many"])
def test_in_a_plain_pickle_they_are_reached_too(cluster: str, name: str) -> None:
    """An object without references of its own is a plain pickle; a payload in it is opened as the caller says."""
    payload = safe_refs.dumps(Box(ray.put("inner"), "pickle.loads"))
    assert not envelope.is_payload(payload)
    handle = LOADERS[name](payload, resolve=False).inside
    assert isinstance(handle, safe_refs.SafeRef)
    assert ray.get(LOADERS[name](payload, take=True).inside, timeout=20) == "inner"
    assert safe_refs.leases() == []


def test_a_take_that_fails_gives_back_those_inside(load: Any) -> None:
    """If the outer payload can't be opened, everything is as it was before: the takes of payloads inside are given back, too."""
    payload = safe_refs.dumps(
        [ray.put("outer"), Box(ray.put("first"), "safe_refs.loads"), Box(ray.put("second"), "pickle.loads", True)]
    )
    with pytest.raises(ImportError):
        load(payload, take=True)
    wait_until(lambda: len(safe_refs.leases()) == 3, 20)
    for row in safe_refs.leases():
        row.release()


class Unrelated:
    """Loads another payload when it is opened, one that is not inside of its own: from a file, say."""

    payload = b""
    seen: Any = None

    def __reduce__(self) -> Any:
        return look_elsewhere, ()


def look_elsewhere() -> Unrelated:
    Unrelated.seen = safe_refs.loads(Unrelated.payload)
    return Unrelated()


def test_a_payload_from_elsewhere_is_not_reached(cluster: str) -> None:
    """What an object loads from a store, for many, is neither taken nor turned into handles: it is not inside."""
    Unrelated.payload = safe_refs.dumps(ray.put("shared"))
    payload = safe_refs.dumps([ray.put("outer"), Unrelated()])
    for how in ({"resolve": False}, {"take": True}):
        safe_refs.loads(payload, **how)  # type: ignore[arg-type] # mypy takes any name for any type
        assert ray.get(Unrelated.seen, timeout=20) == "shared"
    assert safe_refs.release(Unrelated.payload) == 1
    Unrelated.seen = None


def test_a_signal_handler_loads_what_it_likes(cluster: str) -> None:
    """A handler that runs while a payload is taken resolves its own payload, and takes nothing."""
    kept = safe_refs.dumps(ray.put("the handler's"))
    seen: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(safe_refs.loads(kept)))
    try:
        safe_refs.loads(safe_refs.dumps([ray.put("outer"), Signals()]), take=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ray.get(seen.pop(), timeout=20) == "the handler's"
    assert safe_refs.release(kept) == 1


class Signals:
    """Opening it raises a signal."""

    def __reduce__(self) -> Any:
        return os.kill, (os.getpid(), signal.SIGUSR1)

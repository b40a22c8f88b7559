"""A signal handler's exception ends the wait for the registry: the use that its answer would have been is given back."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.faulty import faulty, live, payload
from tests.support.shards import Start, decider, figures, stopped
from tests.support.waiting import wait_until


@contextmanager
def interrupted(after_s: float) -> Iterator[None]:
    """The block is interrupted as by Ctrl-C, and that goes on at once: nothing waits for the registry, which does not answer."""

    def on(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, on)
    begun = time.monotonic()
    try:
        with pytest.raises((KeyboardInterrupt, SystemError)):  # noqa: PT012 # the block may be interrupted at once
            signal.setitimer(signal.ITIMER_REAL, after_s)
            yield
        assert time.monotonic() - begun < after_s + 1.5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def consume(target: Any) -> None:
    with safe_refs.consume(target):
        raise AssertionError("the block is not entered")


def take(data: bytes) -> object:
    return safe_refs.loads(data, take=True)


def take_many(datas: list[bytes]) -> object:
    return safe_refs.loads_many(datas, take=True)


def one() -> bytes:
    return payload("one", uses=1)


def handle() -> safe_refs.SafeRef[str]:
    return safe_refs.put("value", uses=1)


WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "loads": (one, safe_refs.loads),
    "take": (lambda: payload("one"), take),
    "loads_many": (lambda: [one(), payload("two")], safe_refs.loads_many),
    "take many": (lambda: [payload("one"), payload("two")], take_many),
    "get": (handle, lambda ref: ref.get()),
    "resolve": (handle, lambda ref: ref.resolve()),
    "consume": (one, consume),
    "consume many": (lambda: [one(), handle(), payload("two", uses=1)], consume),
}


@pytest.fixture(params=["one shard", pytest.param("two replicas", marks=pytest.mark.long)])
def shards_of(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A registry of the tests' own, with how many shards that all hold each lease."""
    if request.param == "one shard":
        yield request.getfixturevalue("registry"), 1
    else:
        yield request.getfixturevalue("start")(2, 2), 2


@pytest.mark.parametrize("way", WAYS)
def test_the_use_is_given_back(shards_of: tuple[str, int], way: str) -> None:
    """The answer comes later; whoever asks then has the only use, once."""
    registry, shards = shards_of
    make, load = WAYS[way]
    target = make()
    several = target if isinstance(target, list) else [target]
    for _ in range(2):
        with stopped(registry, *range(shards)), interrupted(0.2):
            load(target)
        for shard in range(shards):
            figures(registry, shard)  # its answer comes after that to the load
        wait_until(lambda: live() == len(several))
        assert {info.uses_left for info in safe_refs.leases()} <= {1, None}
    for each in several:
        if isinstance(each, bytes):
            assert ray.get(safe_refs.loads(each, take=True), timeout=20)
        else:
            assert each.get(timeout=20) == "value"
    assert live() == 0


def test_in_a_call_that_threads_share(registry: str) -> None:
    """The group's thread gets the answer, for a caller that is gone. The other callers get theirs."""
    mine, others = one(), [payload(number, uses=1) for number in range(4)]
    found: list[object] = []
    threads = [threading.Thread(target=lambda each=each: found.append(safe_refs.loads(each))) for each in others]
    with stopped(registry, 0):
        for each in threads:
            each.start()
        time.sleep(0.1)  # so that the call of one is under way, and the others share one
        with interrupted(0.2):
            safe_refs.loads(mine)
    for each in threads:
        each.join(20)
    assert len(found) == 4
    wait_until(lambda: figures(registry, 0).resolved == 5)
    wait_until(lambda: live() == 1)
    assert ray.get(safe_refs.loads(mine), timeout=20) == ["one"]


def test_giving_back_is_interrupted(registry: str) -> None:
    """The object can't be opened, and the registry does not respond then: another thread goes on with it."""
    data = one()

    stop = stopped(registry, 0)

    def fault() -> None:
        stop.__enter__()
        raise ModuleNotFoundError

    try:
        with faulty(fault), interrupted(0.5):
            safe_refs.loads(data)
    finally:
        stop.__exit__(None, None, None)
    wait_until(lambda: live() == 1)
    assert ray.get(safe_refs.loads(data), timeout=20) == ["one"]


@pytest.mark.long
def test_while_one_of_two_replicas_does_not_respond(start: Start) -> None:
    """One has granted the use already, and the other is asked next."""
    name = start(2, 2)
    several = [one() for _ in range(8)]
    for data in several:
        with stopped(name, 1 - decider(name, data)), interrupted(0.3):
            safe_refs.loads(data)
        wait_until(lambda: live() == 8)
    assert ray.get([safe_refs.loads(data)[0] for data in several], timeout=20) == ["one"] * 8

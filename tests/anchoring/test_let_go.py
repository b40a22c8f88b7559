"""An object that the registry lets go of, and gets again right after: its lease holds it all the same."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.anchoring.let_go import MOST, RECENT_S, LetGo
from tests.support.actors import Borrower
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.store import is_empty
from tests.support.waiting import wait_until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_known_for_a_moment() -> None:
    clock = Clock()
    let_go = LetGo(clock)
    let_go.note([b"one"])
    assert let_go.are_recent([b"other", b"one"])
    assert not let_go.are_recent([b"other"])
    clock.now += RECENT_S
    assert not let_go.are_recent([b"one"])
    let_go.note([b"other"])
    assert len(let_go) == 1


def test_too_many_are_all_taken_for_recent() -> None:
    """Of those that it has no room for it says so, too, until they aren't recent any more."""
    clock = Clock()
    let_go = LetGo(clock)
    for number in range(MOST + 1):
        let_go.note([number.to_bytes(4, "big")])
    assert len(let_go) == MOST
    assert let_go.are_recent([(0).to_bytes(4, "big")])
    assert let_go.are_recent([b"none of them"])
    clock.now += RECENT_S
    assert not let_go.are_recent([b"none of them"])


class Reader:
    def lost(self, payloads: list[bytes]) -> int:
        """How many of them can't be read."""
        return sum(not self._reads(each) for each in payloads)

    def _reads(self, payload: bytes) -> bool:
        try:
            ray.get(safe_refs.loads(payload, timeout=10), timeout=5)
        except Exception:
            return False
        return True


class Forwarder(Borrower):
    """A reader that releases what it has got, makes a payload of its own of it, and lets go."""

    def open_all(self, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self.refs = [safe_refs.loads(each) for each in payloads]

    def forward(self) -> list[bytes]:
        made = []
        for payload in self.payloads:
            safe_refs.release(payload)
            made.append(safe_refs.dumps(self.refs.pop(0)))
        gc.collect()
        return made


class Owner:
    def pid(self) -> int:
        return os.getpid()

    def make(self, count: int) -> list[bytes]:
        return [safe_refs.dumps(ray.put(os.urandom(100))) for _ in range(count)]


WAYS: list[Callable[[Any], bytes]] = [
    safe_refs.dumps,
    lambda ref: safe_refs.dumps(ref, wait=False),
    lambda ref: safe_refs.dumps_many([ref])[0],
]


@pytest.mark.parametrize("count", [90, pytest.param(300, marks=pytest.mark.long)])
def test_an_owner_releases_pins_again_and_lets_go(cluster: str, count: int) -> None:
    """While other threads keep the registry busy. Of 3,000 some 10 were gone, before."""
    made: list[bytes] = []
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            safe_refs.release(safe_refs.dumps_many([ray.put(0) for _ in range(50)]))

    noise = threading.Thread(target=keep_busy)
    noise.start()
    try:
        for number in range(count):
            ref = ray.put(os.urandom(50))
            safe_refs.release(safe_refs.dumps(ref))
            made.append(WAYS[number % len(WAYS)](ref))
            del ref
    finally:
        over.set()
        noise.join()
    safe_refs.flush()
    gc.collect()
    time.sleep(1.5)  # what is kept for a second is let go of by then
    assert ray.get(as_actor(Reader).remote().lost.remote(made), timeout=120) == 0
    safe_refs.release(made)
    assert is_empty(5)


@contextmanager
def stumbling(pid: int, longest_s: float) -> Iterator[None]:
    """A process that is stopped again and again, for a moment."""
    over = threading.Event()
    chance = random.Random(pid)  # noqa: S311 # not for secrets

    def stumble() -> None:
        while not over.wait(chance.uniform(0.05, 0.15)):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0, longest_s))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stumble)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_borrower_releases_pins_again_and_lets_go(cluster: str, rounds: int) -> None:
    """While the owner stumbles, so that reports overtake one another. Of 400 some 7 were gone, before."""
    owner, forwarder = as_actor(Owner).remote(), as_actor(Forwarder).remote()
    reader = as_actor(Reader).remote()
    with stumbling(ray.get(owner.pid.remote(), timeout=60), 0.1):
        for _ in range(rounds):
            payloads = ray.get(owner.make.remote(60), timeout=60)
            ray.get(forwarder.open_all.remote(payloads), timeout=60)
            wait_until(anchored, 30)  # so that the owner knows the reader before the registry lets go
            made = ray.get(forwarder.forward.remote(), timeout=120)
            assert ray.get(reader.lost.remote(made), timeout=120) == 0
            safe_refs.release(made)

"""A process that lets go of an object and loads it again, while the object's owner is silent: its reference is good nevertheless."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.processes import is_stopped
from tests.support.shards import Start
from tests.support.store import is_empty
from tests.support.waiting import wait_until

COUNT = {"objects": 20, "actors": 4}
SILENT_S = 1.0


class Held:
    def ping(self) -> bool:
        return True


class Owner:
    def pid(self) -> int:
        return os.getpid()

    def make(self, kind: str, registry: str) -> list[bytes]:
        os.environ["SAFE_REFS_REGISTRY"] = registry
        make: Any = as_actor(Held).remote if kind == "actors" else lambda: ray.put(bytes(110_000))
        return [safe_refs.dumps(make()) for _ in range(COUNT[kind])]


class Reader:
    def load(self, payloads: list[bytes]) -> None:
        self.refs = [safe_refs.loads(each) for each in payloads]

    def load_again(self, payloads: list[bytes], take: bool) -> None:
        self.refs.clear()
        self.refs = [safe_refs.loads(each, take=take) for each in payloads]

    def lost(self) -> int:
        """How many can't be read."""
        return sum(not self._reads(ref) for ref in self.refs)

    def _reads(self, ref: Any) -> bool:
        try:
            ray.get(ref if isinstance(ref, ray.ObjectRef) else ref.ping.remote(), timeout=5)
        except Exception:
            return False
        return True

    def drop(self) -> None:
        self.refs.clear()
        gc.collect()


@pytest.mark.parametrize(
    ("kind", "shards", "ends", "rounds"),
    [
        ("objects", 1, "later", 1),
        *(
            pytest.param("objects", shards, ends, 3, marks=pytest.mark.long)
            for shards in (1, 2)
            for ends in ("later", "at once", "by a take")
        ),
        *(pytest.param("actors", shards, "at once", 3, marks=pytest.mark.long) for shards in (1, 2)),
    ],
)
def test_a_reader_loads_again_while_the_owner_is_silent(
    start: Start, kind: str, shards: int, ends: str, rounds: int
) -> None:
    """Whether its lease ends when the owner is there again, or before. One of five was gone, before."""
    registry = start(shards, shards)
    owner, reader = as_actor(Owner).remote(), as_actor(Reader).remote()
    pid, lost = ray.get(owner.pid.remote()), 0
    for _ in range(rounds):
        payloads = ray.get(owner.make.remote(kind, registry))
        assert len(safe_refs.leases()) == len(payloads)
        ray.get(reader.load.remote(payloads))
        wait_until(anchored, 30)
        time.sleep(0.5)  # for the owner to ask the reader to report when it lets go
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: is_stopped(pid), 10)
            ray.get(reader.load_again.remote(payloads, ends == "by a take"))
            if ends == "at once":
                assert safe_refs.release(payloads) == len(payloads)
            time.sleep(SILENT_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        if ends == "later":
            wait_until(anchored, 30)
            assert safe_refs.release(payloads) == len(payloads)
        time.sleep(1.5)
        lost += ray.get(reader.lost.remote(), timeout=200)
        ray.get(reader.drop.remote())
    assert lost == 0
    assert is_empty(10)


@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=pytest.mark.long)])
def test_what_was_taken_right_before_a_shutdown_is_good(start: Start, shards: int) -> None:
    """The shard still holds it, for a moment; it lets go before it ends, and waits until the owner has asked to whom it went."""
    registry = start(shards, shards)
    owner, reader = as_actor(Owner).remote(), as_actor(Reader).remote()
    payloads = ray.get(owner.make.remote("objects", registry))
    assert len(safe_refs.leases()) == len(payloads)
    ray.get(reader.load.remote([]))
    ray.get(reader.load_again.remote(payloads, True))
    safe_refs.shutdown(force=True)
    time.sleep(1.5)
    assert ray.get(reader.lost.remote(), timeout=200) == 0
    ray.get(reader.drop.remote())
    assert is_empty(10)

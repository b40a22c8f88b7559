"""Shards, relays and references that need no running Ray, for tests of anchoring."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from safe_refs._ray import counts, workers
from safe_refs._ray.counts import Touch
from safe_refs._ray.workers import Connection
from safe_refs.anchoring.part import Anchoring
from safe_refs.anchoring.relays import Given
from safe_refs.anchoring.touching import Batch
from safe_refs.config import Limits
from safe_refs.registry.hooks import Parts
from safe_refs.registry.records import Identity, Origin, Terms
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import PinCall, PinRow, ReleaseCall, ResolveCall, ResolveRow, is_unsure
from tests.support import stand_ins

IDENTITY = Identity(b"epoch678", 1)
ORIGIN = Origin("01000000", "node", 1, "a test")
OWNER = b"owner"


class Ref:
    """Stands for an `ObjectRef`."""

    def __init__(self, id_: bytes) -> None:
        self._id = id_

    def binary(self) -> bytes:
        return self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other._id == self._id


class Relays:
    """Stands for `relays.Relays`: replies are the answers, and those of relays in `silent` don't come within any time."""

    def __init__(self) -> None:
        self.silent: set[int] = set()
        self.asked: list[tuple[str, int]] = []
        self.unconfirmed_ids: set[bytes] = set()

    def _reply(self, method: str, number: int, answer: Any) -> Any:
        self.asked.append((method, number))
        return (number, answer)

    def hello(self, number: int) -> Any:
        return self._reply("hello", number, True)

    def hold(self, number: int, key: bytes, refs: Sequence[Any], given: list[Given]) -> Any:
        return self._reply("hold", number, (b"life", []))

    def give(self, number: int, keys: list[bytes]) -> Any:
        return self._reply("give", number, b"life")

    def unconfirmed(self, number: int, given: Given, timeout_s: float) -> list[bytes]:
        return [id_ for id_ in given.ids if id_ in self.unconfirmed_ids]

    def answer(self, number: int, reply: Any, timeout_s: float) -> Any:
        if number in self.silent:
            time.sleep(timeout_s)
            return None
        return reply[1]

    def forget(self, number: int) -> None:
        pass


class Touches:
    """Stands for `counts.touch_held`: what it says of each object, REPORTED by default."""

    def __init__(self) -> None:
        self.of: dict[bytes, Touch] = {}
        self.touched: list[bytes] = []

    def __call__(self, refs: Sequence[Any]) -> list[Touch]:
        self.touched += [ref.binary() for ref in refs]
        return [self.of.get(ref.binary(), Touch.REPORTED) for ref in refs]


def ray_wait(relays: Relays, replies: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    """Stands for `ray.wait`."""
    ready = [reply for reply in replies if reply[0] not in relays.silent]
    if not ready:
        time.sleep(timeout)
    return ready, [reply for reply in replies if reply not in ready]


class Answering:
    """Stands for `answering.Answering`: whoever is in `names` is silent."""

    def __init__(self) -> None:
        self.names: set[bytes] = set()
        self.doubted: set[bytes] = set()
        self.hurried = 0

    def hurry(self) -> None:
        self.hurried += 1

    def doubt(self, owners: Iterable[bytes]) -> None:
        self.doubted.update(owners)

    def silent(self, samples: Mapping[bytes, Any]) -> set[bytes]:
        assert b"" not in samples, "nobody can't be asked"
        return self.names & set(samples)


class ByHand:
    """A shard with the part for anchoring and no other, none of its threads running.

    Args:
        monkeypatch: Ray's part is replaced by it.
        anchors: whether it anchors.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, anchors: bool = True) -> None:
        self.touches = Touches()
        self.relays = Relays()
        self.answering = Answering()
        self.dead: set[bytes] = set()
        stand_ins.allow(monkeypatch)
        monkeypatch.setattr(counts, "touch_held", self.touches)
        monkeypatch.setattr(workers, "owner_of", lambda _: OWNER)
        monkeypatch.setattr(workers, "owns_all", lambda process, owners: False)
        monkeypatch.setattr(workers, "is_surely_dead", lambda process: process in self.dead)
        monkeypatch.setattr(counts, "can_anchor", lambda: True)
        monkeypatch.setattr(ray, "wait", lambda replies, timeout: ray_wait(self.relays, replies, timeout))
        monkeypatch.setattr("safe_refs.anchoring.part.Relays", lambda: self.relays)
        monkeypatch.setattr("safe_refs.anchoring.part.Answering", lambda using: self.answering)
        self.shard = Shard("default", IDENTITY, Limits())
        self.part = Anchoring(self.shard, anchors)
        self.shard.parts = Parts([self.part])

    def pin(self, lease: bytes, *ids: bytes, borrower: bytes = b"") -> bool:
        """Whether the shard is unsure."""
        row = PinRow(lease, len(ids), Terms(), ORIGIN, borrower, {})
        refs: list[Any] = [Ref(id_) for id_ in ids]
        answer = self.shard.pin(PinCall(0, [row]), refs)
        assert isinstance(answer, bytes)
        assert answer.startswith(IDENTITY.to_bytes())
        return is_unsure(answer)

    def resolve(self, lease: bytes, *, take: bool = False) -> Any:
        row = ResolveRow(lease, IDENTITY, None, take, ORIGIN, b"use")
        answer = self.shard.resolve(ResolveCall(0, [row]))
        assert isinstance(answer, tuple)
        return answer[0][0]

    def lend(self, *ids: bytes, is_over: bool = True) -> Batch:
        """What a round's thread does until its turn comes: these objects are in its hands, and on their way to the relays."""
        rounds = self.part._rounds
        refs: list[Any] = [Ref(id_) for id_ in ids]
        batch = rounds._batch = Batch(refs, rounds._touching.pair)
        self.part.watch()
        if is_over:
            batch.is_lent = True
            batch.is_over.set()
        return batch

    def release(self, *leases: bytes) -> None:
        self.shard.release(ReleaseCall(0, [(leases, ORIGIN)]))

    @property
    def handed_out(self) -> int:
        return len(self.part._handed_out)


def connected(cluster: bytes = b"one") -> Any:
    """Stands for a `Session`."""

    class Session:
        connection = Connection(cluster, "01000000")
        sending = False

    return Session()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is inside takes no longer."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds

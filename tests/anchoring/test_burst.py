"""Many references resolved at once, and the registry killed: they are good a second later, or when `loads` returns if it waits."""

from __future__ import annotations

import asyncio
import gc
import io
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import RegistryUnavailableError, aio
from safe_refs.registry.calls import Call, Registry
from safe_refs.registry.wire import NotNow
from tests.support import settings
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.shards import Start, kill, stopped
from tests.support.store import is_empty
from tests.support.waiting import wait_until

SAFE_S = 1.0
EMPTY_S = 3.0

WAYS: dict[str, Callable[[list[bytes]], Any]] = {
    "loads": lambda payloads: [safe_refs.loads(each, anchored=True) for each in payloads],
    "loads_many": lambda payloads: safe_refs.loads_many(payloads, anchored=True),
    "resolve": lambda payloads: [safe_refs.loads(each, resolve=False).resolve(anchored=True) for each in payloads],
    "aio.loads": lambda payloads: asyncio.run(_each(aio.loads, payloads)),
    "aio.loads_many": lambda payloads: asyncio.run(aio.loads_many(payloads, anchored=True)),
    "aio.resolve": lambda payloads: asyncio.run(
        _each(aio.resolve, [safe_refs.loads(each, resolve=False) for each in payloads])
    ),
}


async def _each(call: Callable[..., Any], targets: list[Any]) -> list[Any]:
    return [await call(each, anchored=True) for each in targets]


class Resolver:
    """A reader, which keeps what it resolves."""

    def load(self, payloads: list[bytes]) -> None:
        found = safe_refs.loads_many(payloads) if len(payloads) > 1 else [safe_refs.loads(payloads[0])]
        self.refs = [ref for each in found for ref in (each if isinstance(each, list) else [each])]

    def resolve_one(self, payload: bytes, place: int, environment: dict[str, str]) -> float:
        import os

        os.environ.update(environment)
        handle = safe_refs.loads(payload, resolve=False)[place]
        begun = time.monotonic()
        self.refs = [*vars(self).get("refs", []), handle.resolve(anchored=True)]
        return time.monotonic() - begun

    def load_in_way(self, payloads: list[bytes], way: str, environment: dict[str, str]) -> None:
        import os

        os.environ.update(environment)
        self.refs = WAYS[way](payloads)

    def lost(self) -> int:
        """How many of its references are dead."""
        try:
            ray.get(self.refs, timeout=30)
            return 0
        except Exception:
            return sum(self._is_lost(ref) for ref in self.refs)

    def _is_lost(self, ref: Any) -> bool:
        try:
            ray.get(ref, timeout=5)
        except Exception:
            return True
        return False

    def drop(self) -> None:
        self.refs = []
        gc.collect()


@pytest.mark.parametrize(
    ("count", "each", "rounds"),
    [
        (2_000, 1, 1),
        (2_000, 2_000, 1),
        *(pytest.param(10_000, each, 1, marks=pytest.mark.long) for each in (1, 100, 10_000)),
        *(pytest.param(10_000, each, 50, marks=pytest.mark.slow) for each in (1, 100, 10_000)),
    ],
)
@pytest.mark.timeout(1800)
def test_what_was_resolved_at_once_is_good_a_second_later(start: Start, count: int, each: int, rounds: int) -> None:
    """The registry is killed at a random moment later than a second after `loads` returned: all references are good.

    However many a payload holds. And when they are dropped, the store is empty within three seconds.
    """
    registry = start(1, 1)
    chance = random.Random(count + rounds)  # noqa: S311 # only a seed's draws can be drawn again
    for _ in range(rounds):
        reader = as_actor(Resolver).remote()
        refs: list[Any] = [ray.put(number) for number in range(count)]
        payloads = safe_refs.dumps_many(
            [refs[place : place + each] if each > 1 else refs[place] for place in range(0, count, each)]
        )
        refs.clear()
        ray.get(reader.load.remote(payloads), timeout=120)
        time.sleep(SAFE_S + 2 * chance.random())
        kill(registry, 0)
        assert ray.get(reader.lost.remote(), timeout=300) == 0
        ray.get(reader.drop.remote(), timeout=60)
        assert is_empty(EMPTY_S)


@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=pytest.mark.long)])
def test_of_a_large_payload_only_what_was_resolved_is_anchored(start: Start, shards: int) -> None:
    """Whoever opens one handle of thousands doesn't wait for all of them, nor for what others have opened before."""
    registry = start(shards, shards)
    refs: list[Any] = [ray.put(number) for number in range(3_000)]
    payload = safe_refs.dumps(refs)
    refs.clear()
    reader = as_actor(Resolver).remote()
    waited: list[float] = []
    for place in (0, 1500, 2999, 1500):
        took = ray.get(reader.resolve_one.remote(payload, place, {"SAFE_REFS_REGISTRY": registry}), timeout=60)
        waited.append(took)
    begun = time.monotonic()
    safe_refs.loads(payload, anchored=True)
    assert min(waited) < (time.monotonic() - begun) / 3
    for shard in range(shards):
        kill(registry, shard)
    assert ray.get(reader.lost.remote(), timeout=60) == 0
    ray.get(reader.drop.remote(), timeout=60)


OPEN: dict[str, Callable[[bytes], Any]] = {
    "pickle.loads": pickle.loads,
    "load": lambda payload: safe_refs.load(io.BytesIO(payload)),
    "aio.loads": lambda payload: asyncio.run(aio.loads(payload)),
}


@pytest.mark.parametrize("way", OPEN)
def test_whoever_loads_thousands_waits(start: Start, way: str) -> None:
    """However a payload is opened, the registry is not behind when that is done."""
    start(1, 1)
    refs: list[Any] = [ray.put(number) for number in range(3_000)]
    payload = safe_refs.dumps(refs)
    refs.clear()
    safe_refs.loads(payload, resolve=False)[0].resolve(anchored=True)  # relays are there from now on
    loaded = OPEN[way](payload)
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.anchoring_behind_s == 0
    assert ray.get(loaded[2_999]) == 2_999
    safe_refs.release(payload)


def test_what_one_shard_granted_is_granted_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is behind: it is asked again, and the takes of the first are not lost."""
    start(2, 1)
    payloads = safe_refs.dumps_many([ray.put(number) for number in range(20)], uses=1)
    ask, calls = Registry.ask, Counter[int]()

    def behind(registry: Registry, asked: Mapping[int, Call[Any]], *args: Any, **options: Any) -> Any:
        first = {shard: call for shard, call in asked.items() if shard == 1 and calls[shard] < 2}
        calls.update(list(asked))
        others = {shard: call for shard, call in asked.items() if shard not in first}
        return {**ask(registry, others, *args, **options), **dict.fromkeys(first, NotNow.BEHIND)}

    monkeypatch.setattr(Registry, "ask", behind)
    assert ray.get(safe_refs.loads_many(payloads, take=True), timeout=20) == list(range(20))
    assert calls == {0: 1, 1: 3}


@pytest.mark.parametrize("terms", [{}, {"uses": 1}], ids=["plain", "uses"])
@pytest.mark.parametrize("take", [False, True], ids=["loaded", "taken"])
def test_more_than_an_answer_holds(start: Start, terms: dict[str, Any], take: bool) -> None:
    """A thousand references are in it at most, if it is about several payloads; each is opened all the same, and once."""
    start(1, 1)
    refs: list[Any] = [ray.put(number) for number in range(1_800)]
    payloads = safe_refs.dumps_many([refs[place : place + 300] for place in range(0, 1_800, 300)], **terms)
    refs.clear()
    loaded = safe_refs.loads_many(payloads, take=take)
    assert ray.get([ref for each in loaded for ref in each], timeout=60) == list(range(1_800))
    assert safe_refs.release(payloads) == (0 if take or terms else len(payloads))


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way in ("loads", "aio.resolve") else pytest.mark.long) for way in WAYS]
)
def test_anchored_returns_when_it_is_good(start: Start, way: str) -> None:
    """With `anchored=True` the registry may be killed at once."""
    registry = start(1, 1)
    reader = as_actor(Resolver).remote()
    payloads = [safe_refs.dumps(ray.put(number)) for number in range(20)]
    ray.get(reader.load_in_way.remote(payloads, way, {"SAFE_REFS_REGISTRY": registry}), timeout=120)
    kill(registry, 0)
    assert ray.get(reader.lost.remote(), timeout=120) == 0
    ray.get(reader.drop.remote(), timeout=60)


def test_a_burst_that_is_released_leaves_the_store_empty_at_once(start: Start) -> None:
    """A release waits for no anchoring: what was resolved, dropped and released a moment ago is gone within three seconds."""
    start(1, 1)
    reader = as_actor(Resolver).remote()
    payloads = safe_refs.dumps_many([ray.put(number) for number in range(2_000)])
    ray.get(reader.load.remote(payloads), timeout=120)
    ray.get(reader.drop.remote(), timeout=60)
    assert safe_refs.release(payloads) == len(payloads)
    assert is_empty(EMPTY_S)
    wait_until(anchored, 5)


def test_anchored_needs_a_registry_that_anchors(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it says so at once, and the use of the lease is given back."""
    with monkeypatch.context() as patch:
        patch.setenv("SAFE_REFS_REGISTRY", "unanchored")
        patch.setenv("SAFE_REFS_ANCHORING", "0")
        safe_refs.init()
        payload = safe_refs.dumps(ray.put(1), uses=1)
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match="does not anchor"):
            safe_refs.loads(payload, anchored=True)
        assert time.monotonic() - begun < 5
        assert ray.get(safe_refs.loads(payload), timeout=20) == 1
    settings.forget()
    safe_refs.shutdown("unanchored", timeout=30)


def test_anchored_ends_in_time_and_stats_say_how_far_behind(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that can't anchor just now: the wait ends with the call's timeout; `stats` shows for how long it goes on."""
    registry = start(1, 1)
    payload = safe_refs.dumps(ray.put(1))
    safe_refs.loads(payload, anchored=True)
    with stopped(registry, 0):
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError):
            safe_refs.loads(payload, anchored=True, timeout=1)
        assert time.monotonic() - begun < 2
    safe_refs.loads(payload)
    seen = [found.anchoring_behind_s for _ in range(20) if (found := safe_refs.stats()) is not None]
    assert 0 < max(seen) < 5
    wait_until(anchored, 10)
    found = safe_refs.stats()
    assert found is not None
    assert found.anchoring_behind_s == 0
    safe_refs.release(payload)

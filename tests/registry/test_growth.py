"""Nothing grows but live leases and bounded tombstones: every container of the package is found by looking, in all processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray.cluster import NAMESPACE
from safe_refs.registry.shard import actor_name
from tests.support import growth
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.hand_overs import KINDS, HandOvers
from tests.support.processes import Driver
from tests.support.shards import Start
from tests.support.waiting import comes

SHORT = 40  # of each kind, twice
LONG = 50_000


def look(registry: str, client: Any) -> dict[str, int]:
    """The sizes in each process."""
    found = growth.answers({"client": client.sizes.remote(), **growth.ask_actors(registry)})
    assert all("references that Ray counts" in theirs for theirs in found.values())
    assert {"client", actor_name(registry)} <= found.keys()
    return {f"{process}: {path}": size for process, theirs in found.items() for path, size in theirs.items()}


def hand_over(
    registry: str,
    kinds: Sequence[str],
    times: int,
    *,
    anchoring: bool = True,
    plant: tuple[str, Callable[[Any], None]] | None = None,
    within_s: float = 20.0,
) -> dict[str, tuple[int, int]]:
    """Hand over so often in each of these ways, look, do it once more, and look again: what has grown between the looks.

    Args:
        registry: its name.
        kinds: names of methods of `HandOvers`.
        times: how often.
        anchoring: whether that client anchors.
        plant: what is called in the client's process, or in the shard's, before all.
        within_s: how long what is grown has to come down again.
    """
    client = as_actor(HandOvers).remote({"SAFE_REFS_REGISTRY": registry, "SAFE_REFS_ANCHORING": str(int(anchoring))})

    def run() -> None:
        for kind in kinds:
            ray.get(client.run.remote(kind, times), timeout=3500)

    if plant is not None:
        target = client if plant[0] == "client" else ray.get_actor(actor_name(registry), namespace=NAMESPACE)
        ray.get(target.__ray_call__.remote(plant[1]), timeout=60)
    run()
    comes(anchored)
    before = look(registry, client)
    run()
    processes = {path.partition(": ")[0] for path in before}

    def look_again() -> dict[str, int]:
        found = look(registry, client)  # a relay that has started meanwhile can't be compared
        return {path: size for path, size in found.items() if path.partition(": ")[0] in processes}

    grown = growth.still_grown(before, look_again, within_s)
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.pinned >= times * len(kinds) // 12  # it was this registry
    ray.kill(client)
    return grown


@pytest.fixture
def bounded(registry: str) -> str:
    """A registry that remembers few ended leases."""
    safe_refs.init(max_tombstones=500)
    return registry


def test_nothing_grows_whatever_comes_and_goes(bounded: str) -> None:
    """After some hand-overs of each kind, and as many again, no container of any process is longer, and there is no more thread."""
    assert hand_over(bounded, KINDS, SHORT) == {}


@pytest.mark.long
def test_nothing_grows_without_anchoring(bounded: str) -> None:
    """The same where clients don't anchor, so that leases of borrowers depend on them."""
    assert hand_over(bounded, KINDS, SHORT, anchoring=False) == {}


@pytest.mark.long
def test_nothing_grows_with_replicas(start: Start) -> None:
    """The same with three shards, of which two hold each lease."""
    registry = start(3, 2)
    safe_refs.init(registry, max_tombstones=500)
    assert hand_over(registry, KINDS, SHORT) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("anchoring", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_grows_in_a_hundred_thousand(bounded: str, kind: str, anchoring: bool) -> None:
    """The same, a hundred thousand times in each way."""
    assert hand_over(bounded, [kind], LONG, anchoring=anchoring, within_s=60) == {}


def plant_in_shard(shard: Any) -> None:
    """A shard that forgets to forget: a table, and what a closure has."""
    shard.owners.planted, seen = {}, []
    original = shard.parts.ended

    def ended(lease: bytes, items: Any) -> None:
        shard.owners.planted[lease] = 1
        seen.append(lease)
        original(lease, items)

    shard.parts.ended = ended


def sleep() -> None:
    """Until the process ends."""
    time.sleep(600)


def plant_in_client(client: Any) -> None:
    """A client that leaves threads and files behind."""
    original = client.flushed

    def flushed() -> None:
        original()
        for _ in range(5):
            threading.Thread(target=sleep, name="safe_refs-planted", daemon=True).start()
        client.files = [*getattr(client, "files", ()), *(os.open("/dev/null", os.O_RDONLY) for _ in range(20))]

    client.flushed = flushed


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (("shard", plant_in_shard), ("owners.planted", "parts.ended.closure")),
        (("client", plant_in_client), ("threads safe_refs-planted", "threads", "files", "HandOvers.files")),
    ],
)
def test_what_grows_is_found(bounded: str, plant: tuple[str, Any], found: tuple[str, ...]) -> None:
    """A container that grows with each hand-over, and threads that stay, in any of the processes."""
    grown = hand_over(bounded, ["take"], SHORT, plant=plant, within_s=1)
    assert [end for end in found if not any(path.endswith(end) for path in grown)] == [], grown
    assert [path for path in grown if not path.endswith(found)] == []


RECONNECTS = """
import os, threading
from safe_refs.registry.shard import actor_name
from tests.support import growth
os.environ["SAFE_REFS_REGISTRY"] = args[1]

def rounds():
    for number in range(int(args[0])):
        kept = safe_refs.dumps(ray.put(number))
        with safe_refs.keepalive(kept, ttl=60):
            safe_refs.loads(kept, take=True)
        safe_refs.release(safe_refs.dumps(ray.put(number), wait=False))
        safe_refs.leases(); safe_refs.stats()
        ray.shutdown()
        ray.init(address=address, log_to_driver=False, logging_level="error")

rounds()
safe_refs.flush()
before = growth.sizes()
rounds()
print(json.dumps(growth.still_grown(before, growth.sizes)))
"""


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(5, marks=pytest.mark.long, id="ten"),
        pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)], id="two hundred"),
    ],
)
def test_nothing_grows_with_new_connections(driver: Driver, bounded: str, times: int) -> None:
    """A process that leaves Ray and comes back, again and again, keeps nothing of earlier connections: no session, and no thread."""
    assert driver(RECONNECTS, str(times), bounded, timeout=1700) == {}

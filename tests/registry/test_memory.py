"""What comes and goes leaves nothing behind: not in the registry, nor in the relays, nor in the processes that use it."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray.cluster import NAMESPACE
from safe_refs.anchoring import relays
from safe_refs.anchoring.reports import MOST_RECENT
from safe_refs.registry.shard import actor_name
from tests.support.cluster import as_actor
from tests.support.processes import lives

ROUNDS = 100_000 if os.environ.get("SAFE_REFS_TEST_DEEP") else 2_000
FIRST = ROUNDS // 10  # memory is flat after so many
THREADS = 4
GROWS_BYTES = 6 * 2**20  # what Ray's and Python's allocators take meanwhile, whatever we do


def memory(pid: int) -> int:
    """Bytes of memory that a process has to itself, and that no library shares."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Private"))


class Home:
    """A registry as one would write it at home, for comparison: what Ray itself keeps of as many calls."""

    def __init__(self) -> None:
        self.held: dict[bytes, list[Any]] = {}

    def pin(self, lease: bytes, refs: list[Any]) -> bytes:
        self.held[lease] = refs
        return lease

    def get(self, lease: bytes, take: bool) -> list[Any]:
        return self.held.pop(lease) if take else self.held[lease]

    def release(self, lease: bytes) -> bool:
        return bool(self.held.pop(lease, None))


class Client:
    """A process whose threads make payloads, load them and end their leases, again and again."""

    def __init__(self, registry: str, home: Any = None) -> None:
        os.environ["SAFE_REFS_REGISTRY"] = registry
        self.home = home

    def where(self) -> int:
        return os.getpid()

    def objects(self) -> int:
        """How many objects Python's collector knows: what we keep is among them, and what Ray keeps in C++ is not."""
        gc.collect()
        return len(gc.get_objects())

    def run(self, take: bool, times: int) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.take if take else self.load_and_release, [times // THREADS] * THREADS))

    def take(self, times: int) -> None:
        for number in range(times):
            safe_refs.loads(safe_refs.dumps(ray.put(number)), take=True)

    def load_and_release(self, times: int) -> None:
        for number in range(times):
            payload = safe_refs.dumps(ray.put(number))
            safe_refs.loads(payload)
            safe_refs.release(payload)


class BareClient(Client):
    """Does the same by the registry made at home."""

    def take(self, times: int) -> None:
        for number in range(times):
            lease = os.urandom(16)
            ray.get(self.home.pin.remote(lease, [ray.put(number)]))
            ray.get(self.home.get.remote(lease, True))

    def load_and_release(self, times: int) -> None:
        for number in range(times):
            lease = os.urandom(16)
            ray.get(self.home.pin.remote(lease, [ray.put(number)]))
            ray.get(self.home.get.remote(lease, False))
            ray.get(self.home.release.remote(lease))


@(pytest.mark.slow if ROUNDS > 10_000 else pytest.mark.long)
@pytest.mark.timeout(7200)
def test_memory_is_flat(registry: str) -> None:
    """One process takes what it made, another loads it and releases it: as many times again as often, and nothing has grown.

    A process that calls actors grows by itself: Ray keeps 0.1 to 0.8 kB of each such round. In the long form the two must not grow
    faster than two that make the same calls to an actor of their own.
    """
    safe_refs.init(max_tombstones=500)  # that many ended leases are remembered, and no more
    clients: list[Any] = [as_actor(Client).remote(registry) for _ in range(2)]

    def run(times: int) -> None:
        ray.get([client.run.remote(client is clients[0], times) for client in clients], timeout=7000)

    run(FIRST)
    pids = {f"client {number}": ray.get(client.where.remote()) for number, client in enumerate(clients)}
    for name in (actor_name(registry), *map(relays.name, (*relays.FOR_SHARDS, *relays.FOR_CLIENTS))):
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            continue  # a spare, which nobody needed
        pids[name] = ray.get(actor.where.remote(), timeout=30)[1]
    before = {name: memory(pid) for name, pid in pids.items()}
    objects_before = ray.get([client.objects.remote() for client in clients])
    run(ROUNDS - FIRST)
    grown = {
        name: memory(pid) - before[name] for name, pid in pids.items() if lives(pid)
    }  # a clients' relay may have ended
    assert len(grown) >= 5
    print(f"between {2 * FIRST} and {2 * ROUNDS} leases, bytes:", grown)
    assert max(size for name, size in grown.items() if not name.startswith("client")) < GROWS_BYTES, grown
    more = [
        after - first
        for after, first in zip(ray.get([client.objects.remote() for client in clients]), objects_before, strict=True)
    ]
    print("and objects of the clients:", more)
    assert max(more) < 3 * MOST_RECENT, more
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.pinned == 2 * ROUNDS  # it was this registry
    assert figures.live_leases == 0
    for client in clients:
        ray.kill(client)
    if ROUNDS > 10_000:
        for number, by_itself in enumerate(grown_by_itself()):
            ours = grown[f"client {number}"] / (ROUNDS - FIRST)
            print(f"client {number}, bytes a round: {ours:.0f}, by itself {by_itself:.0f}")
            assert ours < 1.2 * by_itself


def grown_by_itself() -> list[float]:
    """Bytes by which such clients grow in each round, if their registry is made at home; on average of a fifth of the rounds."""
    home = as_actor(Home).remote()
    found = []
    for take in (True, False):
        client: Any = as_actor(BareClient).remote("", home)
        ray.get(client.run.remote(take, FIRST), timeout=7000)
        pid = ray.get(client.where.remote(), timeout=60)
        before = memory(pid)
        ray.get(client.run.remote(take, ROUNDS // 5), timeout=7000)
        found.append((memory(pid) - before) / (ROUNDS // 5))
        ray.kill(client)
    return found

"""How many shards a registry has, where they are, who knows it, and how it grows: on a real Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import _settings, assembly
from safe_refs._ray import cluster
from tests.support.processes import NODES, Driver, run_python
from tests.support.registries import within
from tests.support.shards import Start, actor, figures, place, wait_until_whole
from tests.support.store import is_empty
from tests.support.waiting import wait_until

KB = 2**10


def test_by_default_there_is_one_shard_on_the_head_node(start: Start) -> None:
    """One actor, as before there were shards; more only when asked for."""
    name = start(1, 1)
    found = safe_refs.stats()
    assert found is not None
    assert (found.shards, found.replicas, found.recovering) == (1, 1, 0)
    assert place(name, 0)[0] == cluster.nodes()[0]
    with pytest.raises(ValueError, match="Failed to look up actor"):
        actor(name, 1)


@pytest.mark.long
def test_other_processes_learn_the_topology_and_wishes_that_do_not_fit_are_refused(
    start: Start, driver: Driver
) -> None:
    """A process that was told nothing uses the registry as it is; one that was told otherwise hears so, and can go on without."""
    name = start(3, 2)
    outcomes = driver(
        f"""
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "{name}"
        out = []

        def attempt(call, **wishes):
            os.environ.update({{f"SAFE_REFS_{{key.upper()}}": str(value) for key, value in wishes.items()}})
            try:
                out.append(call())
            except ValueError as error:
                out.append(str(error))
            for key in wishes:
                del os.environ[f"SAFE_REFS_{{key.upper()}}"]

        make = lambda: len(safe_refs.dumps(ray.put(1), ttl=60)) > 0
        attempt(make, shards=4)
        attempt(make, replicas=1)
        attempt(lambda: safe_refs.init(shards=2).shards)
        attempt(lambda: safe_refs.init(replicas=3, shards=3).shards)
        attempt(lambda: safe_refs.init(replicas=5, shards=3).shards)
        attempt(make)                # what was refused is not kept
        attempt(lambda: safe_refs.init().shards, replicas=1)
        attempt(lambda: safe_refs.init().shards, shards=1)  # more shards than wished are welcome
        attempt(make, shards=2)      # more shards than wanted are welcome
        attempt(lambda: [safe_refs.init(replicas=2, shards=3).shards, safe_refs.stats().replicas])
        print(json.dumps(out))
        """
    )
    assert outcomes[:2] == [True, True]  # a registry that runs is taken as it is
    for refusal, given in ((2, "shards=2"), (3, "replicas=3"), (6, "replicas=1")):
        assert f"registry {name!r} runs with" in outcomes[refusal]
        assert given in outcomes[refusal]
    assert "5 replicas need as many shards at least, not 3" in outcomes[4]
    assert outcomes[5] is True
    assert outcomes[7:] == [3, True, [3, 2]]
    # Each lease is on two of the three shards, and the driver that made them is gone.
    wait_until(lambda: safe_refs.leases(sizes=False) == [])


def test_replicas_need_as_many_shards(start: Start) -> None:
    """Refused before anything starts, and forgotten: the next call has what it wants."""
    safe_refs.shutdown(start(1, 1))
    with pytest.raises(ValueError, match="2 replicas need as many shards at least, not 1: give shards=2 or more"):
        safe_refs.init(shards=1, replicas=2)
    assert safe_refs.stats() is None
    assert safe_refs.init(replicas=2).shards == 2


def test_shutdown_ends_all_shards_and_lets_go_of_all_objects(start: Start) -> None:
    """However many there are: the count is of leases, no actor is left, and the store is empty; the next start may be another."""
    name = start(3, 2)
    payloads = [safe_refs.dumps(ray.put(bytes(200 * KB))) for _ in range(10)]
    assert sum(figures(name, shard).live_leases for shard in range(3)) == 20
    assert safe_refs.shutdown() == 10
    assert safe_refs.stats() is None

    def gone(shard: int) -> bool:
        try:
            actor(name, shard)
        except ValueError:
            return True
        return False

    wait_until(lambda: all(gone(shard) for shard in range(3)))
    assert is_empty(within_s=5)
    with pytest.raises(safe_refs.LeaseLostError):
        safe_refs.loads(payloads[0])
    assert safe_refs.init(shards=1, replicas=1).shards == 1


class Load:
    """Makes, loads and releases payloads over and over in a thread, until told to stop; notes how long the longest call took."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.calls = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        wait_until(lambda: self.calls > 10 or self.error is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error

    def _timed(self, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        done = call()
        self.longest_s = max(self.longest_s, time.perf_counter() - begun)
        self.calls += 1
        return done

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                payload = self._timed(lambda: safe_refs.dumps(ray.put(self.calls), uses=3))
                for _ in range(2):
                    self._timed(lambda payload=payload: safe_refs.loads(payload))  # type: ignore[misc]
                assert self._timed(lambda payload=payload: safe_refs.release(payload)) == 1  # type: ignore[misc]
                taken = self._timed(lambda: safe_refs.dumps(ray.put(self.calls)))
                self._timed(lambda taken=taken: safe_refs.loads(taken, take=True))  # type: ignore[misc]
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize(("before", "after", "replicas"), [(1, 3, 1), pytest.param(2, 4, 2, marks=pytest.mark.long)])
def test_a_registry_grows_while_calls_go_on(start: Start, before: int, after: int, replicas: int) -> None:
    """`init(shards=...)`: leases move and none is lost, endings stay endings, and nobody waits for longer than a second or two."""
    name = start(before, replicas)
    refs = [ray.put(number) for number in range(500)]
    payloads = [safe_refs.dumps(ref) for ref in refs]
    ended, payloads = payloads[:100], payloads[100:]
    assert safe_refs.release(ended) == 100
    with Load() as load:
        assert safe_refs.init(shards=after).shards == after
    assert load.longest_s < 2, load.longest_s
    wait_until_whole(name)

    def counts() -> list[int]:
        return [figures(name, shard).live_leases for shard in range(after)]

    wait_until(lambda: sum(counts()) == 400 * replicas)  # news of what ended in the growth may still be under way
    held = counts()
    assert all(count > 400 * replicas / after / 2 for count in held), held
    found = safe_refs.stats()
    assert found is not None
    assert (found.shards, found.replicas, found.live_leases) == (after, replicas, 400)
    assert [ray.get(safe_refs.loads(payload), timeout=20) for payload in payloads] == list(range(100, 500))
    for payload in ended[::10]:
        with pytest.raises(safe_refs.LeaseReleasedError):
            safe_refs.loads(payload)
    with pytest.raises(ValueError, match="can't have fewer"):
        safe_refs.init(shards=before)
    assert safe_refs.release(payloads) == 400
    assert [figures(name, shard).live_leases for shard in range(after)] == [0] * after


@pytest.mark.long
def test_growths_at_once_go_one_after_the_other(start: Start) -> None:
    """Each of several processes gets as many shards as it asks for at least; no lease is lost, and none is in two topologies."""
    name = start(1, 1)
    payloads = [safe_refs.dumps(ray.put(number)) for number in range(100)]
    client = assembly.client()

    def grow(shards: int) -> int:
        # What `init` does; in one process it would be one `init` after the other.
        assembly.ensure(client.registry(name), shards, _settings.wished({"shards": shards})[0], within(60))
        found = safe_refs.stats()
        assert found is not None
        return found.shards

    with ThreadPoolExecutor(3) as pool:
        grown = list(pool.map(grow, (2, 4, 3)))
    assert all(has >= wanted for has, wanted in zip(grown, (2, 4, 3), strict=True))
    wait_until_whole(name)
    found = safe_refs.stats()
    assert found is not None
    assert (found.shards, found.live_leases) == (4, 100)
    assert [ray.get(safe_refs.loads(payload), timeout=20) for payload in payloads] == list(range(100))
    assert safe_refs.release(payloads) == 100


@pytest.mark.long
def test_shards_spread_over_the_nodes_head_first() -> None:
    """One shard after the other on one node after the other, as long as there are nodes; the first is on the head node."""
    spread = run_python(
        NODES
        + """
safe_refs.init(shards=4, replicas=2)
nodes = living_nodes()
spread = [nodes.index(place("default", shard)[0]) for shard in range(4)]
ray.shutdown()
cluster.shutdown()
print(json.dumps(spread))
"""
    )
    assert spread == [0, 1, 2, 0]

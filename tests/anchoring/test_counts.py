"""Anchoring leaves Ray's reference counts as they were, however often it is done."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray.cluster import NAMESPACE
from safe_refs.anchoring import relays
from safe_refs.registry.shard import actor_name
from tests.support.actors import borrower
from tests.support.anchoring import anchored, counted
from tests.support.shards import Start
from tests.support.store import is_empty
from tests.support.values import outcome, value
from tests.support.waiting import comes, wait_until


@pytest.mark.parametrize(
    ("topology", "often"),
    [
        pytest.param((1, 1), 50, id="1,000 anchorings, one shard"),
        pytest.param((3, 2), 100, marks=pytest.mark.long, id="2,000 anchorings, three shards, two replicas"),
        pytest.param((1, 1), 500, marks=pytest.mark.slow, id="10,000 anchorings, one shard"),
        pytest.param((3, 2), 2_500, marks=pytest.mark.slow, id="50,000 anchorings, three shards, two replicas"),
    ],
)
@pytest.mark.timeout(900)
def test_counts_balance(start: Start, topology: tuple[int, int], often: int) -> None:
    """However much was anchored, every process counts what it should in the end, and the store is empty.

    Two processes anchor ten references at a time, among loads and releases.
    """
    shards, replicas = topology
    registry = start(shards, replicas)
    makers = [borrower(), borrower()]
    ray.get([maker.set_up.remote({"SAFE_REFS_REGISTRY": registry}) for maker in makers], timeout=60)
    refs = [ray.put(value(number)) for number in range(30)]
    ids = {ref.hex() for ref in refs}
    ray.get([maker.keep.remote(refs) for maker in makers], timeout=60)
    del refs
    left = ray.get([maker.dumps_each.remote(often, seed) for seed, maker in enumerate(makers)], timeout=600)
    assert outcome(lambda: safe_refs.loads(left[0][-1])[0]) in set(range(30))
    assert safe_refs.release(left[0] + left[1]) == len(left[0]) + len(left[1])
    wait_until(anchored, 30)
    assert ray.get([maker.read.remote() for maker in makers], timeout=60) == [list(range(30))] * 2
    helpers = [actor_name(registry, shard) for shard in range(shards)]
    # Spares start only where they are needed.
    running = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
    names = [relays.name(number) for number in (*relays.FOR_SHARDS, *relays.FOR_CLIENTS)]
    helpers += [name for name in names if name in running]
    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in helpers]

    def counts(actor: Any) -> dict[str, tuple[int, int]]:
        found = ray.get(actor.__ray_call__.remote(lambda _: counted()), timeout=30)
        return {key: count for key, count in found.items() if key in ids}

    def is_clear(actor: Any) -> bool:
        return counts(actor) == {}

    for name, actor in zip(helpers, actors, strict=True):
        comes(partial(is_clear, actor), 15)
        assert counts(actor) == {}, name
    assert [counts(maker) for maker in makers] == [dict.fromkeys(ids, (1, 0))] * 2
    ray.get([maker.drop.remote() for maker in makers], timeout=60)
    wait_until(lambda: not ids & set(counted()), 15)
    assert [counts(maker) for maker in makers] == [{}, {}]
    assert is_empty(10)

"""The end of a registry: it releases everything, and takes nothing from those who have resolved."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.registry import whole
from tests.support.actors import Reader
from tests.support.cluster import as_actor
from tests.support.shards import actor
from tests.support.values import MB
from tests.support.waiting import stays, wait_until


def be_in_a_round(shard: Any) -> None:
    """What a shard does for a moment: it begins to anchor all that it holds, and comes to no end with it."""
    time.sleep(0.5)  # until `close` waits for its turn, too
    with shard.lock:
        for lease, held in shard.table.live.items():
            shard.parts.resolved(lease, held.items, soon=True)
    wait_until(lambda: bool(shard.parts.named("Anchoring")._rounds._batch.refs))


@pytest.mark.parametrize(
    "meanwhile",
    [pytest.param(None, id="idle"), pytest.param(be_in_a_round, marks=pytest.mark.long, id="in a round of anchoring")],
)
def test_shutdown_releases_everything_and_spares_live_references(
    registry: str, meanwhile: Callable[[Any], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a consumer has resolved stays good when the registry is shut down, although it knew the object only through it.

    Also if the registry has begun to tell the owner of the consumer, and holds the reference for that.
    """
    monkeypatch.setattr(whole, "_CLOSES_WITHIN_S", 120.0)  # a shard does not give up
    payload = safe_refs.dumps(ray.put(b"s" * MB))
    reader = as_actor(Reader).remote()
    ray.get(reader.load.remote([payload]), timeout=60)
    gc.collect()
    if meanwhile is not None:
        actor(registry, 0).__ray_call__.remote(meanwhile)
    begun = time.monotonic()
    assert safe_refs.shutdown(timeout=60) == 1
    assert time.monotonic() - begun < 30  # it has not waited in vain
    assert safe_refs.stats() is None
    assert safe_refs.shutdown() == 0
    with pytest.raises(safe_refs.LeaseLostError):
        safe_refs.loads(payload)
    # A reference whose holder Ray has forgotten dies within about 3 s.
    stays(lambda: bool(ray.get(reader.get.remote(), timeout=30) == b"s" * MB), 4)
    ray.kill(reader)


@pytest.mark.parametrize("how", [{"durable": True}, {}], ids=["durable", "loaded"])
def test_a_detached_actor_has_no_owner_to_wait_for(registry: str, how: dict[str, Any]) -> None:
    """A registry that holds one, or whose reader does, is shut down like any other."""
    actor_ = as_actor(Reader).options(name=f"detached-{registry}", lifetime="detached").remote()
    payload = safe_refs.dumps(actor_, **how)
    reader = as_actor(Reader).remote()
    ray.get(reader.load.remote([payload]), timeout=60)
    begun = time.monotonic()
    assert safe_refs.shutdown(timeout=60) == 1
    assert time.monotonic() - begun < 8
    assert safe_refs.stats() is None
    ray.kill(actor_)
    ray.kill(reader)

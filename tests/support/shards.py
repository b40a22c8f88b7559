"""Registries of several shards: look into a single shard, and take one down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

import safe_refs
from safe_refs._ray import cluster
from safe_refs.registry.calls import Call
from safe_refs.registry.records import RegistryStats
from safe_refs.registry.shard import Shard, actor_name
from safe_refs.replication.part import Replication
from safe_refs.replication.records import Record
from safe_refs.replication.topology import Topology

from .waiting import wait_until

A = TypeVar("A")
Start = Callable[[int, int], str]


def actor(registry: str, shard: int) -> Any:
    """One shard's actor."""
    return cluster.named_actor(actor_name(registry, shard), Shard)


def ask(registry: str, shard: int, call: Call[A]) -> A:
    """What one shard by itself answers."""
    answer: A = ray.get(getattr(actor(registry, shard), call.method).remote(*call.args), timeout=30)
    return answer


def place(registry: str, shard: int) -> tuple[str, int]:
    """Where a shard runs: its node and process id."""
    return ask(registry, shard, Call(Shard.where))


def figures(registry: str, shard: int) -> RegistryStats:
    """One shard's own figures."""
    return ask(registry, shard, Call(Shard.stats))


def both(registry: str, name: str) -> tuple[int, int]:
    """One of the figures, of the first two shards."""
    return getattr(figures(registry, 0), name), getattr(figures(registry, 1), name)


def kill(registry: str, *shards: int) -> None:
    """SIGKILL the processes of some shards, all at once; one of several Ray starts anew after a second or two."""
    for number in [place(registry, shard)[1] for shard in shards]:
        os.kill(number, signal.SIGKILL)


@contextmanager
def stopped(registry: str, *shards: int) -> Iterator[None]:
    """Within the block, some shards don't answer, although they live."""
    numbers = [place(registry, shard)[1] for shard in shards]
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in numbers:
            os.kill(number, signal.SIGCONT)


def is_back(registry: str) -> bool:
    """Whether all shards answer; they may be recovering still. Or none run."""
    found = safe_refs.stats(registry=registry)
    try:
        return found is None or all(figures(registry, shard).uptime_s > 0 for shard in range(found.shards))
    except ray.exceptions.RayActorError:
        return False


def is_whole(registry: str) -> bool:
    """Whether all shards answer and know all that they should; or none run."""
    found = safe_refs.stats(registry=registry)
    return found is None or found.recovering == 0


def wait_until_whole(registry: str) -> None:
    """Wait until all shards are back and know all that they should."""
    wait_until(lambda: is_whole(registry))


def decider(registry: str, payload: bytes) -> int:
    """The shard that decides about a lease's uses."""
    found = safe_refs.stats(registry=registry)
    lease = safe_refs.inspect(payload).lease_id
    assert found is not None
    assert lease is not None
    return Topology(1, found.shards, found.replicas).holders(bytes.fromhex(lease))[0]


def knows(registry: str, shard: int, payloads: list[bytes]) -> list[Record | str | None]:
    """What one shard by itself knows of leases: a live one's terms and uses, how one ended, or None."""
    ids = [bytes.fromhex(safe_refs.inspect(payload).lease_id or "") for payload in payloads]
    records = ask(registry, shard, Call(Replication.records, ids))
    found: dict[bytes, Record | str] = {record.lease: record._replace(items=()) for record in records.live}
    found |= {end.lease: end.how for end in records.ended}
    return [found.get(id_) for id_ in ids]

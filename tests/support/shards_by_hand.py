"""Shards of one registry in this process, without Ray: their parts for replication, a control store, and calls between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from safe_refs._ray import cluster, control, workers
from safe_refs.config import Limits
from safe_refs.registry.calls import Call
from safe_refs.registry.hooks import Parts
from safe_refs.registry.records import Terms
from safe_refs.registry.shard import Shard, actor_name
from safe_refs.replication import control_store
from safe_refs.replication.part import Replication

from . import stand_ins
from .rules import ME

NAME = "by-hand"


class Store:
    """Ray's control store, as a dictionary."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, bytes] = {}
        for name in ("get", "put", "delete"):
            monkeypatch.setattr(control, f"kv_{name}", getattr(self, name))

    def get(self, key: str, deadline: object = None) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes, deadline: object = None, *, overwrite: bool = True) -> bool:
        if not overwrite and key in self.values:
            return False
        self.values[key] = value
        return True

    def delete(self, key: str, deadline: object = None) -> None:
        self.values.pop(key, None)


class Registry:
    """Some shards of a registry, all in this process.

    Attributes:
        shards: those that run, by their numbers.
        away: those that don't answer.
        refused: makes a shard's method raise, given its number and its name.
        threads: the peers' threads that the test has started.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shards: int, replicas: int) -> None:
        self.store = Store(monkeypatch)
        stand_ins.allow(monkeypatch)
        monkeypatch.setattr(cluster, "named_actor", self._named)
        monkeypatch.setattr(workers, "own_address", lambda: b"sender")
        control_store.begin(NAME, shards, replicas)
        self.shards: dict[int, Shard] = {}
        self.away: set[int] = set()
        self.refused: Callable[[int, str], bool] = lambda number, method: False
        self.threads: list[threading.Thread] = []
        for number in range(shards):
            self.start(number)

    def start(self, number: int) -> Replication:
        """Start a shard, for the first time or again."""
        joined = control_store.join(NAME, number, Limits())
        shard = Shard(NAME, joined.identity, Limits(), number, alone=joined.topology.replicas == 1)
        part = Replication(shard, joined)
        part._peers._links = Wires(self, shard)  # type: ignore[assignment] # as Links, but without Ray
        shard.parts = Parts([part])
        self.shards[number] = shard
        return part

    def part(self, number: int) -> Replication:
        """A shard's part for replication."""
        found = self.shards[number].parts.named("Replication")
        assert isinstance(found, Replication)
        return found

    def _named(self, name: str, *_: object) -> Shard:
        found = {actor_name(NAME, number): shard for number, shard in self.shards.items()}
        if name not in found:
            raise ValueError(name)
        return found[name]

    def run(self, number: int) -> threading.Thread:
        """Start a shard's peers' thread."""
        (loop,) = self.part(number).threads()
        thread = threading.Thread(target=loop.keep_running, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def pin(self, lease: bytes, *items: str) -> None:
        """Pin a lease at all its holders."""
        for number in self.part(0)._rules.topology.holders(lease):
            shard = self.shards[number]
            with shard.lock:
                shard.table.pin(lease, items, [b""] * len(items), Terms(), ME)  # type: ignore[arg-type] # they stand for references

    def holders(self, lease: bytes) -> list[int]:
        """The shards that hold a lease."""
        return [number for number, shard in sorted(self.shards.items()) if lease in shard.table.live]

    def close(self) -> None:
        """End the threads."""
        for shard in self.shards.values():
            shard.is_closing = True
            shard.parts.closing(1.0)
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()


class Wires:
    """As `replication.links.Links`, from one shard to the others: each call runs in the thread that makes it."""

    def __init__(self, registry: Registry, shard: Shard) -> None:
        self._registry = registry
        self._shard = shard

    def ask(self, number: int, call: Call[Any]) -> Any:
        registry, (method, *args) = self._registry, call.args
        if registry.refused(number, str(method)):
            raise RuntimeError(f"{method} of shard {number} fails")
        if number in registry.away or number not in registry.shards:
            return None
        return registry.shards[number].part(str(method), *args)

    def send(self, number: int, make: Callable[[], Call[Any]]) -> Any:
        with self._shard.using, self._shard.lock:
            call = make()
        return self.ask(number, call)

    def fetch(self, number: int, call: Call[Any], take: Callable[[Any], None]) -> bool:
        answer = self.ask(number, call)
        if answer is None:
            return False
        with self._shard.using, self._shard.lock:
            take(answer)
        return True

"""`release` by label and by rows where a registry has several shards: none is missed, and each lease counts once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import pytest
import ray

import safe_refs
from safe_refs.config import Deadline
from safe_refs.errors import RegistryUnavailableError
from safe_refs.registry import steps, whole
from safe_refs.registry.calls import Call, Registry
from safe_refs.registry.hooks import Parts
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Query
from safe_refs.registry.wire import NotNow, ReleaseWhereCall, Silence
from safe_refs.replication.records import merge_record, record_of
from safe_refs.replication.topology import Topology
from tests.support.rules import ME, Clock, make_table, pin
from tests.support.shards import Start, both, is_back, kill, knows, stopped, wait_until_whole
from tests.support.waiting import wait_until

LATER = Deadline(1e18, 30.0)


class Growing:
    """A registry of pure tables, whose leases move from old shards to new ones between any two calls.

    Attributes:
        silent: what shards answer in place of an answer, by shard, each once.
        asked: which shards were asked, in order.
        pauses: how often it was asked to wait.
    """

    name = "any"

    def __init__(self, topology: Topology, leases: int, moves: int) -> None:
        self.here = self
        self.topology, self._moves = topology, moves
        self.tables = [make_table(Clock()) for _ in range(topology.shards)]
        self._before = topology._replace(shards=topology.before or topology.shards, before=0)
        for number in range(leases):
            lease = number.to_bytes(16, "big")
            for shard in self._before.holders(lease):
                pin(self.tables[shard], lease, "x", label="x")
        self.silent: dict[int, list[NotNow | Silence]] = {}
        self.asked: list[int] = []
        self.pauses = self.forgotten = 0

    def origin(self) -> object:
        return ME

    def layout(self, *, start: bool, deadline: object) -> Topology:
        return self.topology

    def ask(self, calls: Mapping[int, Call[Any]], deadline: Deadline) -> dict[int, Any]:
        ((shard, call),) = calls.items()
        self.asked.append(shard)
        if self.silent.get(shard):
            return {shard: self.silent[shard].pop(0)}
        asked = cast("ReleaseWhereCall", call.args[0])
        answer = steps.release_where(self.tables[shard], Parts(), asked)
        for old in range(self.topology.before):
            theirs = [
                each for each in self.tables[old].live if self.topology.holders(each) != self._before.holders(each)
            ]
            for lease in theirs[: self._moves]:
                self._move(lease, self.tables[old])
        return {shard: answer}

    def _move(self, lease: bytes, old: LeaseTable[str]) -> None:
        for new in self.topology.holders(lease):
            record = record_of(old, lease)
            assert record is not None
            merge_record(self.tables[new], record)
        old.let_go(lease)

    def forget_layout(self) -> None:
        self.forgotten += 1

    def forget(self) -> None:
        self.forgotten += 1

    def pause(self, deadline: Deadline) -> None:
        self.pauses += 1

    def no_answer(self, deadline: Deadline) -> RegistryUnavailableError:
        return RegistryUnavailableError("late")


def released(registry: Growing, *, dry_run: bool = False) -> int:
    return whole.release_where(cast("Registry", registry), Query(label="x", limit=10), dry_run, LATER)


@pytest.mark.parametrize("moves", [1, 5, 10, 50])
def test_while_a_registry_grows_no_lease_is_missed(moves: int) -> None:
    """Whatever moves between two calls: leases move to new shards, which are asked last."""
    growing = Topology(2, shards=4, replicas=1, before=1)
    assert released(Growing(growing, 100, moves), dry_run=True) == 100
    registry = Growing(growing, 100, moves)
    assert released(registry) == 100
    assert not any(table.live for table in registry.tables)


def test_a_new_topology_is_looked_up_and_all_shards_are_asked_by_it() -> None:
    """Those that had answered before, too, as leases may have moved; none counts twice."""
    registry = Growing(Topology(1, shards=2, replicas=1), 30, 0)
    registry.silent[1] = [NotNow.STALE]
    assert released(registry) == 30
    assert (registry.forgotten, registry.asked[-2:]) == (1, [1, 1])


def test_a_dead_shard_is_waited_for_where_nobody_else_holds_its_leases() -> None:
    """With replicas it is left out; but not if as many are dead as hold a lease."""
    alone = Growing(Topology(1, shards=2, replicas=1), 30, 0)
    alone.silent[1] = [Silence.DEAD]
    assert (released(alone), alone.pauses) == (30, 1)
    pair = Growing(Topology(1, shards=3, replicas=2), 30, 0)
    pair.silent[2] = [Silence.DEAD]
    assert (released(pair), pair.pauses, pair.asked.count(2)) == (30, 0, 1)
    pair = Growing(Topology(1, shards=3, replicas=2), 30, 0)
    pair.silent = {1: [Silence.DEAD], 2: [Silence.DEAD]}
    assert (released(pair), pair.pauses) == (30, 1)


def test_who_does_not_answer_is_named_and_what_does_not_run_has_nothing() -> None:
    """A silent shard is an error, as its leases may live; a registry whose actors are all gone holds none."""
    registry = Growing(Topology(1, shards=2, replicas=1), 30, 0)
    registry.silent[1] = [Silence.LATE]
    with pytest.raises(RegistryUnavailableError):
        released(registry)
    registry = Growing(Topology(1, shards=2, replicas=1), 30, 0)
    registry.silent = {0: [Silence.ABSENT], 1: [Silence.ABSENT]}
    assert (released(registry), registry.forgotten) == (0, 1)


@pytest.mark.long
def test_replicas_count_once_and_all_of_them_end(start: Start) -> None:
    """By label, and by row; also those of a shard that is down, which learns it when it is back."""
    name = start(2, 2)
    payloads = [safe_refs.dumps(ray.put(number), label="x" if number < 20 else "y") for number in range(40)]
    assert safe_refs.release(label="x", dry_run=True) == 20
    assert safe_refs.release(label="x") == 20
    assert both(name, "live_leases") == (20, 20)
    rows = safe_refs.leases()
    assert (rows[0].release(), rows[0].release()) == (1, 0)
    assert (safe_refs.release(rows[:5]), both(name, "live_leases")) == (4, (15, 15))
    kill(name, 1)
    assert safe_refs.release(label="y") == 15
    wait_until(lambda: is_back(name))
    wait_until_whole(name)
    for shard in range(2):
        assert knows(name, shard, payloads) == ["released"] * 40
    assert safe_refs.release(payloads) == 0


def test_a_shard_that_does_not_respond_is_an_error_in_time(start: Start) -> None:
    """The timeout bounds the whole call. What was asked is carried out all the same when the shard goes on."""
    name = start(2, 1)
    for number in range(20):
        safe_refs.dumps(ray.put(number), label="x")
    with stopped(name, 1), pytest.raises(RegistryUnavailableError, match="did not answer within 1 s"):
        safe_refs.release(label="x", timeout=1)
    wait_until(lambda: safe_refs.leases(sizes=False) == [])


@pytest.mark.long
def test_a_real_growth_hides_no_lease(start: Start) -> None:
    """A release in the middle of it ends all, and counts each once."""
    name = start(1, 1)
    safe_refs.dumps_many([ray.put(number) for number in range(2000)], label="x")
    grower = threading.Thread(target=safe_refs.init, args=(name,), kwargs={"shards": 3})
    grower.start()
    wait_until(lambda: (found := safe_refs.stats()) is not None and found.shards == 3)
    count = safe_refs.release(label="x")
    grower.join(60)
    wait_until_whole(name)
    assert count == 2000
    wait_until(lambda: safe_refs.leases(sizes=False) == [])

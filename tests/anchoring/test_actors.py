"""Handles of actors that somebody else created: a lease outlives who pinned it, or says on whom it depends."""

from __future__ import annotations

import gc

import pytest
import ray

import safe_refs
from tests.support.actors import Reader, borrower, counter
from tests.support.anchoring import anchored
from tests.support.cluster import as_actor
from tests.support.processes import dies, goes_on
from tests.support.shards import Start, figures, kill, wait_until_whole
from tests.support.waiting import wait_until


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("end", ["exit_actor", "dropped"])
def test_a_borrowers_lease_of_an_actor_outlives_an_orderly_end(end: str) -> None:
    """Who pins an actor that another process created may end, as long as it ends in order."""
    actor, pid = counter()
    passer = borrower()
    passers_pid = ray.get(passer.keep.remote([actor]), timeout=60)
    payload = ray.get(passer.dumps_all.remote(), timeout=60)
    del actor
    gc.collect()
    if end == "exit_actor":
        passer.end.remote()
    del passer
    gc.collect()
    assert dies(passers_pid)
    assert goes_on(pid)
    (loaded,) = safe_refs.loads(payload)
    assert ray.get(loaded.pid.remote(), timeout=60) == pid
    del loaded
    safe_refs.release(payload)
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
@pytest.mark.long
def test_a_borrowers_lease_of_an_actor_depends_on_it_and_is_lost_if_it_is_killed() -> None:
    """A process can not tell by itself whom it passed a handle to: the lease says so, and its loss, too."""
    actor, pid = counter()
    passer = borrower()
    passers_pid = ray.get(passer.keep.remote([actor]), timeout=60)
    payload = ray.get(passer.dumps_all.remote(), timeout=60)
    (row,) = safe_refs.leases(sizes=False)
    assert row.depends_on is not None
    assert str(passers_pid) in row.depends_on
    del actor
    gc.collect()
    ray.kill(passer)
    assert dies(pid)

    wait_until(lambda: is_lost(payload), 60)
    with pytest.raises(safe_refs.LeaseLostError, match=f"it depended on {row.depends_on}, which is dead"):
        safe_refs.loads(payload)


@pytest.mark.usefixtures("cluster")
def test_a_handle_that_was_resolved_outlives_the_registry() -> None:
    """The registry crashes a moment after a reader has loaded: the reader's handle is good, with nobody else having one."""

    def call(self: Reader) -> int:
        found: int = ray.get(self.refs[0].pid.remote(), timeout=30)
        return found

    actor, pid = counter()
    payload = safe_refs.dumps(actor)
    reader = as_actor(Reader).remote()
    ray.get(reader.load.remote([payload]), timeout=60)
    assert ray.get(reader.__ray_call__.remote(call), timeout=60) == pid
    del actor
    gc.collect()
    wait_until(anchored, 30)
    kill("default", 0)
    assert goes_on(pid)
    assert ray.get(reader.__ray_call__.remote(call), timeout=60) == pid
    ray.kill(reader)
    assert dies(pid)


@pytest.mark.long
def test_an_actor_outlives_both_replicas_crashing_one_after_the_other(start: Start) -> None:
    """Each gets the lease back from the other, and the actor's creator learns of it."""
    name = start(2, 2)
    actor, pid = counter()
    payload = safe_refs.dumps(actor)
    del actor
    gc.collect()
    for shard in (0, 1):
        kill(name, shard)
        wait_until_whole(name)
        wait_until(lambda: figures(name, 0).unanchored == figures(name, 1).unanchored == 0, 60)
        assert goes_on(pid)
    assert ray.get(safe_refs.loads(payload).pid.remote(), timeout=60) == pid
    assert safe_refs.release(payload) == 1
    assert dies(pid)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_borrowers_lease_is_lost_with_it_also_where_the_creator_still_has_a_handle() -> None:
    """The registry doesn't take it that the actor lives for a sign that the actor's creator knows of the lease."""
    actor, _ = counter()
    passer = borrower()
    ray.get(passer.keep.remote([actor]), timeout=60)
    payload = ray.get(passer.dumps_all.remote(), timeout=60)
    ray.kill(passer)

    wait_until(lambda: is_lost(payload), 60)
    del actor


def is_lost(payload: bytes) -> bool:
    """Whether loading says that the lease depended on a process that is dead."""
    try:
        safe_refs.loads(payload)
    except safe_refs.LeaseLostError as error:
        return "depended on" in str(error)
    return False

"""Durability works with no other wing: a registry of the core and of this one."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import OwnerGoneError, RegistryUnavailableError, UnsupportedReferenceError, _settings
from safe_refs._ray import cluster, workers
from safe_refs.durability.owner import owner_name
from safe_refs.registry import known
from safe_refs.registry.shard import Shard, actor_name
from tests.support.copies import copy_owner, copying, kill_copy_owner, owned, pid_of_copy_owner
from tests.support.durable_alone import DurableSession
from tests.support.values import error_of, got
from tests.support.waiting import stays, wait_until


@pytest.fixture
def alone(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DurableSession]:
    """A session whose registry is the test's own, in place of the usual one."""
    name = f"alone-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", name)
    known.drop(workers.connection())
    session = DurableSession(name)
    assert known.add(session) is session
    yield session
    shard: Any = cluster.named_actor(actor_name(name), Shard)
    assert got(shard.stats.remote()).live_leases == 0
    ray.kill(shard)
    session.copies.shut_down(name, 1)
    gc.collect()
    wait_until(lambda: not runs(owner_name(name, 0)))
    known.drop(session.connection)


def runs(name: str) -> bool:
    try:
        ray.get_actor(name, namespace=cluster.NAMESPACE)
    except ValueError:
        return False
    return True


class Maker:
    """Owns objects."""

    def give(self) -> list[Any]:
        return [ray.put(["given", ray.put("inside")])]


@pytest.mark.long
def test_what_is_durable_outlives_its_objects(alone: DurableSession) -> None:
    """The copies are the copy owner's, objects inside objects, too; shared ones are copied once."""
    shared = ray.put("shared")
    payload = safe_refs.dumps({"a": ray.put([shared, 1]), "b": ray.put([shared, 2])}, durable=True)
    me = workers.owner_of(shared)
    del shared
    gc.collect()
    loaded = safe_refs.loads(payload)
    owners = {workers.owner_of(ref) for ref in loaded.values()}
    assert len(owners) == 1
    assert me not in owners
    (first, one), (second, two) = got(loaded["a"]), got(loaded["b"])
    assert (one, two) == (1, 2)
    assert first == second
    assert got(first) == "shared"
    assert safe_refs.release(payload) == 1
    assert got(second) == "shared", "what was resolved stays good"


@pytest.mark.long
def test_a_second_lease_is_copied_beside_its_pin(alone: DurableSession) -> None:
    """The copy owner runs by then, and the maker sends it the request itself; a ttl counts from when the copies exist."""
    safe_refs.release(safe_refs.dumps(ray.put("first"), durable=True))
    payload = safe_refs.dumps([ray.put(number) for number in range(20)], durable=True, ttl=3.0)
    assert [got(ref) for ref in safe_refs.loads(payload)] == list(range(20))
    assert copying(alone.name) == 0
    assert 2.0 < (safe_refs.expires_in_s(payload) or 0.0) <= 3.0
    wait_until(lambda: owned(alone.name) == 20)
    safe_refs.release(payload)
    wait_until(lambda: owned(alone.name) == 0)


@pytest.mark.long
def test_many_at_once_and_a_lease_that_exists(alone: DurableSession) -> None:
    """Of an owner that is killed then."""
    maker: Any = ray.remote(num_cpus=0)(Maker).remote()
    (ref,) = got(maker.give.remote())
    handle = safe_refs.pin(ref)
    alone.copies.make_durable([handle.address], _settings.durable_deadline(60))
    alone.copies.make_durable([handle.address], _settings.durable_deadline(60))
    many = safe_refs.dumps_many([ray.put(number) for number in range(50)], durable=True)
    ray.kill(maker)
    del ref
    gc.collect()
    given, inside = got(handle.resolve())
    assert (given, got(inside)) == ("given", "inside")
    assert [got(safe_refs.loads(payload)) for payload in many] == list(range(50))
    assert safe_refs.release([handle, *many]) == 51


@pytest.mark.long
def test_what_cannot_be_copied_is_refused(alone: DurableSession) -> None:
    """An actor that dies with its creator, beside an object or inside it; an object that never comes."""
    actor: Any = ray.remote(num_cpus=0)(Maker).remote()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps([ray.put(1), actor], durable=True)
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps(ray.put({"actor": actor}), durable=True)

    @ray.remote(num_cpus=0)
    def never() -> None:
        time.sleep(600)

    pending = never.remote()
    with safe_refs.pin(pending) as handle, pytest.raises(RegistryUnavailableError, match="not durable after 1 s"):
        alone.copies.make_durable([handle.address], _settings.durable_deadline(1))
    ray.cancel(pending, force=True)
    wait_until(lambda: copying(alone.name) == 0)


@pytest.mark.long
def test_the_death_of_the_only_copy_owner_ends_the_lease(alone: DurableSession) -> None:
    """Another one starts for the next."""
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    kill_copy_owner(alone.name)
    wait_until(lambda: error_of(payload) is OwnerGoneError)
    again = safe_refs.dumps(ray.put("again"), durable=True)
    assert got(safe_refs.loads(again)) == "again"
    safe_refs.release(again)


@pytest.mark.long
def test_a_copy_owner_stays_until_nobody_has_a_copy(alone: DurableSession) -> None:
    """And its process carries a name that says whose it is."""
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    loaded = safe_refs.loads(payload)
    pid = pid_of_copy_owner(alone.name)
    assert "SafeRefsCopyOwner" in Path(f"/proc/{pid}/cmdline").read_text()
    safe_refs.release(payload)
    copy_owner(alone.name).retire.remote()
    stays(lambda: Path(f"/proc/{pid}").exists(), 2)
    assert got(loaded) == "copied"
    del loaded
    gc.collect()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    safe_refs.release(safe_refs.dumps(ray.put("another"), durable=True))

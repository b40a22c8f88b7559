"""Leases on a real registry: how they end, who is told what, what is listed, and which limits refuse."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.actors import Owner
from tests.support.cluster import as_actor
from tests.support.store import is_empty
from tests.support.values import MB
from tests.support.waiting import wait_until


def test_limits_refuse_with_the_figures_and_can_be_raised(registry: str) -> None:
    """Past `max_leases` or `max_references` a `dumps` fails before anything is held; `init` changes a running registry's limits."""
    safe_refs.init(max_leases=2, max_references=4)
    held = [safe_refs.dumps(ray.put(n), label="mine") for n in range(2)]
    with pytest.raises(safe_refs.RegistryFullError, match="max_leases is 2, 2 are in use and 1 more") as caught:
        safe_refs.dumps(ray.put(b"x" * MB))
    assert caught.value.largest == (("mine", 2),)
    assert len(safe_refs.leases()) == 2
    safe_refs.init(max_leases=9, max_references=4)
    held.append(safe_refs.dumps([ray.put(1), ray.put(2)]))
    with pytest.raises(safe_refs.RegistryFullError, match="max_references is 4"):
        safe_refs.pin(ray.put(3))
    assert safe_refs.release(held) == 3


def test_a_dead_owner_is_reported_as_such(registry: str) -> None:
    """When the process that owned a lease's objects is killed, the lease ends within seconds, and loading says why."""

    def make(self: Owner) -> bytes:
        (ref,) = self.put(b"x" * MB)
        return safe_refs.dumps([ref, ref])

    owner = as_actor(Owner).remote()
    number = ray.get(owner.set_up.remote({"SAFE_REFS_REGISTRY": registry}), timeout=60)
    payload = ray.get(owner.__ray_call__.remote(make), timeout=60)
    kept = safe_refs.dumps(ray.put("of a living owner"))
    assert ray.get(safe_refs.loads(payload)[0], timeout=20) == b"x" * MB
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: len(safe_refs.leases(sizes=False)) == 1)
    with pytest.raises(safe_refs.OwnerGoneError, match="died with the process that owned them") as caught:
        safe_refs.loads(payload)
    assert "make the payload with durable=True" in str(caught.value)
    assert not caught.value.durable
    assert ray.get(safe_refs.loads(kept), timeout=20) == "of a living owner"
    figures = safe_refs.stats()
    assert figures is not None
    assert (figures.owner_gone, safe_refs.release([payload, kept])) == (1, 1)


def test_getting_from_a_handle_of_a_dead_owner_always_returns(registry: str) -> None:
    """Before the registry has noticed, too: `get` turns Ray's own error into `OwnerGoneError`."""

    def make(self: Owner) -> Any:
        (ref,) = self.put(b"x" * MB)
        return safe_refs.pin(ref)

    owner = as_actor(Owner).remote()
    number = ray.get(owner.set_up.remote({"SAFE_REFS_REGISTRY": registry}), timeout=60)
    handle = ray.get(owner.__ray_call__.remote(make), timeout=60)
    os.kill(number, signal.SIGKILL)
    outcomes: list[str] = []
    while not outcomes or outcomes[-1] == "value":  # as long as a copy is still in this node's store
        try:
            outcomes.append("value" if handle.get(30) == b"x" * MB else "wrong value")
        except safe_refs.OwnerGoneError:
            outcomes.append("gone")
    assert outcomes[-1] == "gone"
    handle.release()


def test_leases_lists_who_holds_what(registry: str) -> None:
    """Every live lease with its label, age, terms, size and maker, by job, node, process and source line; nothing that resolves."""
    payload = safe_refs.dumps({"a": ray.put(b"x" * MB), "b": ray.put(b"y" * MB)}, label="night", ttl=100, uses=5)
    (info,) = safe_refs.leases(label="night")
    assert (info.label, info.references, info.uses_left) == ("night", 2, 5)
    assert info.size_bytes == pytest.approx(2 * MB, rel=0.01)
    assert 0 <= info.age_s < 30
    assert info.expires_in_s is not None
    assert 70 < info.expires_in_s <= 100
    assert (info.job, info.pid) == (ray.get_runtime_context().get_job_id(), os.getpid())
    assert info.node == ray.get_runtime_context().get_node_id()
    assert info.source.startswith(f"{__file__}:")
    assert info.source.endswith("in test_leases_lists_who_holds_what")
    full = safe_refs.inspect(payload).lease_id
    assert full is not None
    assert full not in repr(safe_refs.leases())
    assert safe_refs.leases(label="day") == []
    assert safe_refs.leases(sizes=False)[0].size_bytes is None
    with pytest.raises(safe_refs.EnvelopeError, match="32 hexadecimal digits"):
        safe_refs.release(info.short_id)
    assert safe_refs.release(full) == 1


def test_a_lease_ends_by_its_ttl_and_the_object_leaves_the_store(registry: str) -> None:
    """With a ttl of 1 s and no reference left, the store is empty 2 s after the end, and loading names the time."""
    payload = safe_refs.dumps(ray.put(b"x" * MB), ttl=1)
    gc.collect()
    assert is_empty(within_s=3)
    with pytest.raises(safe_refs.LeaseExpiredError, match=r"expired at 20.*ttl of 1\.0 s") as caught:
        safe_refs.loads(payload)
    assert caught.value.ended_at == pytest.approx(time.time(), abs=30)


def test_a_lease_ends_by_its_uses(registry: str) -> None:
    """`uses=2`: two loads, then an error that says so, and the object goes with the last reference."""
    payload = safe_refs.dumps(ray.put("v"), uses=2)
    assert [ray.get(safe_refs.loads(payload), timeout=20) for _ in range(2)] == ["v", "v"]
    with pytest.raises(safe_refs.LeaseUsedUpError):
        safe_refs.loads(payload)


def test_release_takes_all_that_names_a_lease(registry: str) -> None:
    """Payloads in any buffer, handles, their text, ids, what `inspect` says, and iterables of all these."""
    payloads = [safe_refs.dumps(ray.put(n)) for n in range(6)]
    infos = [safe_refs.inspect(payload) for payload in payloads]
    mixed: list[Any] = [payloads[0], payloads[0], [bytearray(payloads[1])], safe_refs.dumps("plain")]
    assert safe_refs.release(mixed) == 2
    assert safe_refs.release(memoryview(payloads[2])) == 1
    assert safe_refs.release(str(infos[3].handles[0])) == 1
    assert infos[5].lease_id is not None
    assert safe_refs.release(each for each in (infos[4], infos[5].lease_id)) == 2
    assert safe_refs.release([*payloads, *infos]) == 0
    with pytest.raises(TypeError, match="not by int"):
        safe_refs.release(5)  # type: ignore[arg-type] # the point


def test_one_bad_target_among_many_releases_none(registry: str) -> None:
    """`release` of an iterable with a damaged payload in it fails before anything ends."""
    good = safe_refs.dumps(ray.put(1))
    with pytest.raises(safe_refs.EnvelopeError):
        safe_refs.release([good, good[:-5]])
    assert len(safe_refs.leases()) == 1
    assert safe_refs.release(good) == 1

"""Handles that keep no actor alive: an actor's own (`current_actor`), and those that `ray.get_actor` gives.

What a user may rely on: a lease of such a handle holds the actor where Ray can make it so. Elsewhere it is refused, by name and with
what to do; nothing is carried silently. Source of the situation: Ray issues 14899, 45704, 45699, 46333.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import UnsupportedReferenceError
from tests.support.cluster import as_actor
from tests.support.processes import dies, goes_on

ANSWERS_S = 60.0


class Service:
    """Writes itself into a registry, or others that it can find."""

    def pid(self) -> int:
        return os.getpid()

    def publish(self, handles: list[Any] | None = None) -> bytes:
        """A payload of its own handle; `handles` are in its hands meanwhile."""
        return safe_refs.dumps({"service": ray.get_runtime_context().current_actor}, ttl=300)

    def publish_named(self, name: str, handles: list[Any] | None = None) -> bytes:
        """A payload of the handle that a name gives."""
        return safe_refs.dumps({"service": ray.get_actor(name)}, ttl=300)

    def pin_named(self, name: str) -> str:
        return str(safe_refs.pin(ray.get_actor(name), ttl=300))


def service(**options: Any) -> tuple[Any, int]:
    """A new one, and its pid."""
    made = as_actor(Service).options(**options).remote()
    return made, ray.get(made.pid.remote(), timeout=ANSWERS_S)


def said(publish: Callable[[], Any]) -> UnsupportedReferenceError:
    """The error of what is called in an actor."""
    with pytest.raises(UnsupportedReferenceError) as found:
        ray.get(publish(), timeout=ANSWERS_S)
    return found.value


def lives_by_its_lease(payload: bytes, pid: int) -> None:
    """The lease alone keeps the actor alive, and its release ends the actor."""
    gc.collect()
    assert goes_on(pid)
    loaded = safe_refs.loads(payload)["service"]
    assert ray.get(loaded.pid.remote(), timeout=ANSWERS_S) == pid
    del loaded
    assert safe_refs.release(payload) == 1
    gc.collect()
    assert dies(pid)


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_publishes_its_own_handle_is_told_so() -> None:
    """Its creator alone keeps it alive, and nobody can tell the creator of a lease. The error names the actor, and what to do."""
    actor, _ = service()
    error = said(actor.publish.remote)
    assert "Actor(Service, " in str(error)
    assert 'lifetime="detached"' in str(error)
    assert "['service']" in str(error)
    assert safe_refs.leases() == []


@pytest.mark.usefixtures("cluster")
@pytest.mark.long
def test_an_actor_that_has_its_creators_handle_may_publish_its_own() -> None:
    """The creator has passed it the handle as an argument: then Ray learns of the lease, and the actor lives as long as that."""
    actor, pid = service()
    payload = ray.get(actor.publish.remote([actor]), timeout=ANSWERS_S)
    del actor
    lives_by_its_lease(payload, pid)


@pytest.mark.usefixtures("cluster")
def test_a_detached_actor_publishes_itself_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    """It needs nobody, by its own handle or by its name; and it outlives the release."""
    name = f"detached-{uuid.uuid4().hex[:8]}"
    actor, pid = service(name=name, lifetime="detached")
    other, _ = service()
    payloads = ray.get([actor.publish.remote(), other.publish_named.remote(name)], timeout=ANSWERS_S)
    payloads.append(safe_refs.dumps({"service": ray.get_actor(name)}))
    for payload in payloads:
        assert ray.get(safe_refs.loads(payload)["service"].pid.remote(), timeout=ANSWERS_S) == pid
    assert safe_refs.release(payloads) == 3
    assert goes_on(pid)
    assert not recwarn.list
    ray.kill(actor)
    assert dies(pid)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_name_is_enough_for_the_creator_and_for_whom_it_gave_its_handle() -> None:
    """`ray.get_actor` in a process that Ray counts a handle of the actor in: the lease holds the actor."""
    name = f"named-{uuid.uuid4().hex[:8]}"
    actor, pid = service(name=name)
    payload = safe_refs.dumps({"service": ray.get_actor(name)})
    del actor
    lives_by_its_lease(payload, pid)

    name += "-again"
    actor, pid = service(name=name)
    other, _ = service()
    payload = ray.get(other.publish_named.remote(name, [actor]), timeout=ANSWERS_S)
    del actor
    lives_by_its_lease(payload, pid)


@pytest.mark.usefixtures("cluster")
def test_a_name_is_not_enough_for_others() -> None:
    """A lease could not hold the actor, though its creator may keep it alive for long. Whoever is to find it by its name can."""
    name = f"named-{uuid.uuid4().hex[:8]}"
    actor, pid = service(name=name)
    other, _ = service()
    assert "Actor(Service, " in str(said(lambda: other.publish_named.remote(name)))
    assert "ref is Actor(Service, " in str(said(lambda: other.pin_named.remote(name)))
    assert safe_refs.leases() == []
    assert ray.get(actor.pid.remote(), timeout=ANSWERS_S) == pid

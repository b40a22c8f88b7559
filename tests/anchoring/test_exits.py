"""How a process ends, or leaves Ray, that has pinned what it borrowed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray.workers import is_alone
from safe_refs.anchoring import relays
from tests.support.actors import Owner, borrower
from tests.support.cluster import as_actor
from tests.support.processes import Driver, run_python
from tests.support.store import holds
from tests.support.values import VALUE_BYTES, opens
from tests.support.waiting import stays


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param("", id="quiet"),
        pytest.param(
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", marks=pytest.mark.long, id="busy"
        ),
    ],
)
def test_what_a_driver_borrowed_and_pinned_outlives_it(cluster: str, driver: Driver, busy: str) -> None:
    """A driver got a reference in a return value, pins it, and its script comes to its end."""
    owner = as_actor(Owner).options(name="owner", namespace="test").remote()
    ray.get(owner.pid.remote(), timeout=60)
    payload = driver(
        f"""
        import threading
        from tests.support.values import value
        owner = ray.get_actor("owner", namespace="test")
        [ref] = ray.get(owner.give.remote(value(5)))
        {busy}
        print(json.dumps(safe_refs.dumps(ref).hex()))
        """
    )
    stays(lambda: holds(VALUE_BYTES), 3)
    assert opens(bytes.fromhex(payload)) == 5
    safe_refs.release(bytes.fromhex(payload))


@pytest.mark.long
def test_a_driver_that_ends_waits_for_relays_that_are_slow(cluster: str, driver: Driver) -> None:
    """On a busy machine, or a fresh cluster, a relay takes seconds; here those that there are stand still for 4 s of the end."""
    owner = as_actor(Owner).options(name="owner", namespace="test").remote()
    ray.get(owner.pid.remote(), timeout=60)
    slow = [relays.Relays().handle(number) for number in relays.FOR_CLIENTS]
    pids = [pid for _, pid in ray.get([each.where.remote() for each in slow], timeout=60)]
    payload = driver(
        """
        import os, signal, threading
        from tests.support.values import value
        pids = [int(pid) for pid in args]
        owner = ray.get_actor("owner", namespace="test")
        [ref] = ray.get(owner.give.remote(value(5)))
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print(json.dumps(safe_refs.dumps(ref).hex()))
        def go_on():
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        later = threading.Timer(4, go_on)
        later.daemon = True
        later.start()
        """,
        *map(str, pids),
    )
    stays(lambda: holds(VALUE_BYTES), 4)
    assert opens(bytes.fromhex(payload)) == 5
    safe_refs.release(bytes.fromhex(payload))


def test_a_process_with_threads_is_not_alone(cluster: str) -> None:
    """Only threads of Ray's and of safe_refs don't count; and one that isn't the main one is never alone."""

    def look(_: Any) -> list[bool]:
        over = threading.Event()
        seen = [is_alone()]
        for name in ("safe_refs-test", "theirs"):
            over.clear()
            thread = threading.Thread(target=over.wait, name=name)
            thread.start()
            seen.append(is_alone())
            over.set()
            thread.join()
        thread = threading.Thread(target=lambda: seen.append(is_alone()))
        thread.start()
        thread.join()
        return seen

    actor = borrower()
    assert ray.get(actor.__ray_call__.remote(look), timeout=60) == [True, True, False, False]


@pytest.mark.long
def test_a_process_that_leaves_ray_is_left_alone() -> None:
    """A driver that pinned what it borrowed, and shut Ray down, goes on without one: no thread of safe_refs starts another."""
    found = run_python(
        """
        import json, ray, safe_refs
        from tests.support.actors import Owner
        from tests.support.cluster import as_actor
        from tests.support.values import value
        from tests.support.waiting import stays
        options = dict(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
        ray.init("local", logging_level="error", _node_ip_address="127.0.0.1", **options)
        owner = as_actor(Owner).remote()
        for ref in ray.get([owner.give.remote(value(n)) for n in range(10)]):
            safe_refs.dumps(ref[0])
        ray.shutdown()
        stays(lambda: not ray.is_initialized(), 3)
        print(json.dumps(ray.is_initialized()))
        """
    )
    assert found is False

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
from tests.support.leavers import LEAVES
from tests.support.processes import Driver, run_python
from tests.support.shards import place
from tests.support.store import holds
from tests.support.values import VALUE_BYTES, opens, outcome
from tests.support.waiting import stays, wait_until


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
def test_a_driver_that_leaves_ray_hands_over_first(cluster: str, owner: str) -> None:
    """It calls `ray.shutdown`, or leaves the context of `ray.init`, and lives on: what it pinned lives on, too, each time."""
    payloads = run_python(
        LEAVES
        + """
payloads, depends = [], []
for number in range(3):
    with connect() if number == 1 else threading.Lock():
        if number != 1:
            connect()
        actor = ray.get(ray.get_actor(owner, namespace="test").give_counter.remote())[0] if number == 2 else None
        ref = borrow(number)
        payloads.append(safe_refs.dumps([ref, actor]))
        depends += [row.depends_on is not None for row in safe_refs.leases()][-1:]
        if number != 1:
            shutdown()
    assert not ray.is_initialized()
    shutdown()  # once more does nothing, and starts no Ray
    assert not ray.is_initialized()
assert depends == [True] * 3, depends
connect()
assert [outcome(lambda: safe_refs.loads(each)[0]) for each in payloads] == [0, 1, 2]
print(json.dumps([each.hex() for each in payloads]))
""",
        cluster,
        owner,
    )
    stays(lambda: holds(3 * VALUE_BYTES), 3)
    made = [bytes.fromhex(each) for each in payloads]
    assert [outcome(lambda each=each: safe_refs.loads(each)[0]) for each in made] == [0, 1, 2]  # type: ignore[misc] # mypy can't infer a lambda's default
    assert ray.get(safe_refs.loads(made[2])[1].add.remote(), timeout=60) == 1
    safe_refs.release(made)


@pytest.mark.long
def test_a_driver_that_leaves_ray_flushes_first(cluster: str, owner: str) -> None:
    """It pins without waiting what it only borrows, while the registry doesn't answer, and leaves: the registry holds it."""
    safe_refs.init()
    payload, left_s = run_python(
        LEAVES
        + """
connect()
safe_refs.release(safe_refs.dumps(ray.put(0)))  # it knows the registry
ref, pid = borrow(7), int(args[0])
os.kill(pid, signal.SIGSTOP)
later = threading.Timer(1, os.kill, (pid, signal.SIGCONT))
later.start()
payload = safe_refs.dumps(ref, wait=False)
begun = time.monotonic()
shutdown()
print(json.dumps([payload.hex(), time.monotonic() - begun]))
later.join()
""",
        cluster,
        owner,
        str(place("default", 0)[1]),
    )
    assert left_s > 0.5
    stays(lambda: holds(VALUE_BYTES), 3)
    assert opens(bytes.fromhex(payload)) == 7
    safe_refs.release(bytes.fromhex(payload))


@pytest.mark.long
def test_a_driver_leaves_ray_although_the_registry_is_silent(cluster: str, owner: str) -> None:
    """It waits as long as at its end (30 s; here 1 s), and when it ends it doesn't wait once more."""
    safe_refs.init()
    waited_s, again_s = run_python(
        LEAVES
        + """
from safe_refs._ray import exits
from safe_refs.batching import unacknowledged
connect()
safe_refs.release(safe_refs.dumps(ray.put(0)))  # it knows the registry
pid = int(args[0])
unacknowledged._LAST_WAIT_S = 1.0
os.kill(pid, signal.SIGSTOP)
try:
    safe_refs.dumps(ray.put(1), wait=False)
    begun = time.monotonic()
    shutdown()
    left = time.monotonic()
    exits.call_hooks()
    print(json.dumps([left - begun, time.monotonic() - left]))
finally:
    os.kill(pid, signal.SIGCONT)
""",
        cluster,
        owner,
        str(place("default", 0)[1]),
    )
    assert 1.0 <= waited_s < 5
    assert again_s < 0.1
    wait_until(lambda: not safe_refs.leases(sizes=False))


@pytest.mark.long
def test_who_has_nothing_to_hand_over_leaves_at_once(cluster: str, owner: str) -> None:
    """What is done before `ray.shutdown` takes less than 5 ms if no lease depends on the driver, whatever did before."""
    took_s = run_python(
        LEAVES
        + """
from safe_refs._ray import exits
took_s = []
connect()
for ends in (lambda payload: safe_refs.release(payload), lambda payload: None):
    ref = borrow(1)
    ends(safe_refs.dumps(ref, ttl=2))
    shutdown()
    connect()
    made = [safe_refs.dumps(ray.put(1), wait=None if number % 2 else False) for number in range(10)]
    safe_refs.flush()
    begun = time.monotonic()
    exits.call_hooks()
    took_s.append(time.monotonic() - begun)
    safe_refs.release(made)
print(json.dumps(took_s))
""",
        cluster,
        owner,
    )
    assert max(took_s) < 0.005, took_s
    wait_until(lambda: not safe_refs.leases(sizes=False))


@pytest.mark.long
def test_a_process_that_leaves_ray_is_left_alone() -> None:
    """A driver that pinned what it borrowed, and shut Ray down, goes on without one: no thread of safe_refs starts another."""
    found = run_python(
        """
        import json, ray, safe_refs, threading, time
        from safe_refs._ray import exits
        from tests.support.actors import Owner
        from tests.support.cluster import as_actor
        from tests.support.values import value
        from tests.support.waiting import stays, wait_until
        options = dict(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
        ray.init("local", logging_level="error", _node_ip_address="127.0.0.1", **options)
        owner = as_actor(Owner).remote()
        for ref in ray.get([owner.give.remote(value(n)) for n in range(10)]):
            safe_refs.dumps(ref[0])
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        [ref] = ray.get(owner.give.remote(value(10)))
        safe_refs.dumps(ref)
        begun = time.monotonic()
        exits.call_hooks()  # the cluster ends with this driver, and so there is nobody to hand over to
        assert time.monotonic() - begun < 0.05
        ray.shutdown()
        stays(lambda: not ray.is_initialized(), 3)
        print(json.dumps(ray.is_initialized()))
        """
    )
    assert found is False

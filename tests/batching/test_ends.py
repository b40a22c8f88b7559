"""Processes that end, return or fork while pins of theirs are not acknowledged yet."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.batching import unacknowledged
from safe_refs.registry import known
from tests.support.actors import borrower
from tests.support.processes import lives
from tests.support.shards import stopped
from tests.support.store import holds
from tests.support.values import VALUE_BYTES, got, opens, value
from tests.support.waiting import stays, wait_until


@pytest.mark.parametrize("way", ["exit_actor", pytest.param("SIGTERM", marks=pytest.mark.long)])
@pytest.mark.long
def test_an_actor_that_ends_flushes(cluster: str, way: str) -> None:
    """While the registry doesn't answer, it posts, and is told to end: it waits for the registry."""
    safe_refs.init()
    actor = borrower()
    pid = ray.get(actor.set_up.remote({}), timeout=60)
    ray.get(actor.keep.remote([ray.put(value(number)) for number in range(3)]), timeout=60)
    # It knows the registry from before.
    safe_refs.release(ray.get(actor.dumps.remote(), timeout=60))

    def post(self: Any) -> list[bytes]:
        return [safe_refs.dumps(ref, wait=False) for ref in self.refs]

    with stopped("default", 0):
        payloads = ray.get(actor.__ray_call__.remote(post), timeout=60)
        if way == "SIGTERM":
            os.kill(pid, signal.SIGTERM)
        else:
            actor.end.remote()
        stays(lambda: lives(pid), 1)  # it would end, and waits
    wait_until(lambda: len(safe_refs.leases()) == 3)
    stays(lambda: holds(3 * VALUE_BYTES), 3)
    assert [opens(payload) for payload in payloads] == [0, 1, 2]
    safe_refs.release(payloads)


def test_a_task_may_return_what_is_not_held_yet(cluster: str) -> None:
    """Its payload is opened by whoever gets it."""

    @ray.remote(num_cpus=0)
    def make() -> list[bytes]:
        return [safe_refs.dumps(ray.put(number), wait=False) for number in range(50)]

    payloads = ray.get(make.remote(), timeout=60)
    assert [got(safe_refs.loads(payload)) for payload in payloads] == list(range(50))
    assert safe_refs.release(payloads) == 50


def test_a_forked_child_waits_for_none_of_its_parents(cluster: str, gate: threading.Event) -> None:
    """Nor does it know the session, whose threads it doesn't have; and its end doesn't wait for what the parent posted."""
    safe_refs.init()
    payload = safe_refs.dumps(ray.put(1), wait=False)
    pid = os.fork()
    if pid == 0:
        safe_refs.flush(5)
        unacknowledged._flush_at_exit()
        os._exit(0 if not known.sessions and not unacknowledged._of_this_process() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.set()
    safe_refs.flush()
    safe_refs.release(payload)

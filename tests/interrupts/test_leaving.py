"""Leaving a cluster in the middle of everything: `ray.shutdown()` at any moment, in any thread. The storm is in `leaving`."""

from __future__ import annotations

import os

import pytest
import ray

import safe_refs
from safe_refs import payloads
from safe_refs._ray import native, workers
from safe_refs.anchoring.part import Anchoring
from safe_refs.registry.calls import Call
from tests.support.groups import within
from tests.support.processes import Driver
from tests.support.shards import place

from .programs import run

_ROUND_S = 12.0  # at most, on average; usually it takes less than two


@pytest.mark.parametrize(
    "rounds",
    [
        3,
        pytest.param(20, marks=pytest.mark.long),
        pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_random_moments(cluster: str, rounds: int) -> None:
    """Calls of every kind, in threads and tasks, while the driver leaves: no Ray starts, each call ends in time, no thread stays.

    And the next connection works, `flush` too.
    """
    found = run("leaving", cluster, str(rounds), "1", timeout=rounds * _ROUND_S + 120)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert (found["rounds"], found["is_worth"]) == (rounds, True)


@pytest.mark.long
def test_a_cluster_that_ends_with_its_driver(cluster: str) -> None:
    """The driver has started it, as many scripts do: with the connection goes the registry, and all that could answer."""
    found = run("leaving", "local", "3", "1", timeout=160)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert found["is_worth"]


def test_an_owner_that_is_forgotten_while_the_process_leaves(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets all references at some moment of a shutdown; before and after, only one made of a bare id has no owner."""
    unknown: ray.ObjectRef[str] = ray.ObjectRef(os.urandom(28))
    safe_refs.init()
    registry = payloads.client().registry("default")
    for use in (workers.owner_of, lambda ref: registry.ask({0: Call(Anchoring.meet, [ref])}, within(20))):
        with pytest.raises(ValueError, match="owner is unknown"):
            use(unknown)
        with monkeypatch.context() as leaving:
            leaving.setattr(native, "left", native.connected())
            with pytest.raises(safe_refs.RegistryUnavailableError, match="left its Ray cluster"):
                use(unknown)


def test_what_was_going_on_ends_with_one_message(driver: Driver) -> None:
    """A `keepalive` logs one line, and its thread ends, though its block goes on; a scope raises one error at its end."""
    lines, threads, refused = driver(
        """
        import logging, threading
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger("safe_refs").addHandler(handler)
        payloads = [safe_refs.dumps(ray.put(number), ttl=30) for number in range(3)]
        refused = ""
        with safe_refs.keepalive(payloads, ttl=1.0):
            try:
                with safe_refs.scope(ttl=30):
                    for number in range(3):
                        safe_refs.dumps(ray.put(number))
                    time.sleep(0.5)
                    ray.shutdown()
            except safe_refs.RegistryUnavailableError as error:
                refused = str(error)
            until = time.monotonic() + 20
            while any("keepalive" in each.name for each in threading.enumerate()) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(1)
            threads = [each.name for each in threading.enumerate() if "keepalive" in each.name]
        print(json.dumps([lines, threads, refused]))
        """
    )
    assert len(lines) == 1
    assert "has left its Ray cluster, and no longer renews 3 lease(s)" in lines[0]
    assert threads == []
    assert "Ray is not initialized in this process" in refused or "has left its Ray cluster" in refused


def test_who_waits_for_a_value_is_answered(driver: Driver) -> None:
    """It is not there yet, and the driver leaves in another thread: `get` and `await` end soon, where Ray's own never would."""
    found = driver(
        """
        import asyncio, threading
        @ray.remote(num_cpus=0)
        def late():
            time.sleep(60)
        handle, found = safe_refs.pin(late.remote(), ttl=60), {}

        def note(name, call):
            try:
                found[name] = call()
            except BaseException as error:
                found[name] = type(error).__name__
        async def awaits():
            return await handle
        calls = {
            "get": handle.get,
            "get in time": lambda: handle.get(timeout=40),
            "await": lambda: asyncio.run(awaits()),
        }
        threads = [threading.Thread(target=note, args=call, daemon=True) for call in calls.items()]
        for thread in threads:
            thread.start()
        time.sleep(1)
        ray.shutdown()
        begun = time.monotonic()
        for thread in threads:
            thread.join(20)
        print(json.dumps([found, time.monotonic() - begun]))
        """
    )
    assert found[0] == dict.fromkeys(["get", "get in time", "await"], "RegistryUnavailableError")
    assert found[1] < 5


def test_flush_after_pins_that_were_lost(driver: Driver, registry: str) -> None:
    """The registry is silent, and the driver leaves: a `flush` says so once; in the next connection it is about that one's pins."""
    safe_refs.init()
    found = driver(
        """
        import os, signal
        from safe_refs.batching import unacknowledged
        unacknowledged._LAST_WAIT_S = 0.5
        os.environ["SAFE_REFS_REGISTRY"], pid = args[0], int(args[1])
        os.kill(pid, signal.SIGCONT)
        safe_refs.release(safe_refs.dumps(ray.put(0)))
        os.kill(pid, signal.SIGSTOP)
        safe_refs.dumps(ray.put(1), wait=False)
        ray.shutdown()
        said = []
        for _ in range(2):
            try:
                said.append(safe_refs.flush())
            except safe_refs.RegistryUnavailableError as error:
                said.append(str(error)[15:])
        os.kill(pid, signal.SIGCONT)
        ray.init(address=address, log_to_driver=False, logging_level="error")
        payload = safe_refs.dumps(ray.put(2), wait=False)
        safe_refs.flush()
        print(json.dumps([said, safe_refs.release(payload)]))
        """,
        registry,
        str(place(registry, 0)[1]),
    )
    assert found[0][0].startswith("could not be held: the connection to Ray has ended")
    assert found[0][1] is None
    assert found[1] == 1

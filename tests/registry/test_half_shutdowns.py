"""A `shutdown` that comes to no end: it has ended nothing, or everything, and nobody is refused for longer than it had time."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseError, RegistryUnavailableError
from safe_refs.registry.calls import Registry
from tests.support.actors import Process
from tests.support.cluster import as_actor
from tests.support.shards import Start, stopped
from tests.support.waiting import wait_until

TIME_S = 5.0  # of the shutdown
BACK_S = 25.0  # for a registry to start on a busy machine


class Ended(BaseException):
    """As by a signal's handler."""


class Closer(Process):
    """A process that shuts a registry down, and is ended in the middle: after all shards have answered one of its calls."""

    def shut_down(self, registry: str, after: str, how: str) -> None:
        asks = Registry.ask

        def ask(self: Registry, calls: Any, *args: Any, **kwargs: Any) -> Any:
            replies = asks(self, calls, *args, **kwargs)
            if any(call.method == after for call in calls.values()):
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Ended
            return replies

        Registry.ask = ask  # type: ignore[method-assign]
        try:
            safe_refs.shutdown(registry, force=True, timeout=TIME_S)
        except Ended:
            Registry.ask = asks  # type: ignore[method-assign]


def live(payloads: list[bytes]) -> int:
    """How many of these payloads open."""
    found = 0
    for payload in payloads:
        try:
            found += ray.get(safe_refs.loads(payload), timeout=20) == "v"
        except LeaseError:
            continue
    return found


def works_again(begun: float) -> bytes:
    """Somebody else's next payload, which waits for as long as that shutdown had time, at most."""
    payload = safe_refs.dumps(ray.put("v"), timeout=TIME_S + BACK_S)
    assert time.monotonic() - begun < TIME_S + BACK_S
    assert live([payload]) == 1
    return payload


@pytest.mark.parametrize(
    "topology", [(1, 1), *(pytest.param(each, marks=pytest.mark.long) for each in ((2, 1), (2, 2)))]
)
@pytest.mark.parametrize(("after", "left"), [pytest.param("hold_off", 20, marks=pytest.mark.long), ("close", 0)])
@pytest.mark.parametrize("how", ["killed", pytest.param("interrupted", marks=pytest.mark.long)])
def test_one_that_is_ended_half_way(start: Start, topology: tuple[int, int], after: str, left: int, how: str) -> None:
    """Before any shard was told to end its leases, none ends. After that, all have ended, and the registry starts anew."""
    name = start(*topology)
    payloads = safe_refs.dumps_many([ray.put("v") for _ in range(20)])
    closer = as_actor(Closer).remote()
    ray.get(closer.set_up.remote({}), timeout=60)
    begun = time.monotonic()
    closing = closer.shut_down.remote(name, after, how)
    ray.wait([closing], timeout=60)
    assert live(payloads) == left
    if how == "interrupted" and after == "hold_off":
        begun = time.monotonic() - TIME_S  # it takes back at once what it asked for
    works_again(begun)
    assert live(payloads) == left
    assert safe_refs.shutdown() == left + 1


def test_one_that_has_too_little_time(registry: str) -> None:
    """Whatever it gets to within its time, all leases are there afterwards, or none; and others go on."""
    for timeout in (0.001, 0.003, 0.01, 0.03):
        payloads = safe_refs.dumps_many([ray.put("v") for _ in range(50)])
        try:
            safe_refs.shutdown(timeout=timeout)
        except RegistryUnavailableError:
            wait_until(lambda: live([works_again(time.monotonic())]) == 1)
        assert live(payloads) in (0, 50)
        safe_refs.release(payloads)


def test_one_that_a_shard_does_not_answer(start: Start) -> None:
    """It has ended nothing, on no shard; the one that was silent takes leases, too, when it is back."""
    name = start(2, 1)
    payloads = safe_refs.dumps_many([ray.put("v") for _ in range(20)])
    with stopped(name, 1), pytest.raises(RegistryUnavailableError):
        safe_refs.shutdown(timeout=1)
    assert live(payloads) == 20
    begun = time.monotonic()
    later = [works_again(begun) for _ in range(8)]
    assert live(payloads + later) == 28
    assert safe_refs.stats().live_leases == 28  # type: ignore[union-attr] # it runs
    assert safe_refs.shutdown() == 28

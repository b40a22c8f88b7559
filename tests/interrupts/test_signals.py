"""Signals at random moments, threads, and a busy collector. The long form is `make signals SECONDS=…`."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import ray

import safe_refs

from .programs import run


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_random_signals(cluster: str, seconds: int) -> None:
    """Handlers that raise, and handlers and destructors that call safe_refs: nothing hangs, fails, or is left held."""
    found = run("soak", cluster, str(seconds), "1", timeout=seconds + 150)
    assert (found["hung"], found["failed"], found["left"]) == ([], [], 0)
    assert found["is_worth"], found


@pytest.mark.long
def test_a_handler_that_saves_a_checkpoint(cluster: str) -> None:
    """A job on pre-emptible machines writes its state when it is told to, whatever it is in the middle of (CPython issue 121649)."""
    found = run("checkpoint", cluster, "3", timeout=90)
    assert found["failed"] == []
    assert found["slowest_s"] < 3
    assert found["saved"] > 20
    assert found["hung"] == []


@pytest.mark.parametrize("mode", ["destructor", "signal", pytest.param("every allocation", marks=pytest.mark.long)])
def test_what_comes_in_between_releases(cluster: str, mode: str) -> None:
    """A destructor that the collector runs in the middle of a call of the same kind, and a handler of a timer."""
    found = run("between", cluster, mode, "500", timeout=150)
    assert (found["failed"], found["hung"], found["left"]) == ([], [], 0)
    assert found["nested"] > 10
    assert found["slowest_s"] < 3


def test_in_the_middle_of_rays_own_code(cluster: str) -> None:
    """A destructor may run while its thread holds a lock of Ray's, without which no other thread of the process can ask Ray."""
    ref, is_over = ray.put([1]), False

    def work() -> None:
        while not is_over:
            safe_refs.release([safe_refs.dumps(ref), safe_refs.dumps(ref, wait=False)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    slowest_s = 0.0
    try:
        for _ in range(50):
            with ray._private.worker.global_worker.lock:
                begun = time.monotonic()
                for wait in (True, False):
                    payload = safe_refs.dumps([ref], wait=wait)
                    assert safe_refs.loads(payload) == [ref]
                    assert safe_refs.release(payload) == 1
                with contextlib.suppress(safe_refs.RegistryUnavailableError):
                    safe_refs.flush()
                slowest_s = max(slowest_s, time.monotonic() - begun)
            time.sleep(0.001)  # the others go on
    finally:
        is_over = True
        for thread in threads:
            thread.join()
    assert slowest_s < 3
    safe_refs.flush()

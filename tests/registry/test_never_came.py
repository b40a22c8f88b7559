"""A pin that its maker did not wait for, and that never comes: whoever reads the payload learns that it isn't there."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import envelope
from safe_refs.aio import loads as aio_loads
from safe_refs.envelope import Header
from tests.support.shards import stopped


@pytest.fixture
def never(cluster: str) -> bytes:
    """A payload whose pin never comes."""
    real = safe_refs.dumps(ray.put(1))
    address = safe_refs.inspect(real).address
    safe_refs.release(real)
    assert address is not None
    inner = pickle.dumps("opened")
    lost = address._replace(lease=os.urandom(16), soon=True)
    return envelope.wrap(Header(lost, b"tag-tag-", "o", {}, 1.5, len(inner), 0, signed=False), [inner])


def several(data: bytes, timeout: float) -> Any:
    """By eight threads at once, which share calls; the last one's."""
    with ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(safe_refs.loads, data, timeout=timeout) for _ in range(8)]
        errors = [each.exception() for each in loads]
    assert {type(each) for each in errors} == {type(errors[0])}
    assert errors[0] is not None
    raise errors[0]


@pytest.mark.parametrize(
    "loads",
    [safe_refs.loads, several, lambda data, timeout: asyncio.run(aio_loads(data, timeout=timeout))],
    ids=["alone", "threads", "awaited"],
)
def test_a_pin_that_never_came_is_not_found(never: bytes, loads: Callable[..., Any]) -> None:
    """Not "overloaded", however short the timeout is: the registry has answered. And no later than the timeout, and half a second."""
    for timeout in (0.3, 0.5, 1.0, 0.4, 0.35):
        begun = time.monotonic()
        with pytest.raises(safe_refs.LeaseNotFoundError):
            loads(never, timeout=timeout)
        assert time.monotonic() - begun < timeout + 2  # half a second, on a machine that is not busy


def test_a_registry_that_does_not_answer_is_not_an_answer(never: bytes) -> None:
    """Where it has said nothing at all, the error says so."""
    with stopped("default", 0), pytest.raises(safe_refs.RegistryUnavailableError, match="did not answer"):
        safe_refs.loads(never, timeout=0.5)

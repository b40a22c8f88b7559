"""An error that another thread met, and that is raised here: it keeps nothing alive that the callers' frames knew."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseReleasedError
from safe_refs._ray import client, requests
from tests.support.waiting import wait_until


class Known:
    """What a caller's frame knows, for example a reference."""


@pytest.fixture
def no_collections() -> Iterator[None]:
    """The collector, which would find what a cycle keeps alive, doesn't run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fails() -> None:
    raise KeyError("the call's own")


def asks(call: Callable[[], Any], error: type[Exception]) -> weakref.ref[Known]:
    """Call and fail, in a frame that knows something."""
    known = Known()
    with pytest.raises(error):
        call()
    return weakref.ref(known)


@pytest.mark.usefixtures("ray_cluster", "no_collections")
@pytest.mark.parametrize(
    "call",
    [
        lambda: requests.asked(fails, None),
        lambda: requests.asked(fails, None, "shared"),
        lambda: client.in_time(fails, 10),
    ],
    ids=["control service", "shared", "client"],
)
def test_what_the_caller_knew_is_dropped_with_its_frame(call: Callable[[], Any]) -> None:
    """When the error has been handled, without a collection."""
    assert asks(call, KeyError)() is None


@pytest.mark.usefixtures("cluster", "no_collections")
def test_what_a_keepalive_raises_at_its_end_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A lease's end, which its thread has met, and which it goes on telling; or any other error of the last renewal."""
    payload = safe_refs.dumps(ray.put("value"))
    told: list[safe_refs.LeaseError | None] = []

    def ends() -> None:
        with safe_refs.keepalive(payload, ttl=0.3) as kept:
            safe_refs.release(payload)
            wait_until(lambda: kept.error is not None)
            told.append(kept.error)

    assert asks(ends, LeaseReleasedError)() is None
    assert [type(error) for error in told] == [LeaseReleasedError]
    payload = safe_refs.dumps(ray.put("value"))

    def fails_at_last() -> None:
        with pytest.MonkeyPatch.context() as patch, safe_refs.keepalive(payload, ttl=0.3) as kept:
            patch.setattr("safe_refs.asks.renew", lambda *_, **__: fails())
            wait_until(lambda: kept._failure is not None)

    with caplog.at_level(logging.ERROR, "safe_refs"):  # as pytest keeps what is logged
        assert asks(fails_at_last, KeyError)() is None
    safe_refs.release(payload)


@pytest.mark.usefixtures("cluster", "no_collections")
def test_a_refusal_keeps_nothing() -> None:
    """Also one that the registry has sent: by a call alone, and by one for many."""
    payload = safe_refs.dumps(ray.put("value"))
    safe_refs.release(payload)
    assert asks(lambda: safe_refs.loads(payload), LeaseReleasedError)() is None
    assert asks(lambda: safe_refs.loads_many([payload, payload]), LeaseReleasedError)() is None

"""Mistakes with the order of calls, with files and with settings: written by hand, for a user who is connected."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray

import safe_refs
from safe_refs import aio

from .mistakes import Given, Mistake
from .wrong_ends import RELEASED, USED_UP, made


def slow() -> Any:
    """A reference to what takes long; cancel it."""

    def work() -> None:
        time.sleep(30)

    return ray.remote(num_cpus=0)(work).remote()


def _scope_twice(_: Given) -> None:
    scope = safe_refs.scope()
    with scope:
        pass
    with scope:
        pass


def _scope_within_itself(_: Given) -> None:
    with safe_refs.scope() as scope, scope:
        pass


async def _awaits(manager: Awaitable[object]) -> None:
    await manager


async def _scope_twice_awaited() -> None:
    scope = safe_refs.scope()
    async with scope:
        pass
    async with scope:
        pass


def _keep_after_the_end(given: Given) -> None:
    with safe_refs.scope() as scope:
        payload = made(given)
    scope.keep(payload)


def _keep_before(given: Given) -> None:
    safe_refs.scope().keep(given.payload)


def _keepalive_within_itself(given: Given) -> None:
    with safe_refs.keepalive(given.payload, 60) as alive, alive:
        pass


def _consume_twice(_: Given) -> None:
    message = safe_refs.consume(safe_refs.dumps(1))
    with message:
        pass
    with message:
        pass


def _consumed_by_another(given: Given) -> None:
    payload = made(given)
    with safe_refs.consume(payload):
        pass
    with safe_refs.consume(payload):
        pass


def _released_under_keepalive(given: Given) -> None:
    payload = made(given)
    with safe_refs.keepalive(payload, 0.3):
        safe_refs.release(payload)
        time.sleep(0.5)


def _used_twice_in_one_call(given: Given) -> None:
    payload = made(given, uses=1)
    try:
        safe_refs.loads_many([payload, payload])
    finally:
        safe_refs.release(payload)


def _without_init(kind: type) -> Callable[[Given], Any]:
    class Forgetful(kind):  # type: ignore[misc] # the point is what it forgets
        def __init__(self) -> None:
            pass

    return lambda given: Forgetful().dump(given.ref) if kind is safe_refs.Pickler else Forgetful().load()


def _to_file(mode: str, how: str = "dump") -> Callable[[Given], Any]:
    def write(given: Given) -> None:
        with Path(os.devnull).open(mode) as file:
            if how == "dump":
                safe_refs.dump(given.ref, file)
            elif how == "closed":
                file.close()
                safe_refs.dump(given.ref, file)
            else:
                safe_refs.Pickler(file).dump(given.ref)

    return write


def _take_truncated(given: Given) -> Any:
    payload = made(given, uses=1)
    try:
        return safe_refs.load(io.BytesIO(payload[:-1]), take=True)
    finally:
        assert ray.get(safe_refs.loads(payload)[0]) is not None  # neither taken nor used


def _load_from_text(_: Given) -> Any:
    file: Any = io.StringIO("x")
    return safe_refs.load(file)


def _truncated(size: int) -> Callable[[Given], Any]:
    return lambda given: safe_refs.load(io.BytesIO(given.payload[:size]))


def _not_in_time(given: Given) -> Any:
    pending = slow()
    try:
        return safe_refs.dumps(pending, durable=True, timeout=1)
    finally:
        ray.cancel(pending, force=True)


def _no_lease_without_ttl(make: Callable[[Given], Any]) -> Callable[[Given], Any]:
    def do(given: Given) -> Any:
        safe_refs.init(require_ttl=True)
        try:
            result = make(given)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result
        finally:
            safe_refs.init()

    return do


NEEDS_TTL = r"needs a time to live here, as require_ttl says: (give ttl=|renew it for some seconds)"
ORDERS = [
    Mistake("a scope is entered twice", _scope_twice, RuntimeError, r"entered once: call scope\(\) again"),
    Mistake(
        "a scope is entered within itself", _scope_within_itself, RuntimeError, r"entered once: call scope\(\) again"
    ),
    Mistake(
        "a scope is awaited twice",
        lambda _: _scope_twice_awaited(),
        RuntimeError,
        r"entered once: call scope\(\) again",
    ),
    Mistake("keep after the scope's end", _keep_after_the_end, RuntimeError, r"is closed.*: keep them before it ends"),
    Mistake(
        "keep before the scope", _keep_before, RuntimeError, r"not entered yet: .*with safe_refs.scope\(\) as scope"
    ),
    Mistake(
        "keepalive within itself", _keepalive_within_itself, RuntimeError, r"renewing already: call keepalive\(\) again"
    ),
    Mistake("consume is entered twice", _consume_twice, RuntimeError, r"entered once: call consume\(\) again"),
    Mistake("what another has consumed", _consumed_by_another, safe_refs.LeaseReleasedError, RELEASED),
    Mistake(
        "buffers for several",
        lambda given: safe_refs.consume([given.payload], buffers=[]),  # type: ignore[call-overload] # the point
        TypeError,
        r"buffers belong to one payload: consume one at a time",
    ),
    Mistake("released under keepalive", _released_under_keepalive, safe_refs.LeaseReleasedError, RELEASED),
    Mistake("one use, loaded twice in a call", _used_twice_in_one_call, safe_refs.LeaseUsedUpError, USED_UP),
    Mistake(
        "a Pickler without __init__",
        _without_init(safe_refs.Pickler),
        pickle.PicklingError,
        r"Pickler.__init__\(\) was not called",
    ),
    Mistake(
        "an Unpickler without __init__",
        _without_init(safe_refs.Unpickler),
        pickle.UnpicklingError,
        r"Unpickler.__init__\(\) was not called",
    ),
    Mistake("dump into a text file", _to_file("w"), TypeError, r"must be str, not bytes"),
    Mistake("dump into a file opened to read", _to_file("rb"), io.UnsupportedOperation, r"write"),
    Mistake("dump into a closed file", _to_file("wb", "closed"), ValueError, r"closed file"),
    Mistake("a Pickler for a text file", _to_file("w", "Pickler"), TypeError, r"must be str, not bytes"),
    Mistake("load from an empty file", _truncated(0), EOFError, r"Ran out of input"),
    Mistake("load from a file cut in its first bytes", _truncated(10), pickle.UnpicklingError, r"truncated"),
    Mistake("load from a file cut in its header", _truncated(90), pickle.UnpicklingError, r"truncated"),
    Mistake(
        "load from a file that lacks its end",
        _truncated(-1),
        safe_refs.EnvelopeError,
        r"lacks its last bytes; get it again",
    ),
    Mistake("take from a file that lacks its end", _take_truncated, safe_refs.EnvelopeError, r"lacks its last bytes"),
    Mistake("load from a text file", _load_from_text, TypeError, r"bytes"),
    Mistake(
        "durable, not in time",
        _not_in_time,
        safe_refs.RegistryUnavailableError,
        r"(not durable after|not be reached within) 1 s: .*longer time",
    ),
    Mistake(
        "renew a plain pickle",
        lambda _: safe_refs.renew(safe_refs.dumps(1), 60),
        safe_refs.EnvelopeError,
        r"has no lease",
    ),
    Mistake(
        "a consume that is awaited",
        lambda given: _awaits(safe_refs.consume(given.payload)),
        TypeError,
        r"entered, not awaited: async with consume\(",
    ),
    Mistake(
        "a scope that is awaited",
        lambda _: _awaits(safe_refs.scope()),
        TypeError,
        r"entered, not awaited: async with scope\(\)",
    ),
    Mistake(
        "a keepalive that is awaited",
        lambda given: _awaits(safe_refs.keepalive(given.payload, 60)),
        TypeError,
        r"entered, not awaited: async with keepalive\(",
    ),
    Mistake(
        "a pipeline that is awaited",
        lambda _: _awaits(safe_refs.pipeline()),
        TypeError,
        r"entered, not awaited: async with pipeline\(\)",
    ),
    Mistake("dumps without a ttl", _no_lease_without_ttl(made), ValueError, NEEDS_TTL),
    Mistake("pin without a ttl", _no_lease_without_ttl(lambda given: safe_refs.pin(given.ref)), ValueError, NEEDS_TTL),
    Mistake("put without a ttl", _no_lease_without_ttl(lambda _: safe_refs.put(1)), ValueError, NEEDS_TTL),
    Mistake(
        "dumps_many without a ttl",
        _no_lease_without_ttl(lambda given: safe_refs.dumps_many([given.ref])),
        ValueError,
        NEEDS_TTL,
    ),
    Mistake(
        "aio.dumps without a ttl", _no_lease_without_ttl(lambda given: aio.dumps(given.ref)), ValueError, NEEDS_TTL
    ),
    Mistake(
        "dumps with an endless ttl",
        _no_lease_without_ttl(lambda given: made(given, ttl=float("inf"))),
        ValueError,
        NEEDS_TTL,
    ),
    Mistake(
        "renew without end",
        _no_lease_without_ttl(lambda given: safe_refs.renew(given.payload, float("inf"))),
        ValueError,
        NEEDS_TTL,
    ),
]

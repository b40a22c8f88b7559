"""Mistakes with leases that have ended, or aren't here: every way to end, and every use after it, for a user who is connected."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import ray

import safe_refs
from safe_refs import SafeRef, aio, envelope

from .cluster import as_actor
from .mistakes import Given, Mistake
from .waiting import wait_until

RELEASED = r"^lease \w{8} was released at \S+ by .*: a released lease doesn't come back; ask its maker for a new one"
EXPIRED = r"^lease \w{8} expired at .*: give it a longer ttl, or renew it in time"
USED_UP = r"^lease \w{8} was used up at .*: .*make it with more uses"
LOST = r"^lease \w{8} was lost with .*registry 'mistakes'.*: make the payload anew"
ORPHANED = r"^the objects of lease \w{8} died with the process that owned them.*: make the payload with durable=True, .*; an actor"
REJECTED = r"^lease \w{8} was rejected by registry 'mistakes'.*max_leases is 1.*made with wait=True"
UNKNOWN = r"does not know lease \w{8}: .*check that the payload is the one you mean"
STRANGE = r"^lease \w{8} was made in Ray cluster \w{8}, .*: .*connect to that one, or make the payload anew"


def made(given: Given, **terms: Any) -> bytes:
    """A payload of its own."""
    return safe_refs.dumps([given.ref], **terms)


def released(given: Given) -> bytes:
    """A payload that was released."""
    payload = made(given)
    assert safe_refs.release(payload) == 1
    return payload


def taken(given: Given) -> bytes:
    """A payload that was taken."""
    payload = made(given)
    safe_refs.loads(payload, take=True)
    return payload


def scoped(given: Given) -> bytes:
    """A payload whose scope has closed."""
    with safe_refs.scope():
        return made(given)


def expired(given: Given) -> bytes:
    """A payload whose time is over."""
    payload = made(given, ttl=0.05)
    time.sleep(0.1)
    return payload


def used_up(given: Given) -> bytes:
    """A payload that may be loaded once, and was."""
    payload = made(given, uses=1)
    safe_refs.loads(payload)
    return payload


def lost(given: Given) -> bytes:
    """A payload whose registry was shut down."""
    payload = made(given, registry="mistakes")
    assert safe_refs.shutdown("mistakes") == 1
    return payload


def unknown(given: Given) -> bytes:
    """A payload of a lease that the registry never held."""
    lease = safe_refs.inspect(given.payload).address
    assert lease is not None
    found = envelope.find(given.payload)
    strange = found.header._replace(address=lease._replace(lease=os.urandom(16)))
    return envelope.wrap(strange, [found.inner])


class Maker:
    """An actor that owns what it passes on."""

    def make(self) -> bytes:
        """A payload."""
        return safe_refs.dumps([ray.put(1)])


def orphaned(_: Given) -> bytes:
    """A payload whose maker is dead."""
    maker = as_actor(Maker).remote()
    payload: bytes = ray.get(maker.make.remote(), timeout=60)
    ray.kill(maker)
    wait_until(lambda: all(info.source.find("make") < 0 for info in safe_refs.leases()))
    return payload


def rejected(given: Given) -> bytes:
    """A payload that nobody waited for, and for which there was no room."""
    safe_refs.init("mistakes", max_leases=1)
    try:
        made(given)
        payload = made(given, wait=False)
        with contextlib.suppress(safe_refs.RegistryFullError):
            safe_refs.flush()
    finally:
        safe_refs.init()
    return payload


def strange(given: Given) -> bytes:
    """A payload of another cluster."""
    return given.strange


async def awaited(manager: AbstractAsyncContextManager[Any]) -> None:
    """Enter it in an event loop, and leave."""
    async with manager:
        pass


def handle_of(payload: bytes) -> SafeRef[Any]:
    """Its first handle."""
    return safe_refs.inspect(payload).handles[0]


ENDS: dict[Callable[[Given], bytes], tuple[type[BaseException], str]] = {
    released: (safe_refs.LeaseReleasedError, RELEASED),
    taken: (safe_refs.LeaseReleasedError, RELEASED),
    scoped: (safe_refs.LeaseReleasedError, RELEASED),
    expired: (safe_refs.LeaseExpiredError, EXPIRED),
    used_up: (safe_refs.LeaseUsedUpError, USED_UP),
    lost: (safe_refs.LeaseLostError, LOST),
    orphaned: (safe_refs.OwnerGoneError, ORPHANED),
    rejected: (safe_refs.LeaseRejectedError, REJECTED),
    unknown: (safe_refs.LeaseNotFoundError, UNKNOWN),
    strange: (safe_refs.WrongClusterError, STRANGE),
}
USES: dict[str, Callable[[bytes], Any]] = {
    "loads": safe_refs.loads,
    "plain pickle's loads": pickle.loads,
    "loads_many": lambda payload: safe_refs.loads_many([payload]),
    "load": lambda payload: safe_refs.load(io.BytesIO(payload)),
    "take": lambda payload: safe_refs.loads(payload, take=True),
    "aio.loads": aio.loads,
    "aio.loads_many": lambda payload: aio.loads_many([payload]),
    "renew": lambda payload: safe_refs.renew(payload, 60),
    "aio.renew": lambda payload: aio.renew(payload, 60),
    "expires_in_s": safe_refs.expires_in_s,
    "keepalive": lambda payload: safe_refs.keepalive(payload, 60),
    "consume": safe_refs.consume,
    "consume a handle": lambda payload: safe_refs.consume(handle_of(payload)),
    "consume several": lambda payload: safe_refs.consume([payload, safe_refs.dumps(1)]),
    "consume, awaited": lambda payload: awaited(safe_refs.consume(payload)),
    "resolve": lambda payload: handle_of(payload).resolve(),
    "get": lambda payload: handle_of(payload).get(),
    "await handle": lambda payload: aio.get(handle_of(payload)),
    "aio.resolve": lambda payload: aio.resolve(handle_of(payload)),
    "make_durable": lambda payload: handle_of(payload).make_durable(),
}
OF_ANOTHER_CLUSTER: dict[str, Callable[[bytes], Any]] = {
    "release": safe_refs.release,
    "release its text": lambda payload: safe_refs.release(str(handle_of(payload))),
    "release with others": lambda payload: safe_refs.release([payload, payload]),
    "aio.release": aio.release,
    "handle.release": lambda payload: handle_of(payload).release(),
    "the end of with handle": lambda payload: handle_of(payload).__exit__(),
}


def _use(use: Callable[[bytes], Any], payload: bytes, _: Given) -> Any:
    return use(payload)


def after(end: Callable[[Given], bytes], payload: bytes) -> list[Mistake]:
    """To use a payload after its end."""
    error, says = ENDS[end]
    uses = USES | (OF_ANOTHER_CLUSTER if end is strange else {})
    return [
        Mistake(f"{name} of one that is {end.__name__}", partial(_use, use, payload), error, says)
        for name, use in uses.items()
    ]

"""What goes on while `leaving` leaves: a call, or a few, of every kind, in threads and in tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import safe_refs
from safe_refs import aio

TIMEOUT_S = 2.0  # of each call
MOST_CALLS = 4  # that a kind makes, one after the other


class Round(Protocol):
    """References for the calls.

    Attributes:
        own: one that this process owns.
        borrowed: one that another process owns.
    """

    own: Any
    borrowed: Any


def _released(round_: Round) -> None:
    safe_refs.release(safe_refs.dumps(round_.own))


def _loaded(round_: Round) -> None:
    payload = safe_refs.dumps({"ref": round_.own}, ttl=30)
    safe_refs.loads(payload)
    safe_refs.renew(payload, 30)
    safe_refs.loads(payload, take=True)


def _borrowed(round_: Round) -> None:
    safe_refs.release(safe_refs.dumps(round_.borrowed, ttl=30))


def _posted(round_: Round) -> None:
    safe_refs.dumps(round_.own, wait=False, ttl=30)
    time.sleep(0.0005)


def _flushed(round_: Round) -> None:
    safe_refs.dumps([round_.own, round_.borrowed], wait=False, ttl=30)
    safe_refs.flush()


def _piped(round_: Round) -> None:
    with safe_refs.pipeline():
        safe_refs.dumps(round_.own, ttl=30)


def _pinned(round_: Round) -> None:
    handle = safe_refs.pin(round_.own, ttl=30)
    handle.get(timeout=TIMEOUT_S)
    safe_refs.expires_in_s(handle)
    handle.release()


def _put(round_: Round) -> None:
    safe_refs.release(safe_refs.put([1], ttl=30))


def _listed(round_: Round) -> None:
    safe_refs.leases(limit=5)
    safe_refs.stats()


def _scoped(round_: Round) -> None:
    with safe_refs.scope(ttl=30):
        safe_refs.dumps(round_.own)
        safe_refs.pin([round_.own, round_.borrowed])


def _kept(round_: Round) -> None:
    with safe_refs.keepalive(safe_refs.dumps(round_.own, ttl=30), 0.1):
        time.sleep(0.05)


def _consumed(round_: Round) -> None:
    with safe_refs.consume(safe_refs.dumps(round_.own, ttl=30, uses=2)):
        time.sleep(0.005)


def _many(round_: Round) -> None:
    payloads = safe_refs.dumps_many([round_.own] * 20, ttl=30)
    safe_refs.loads_many(payloads)
    safe_refs.release(payloads)


KINDS: dict[str, Callable[[Round], None]] = {
    "release": _released,
    "loads": _loaded,
    "borrowed": _borrowed,
    "wait=False": _posted,
    "flush": _flushed,
    "pipeline": _piped,
    "pin": _pinned,
    "put": _put,
    "leases": _listed,
    "scope": _scoped,
    "keepalive": _kept,
    "consume": _consumed,
    "many": _many,
}


async def _a_released(round_: Round) -> None:
    await aio.release(await aio.dumps([round_.own, round_.borrowed], ttl=30))


async def _a_loaded(round_: Round) -> None:
    payload = await aio.dumps({"ref": round_.own}, ttl=30)
    await aio.loads(payload)
    await aio.renew(payload, 30)
    await aio.loads(payload, take=True)


async def _a_flushed(round_: Round) -> None:
    await aio.dumps(round_.own, wait=False, ttl=30)
    await aio.flush()


async def _a_piped(round_: Round) -> None:
    async with aio.pipeline():
        await aio.dumps(round_.own, ttl=30)


async def _a_pinned(round_: Round) -> None:
    handle = await aio.pin(round_.own, ttl=30)
    await aio.resolve(handle)
    await aio.get(handle)
    await aio.release(handle)


async def _a_put(round_: Round) -> None:
    await aio.release(await aio.put([1], ttl=30))


async def _a_listed(round_: Round) -> None:
    await aio.leases(limit=5)
    await aio.stats()


async def _a_scoped(round_: Round) -> None:
    async with aio.scope(ttl=30):
        await aio.dumps(round_.own)


async def _a_kept(round_: Round) -> None:
    async with aio.keepalive(await aio.dumps(round_.own, ttl=30), 0.1):
        await asyncio.sleep(0.05)


async def _a_consumed(round_: Round) -> None:
    async with aio.consume(await aio.dumps(round_.own, ttl=30, uses=2)):
        await asyncio.sleep(0.005)


async def _a_many(round_: Round) -> None:
    payloads = await aio.dumps_many([round_.own] * 20, ttl=30)
    await aio.loads_many(payloads)
    await aio.release(payloads)


TASKS: dict[str, Callable[[Round], Awaitable[None]]] = {
    "release": _a_released,
    "loads": _a_loaded,
    "flush": _a_flushed,
    "pipeline": _a_piped,
    "pin": _a_pinned,
    "put": _a_put,
    "leases": _a_listed,
    "scope": _a_scoped,
    "keepalive": _a_kept,
    "consume": _a_consumed,
    "many": _a_many,
}

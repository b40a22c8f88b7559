"""How a player calls safe_refs: in place, or awaited (`safe_refs.aio`). The same steps for both; see `player.Role`.

What always holds: what is called in place never suspends, so that `at_once` can run a role's steps without an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import safe_refs
from safe_refs import aio
from safe_refs._ray import objects

T = TypeVar("T")


class InPlace:
    """Calls that block."""

    async def dumps(self, value: Any, **terms: Any) -> bytes:
        return safe_refs.dumps(value, **terms)

    async def loads(self, payload: bytes, *, take: bool) -> Any:
        return safe_refs.loads(payload, take=take)

    async def release(self, payload: bytes) -> int:
        return safe_refs.release(payload)

    async def renew(self, payload: bytes, ttl: float) -> None:
        safe_refs.renew(payload, ttl)

    async def flush(self) -> None:
        safe_refs.flush()

    async def get(self, ref: Any, timeout_s: float) -> Any:
        return objects.get(ref, timeout_s)  # which keeps no reference of a read that failed


class Awaited(InPlace):
    """Calls that an event loop awaits."""

    async def dumps(self, value: Any, **terms: Any) -> bytes:
        return await aio.dumps(value, **terms)

    async def loads(self, payload: bytes, *, take: bool) -> Any:
        return await aio.loads(payload, take=take)

    async def release(self, payload: bytes) -> int:
        return await aio.release(payload)

    async def renew(self, payload: bytes, ttl: float) -> None:
        await aio.renew(payload, ttl)

    async def flush(self) -> None:
        await aio.flush()

    async def get(self, ref: Any, timeout_s: float) -> Any:
        return await asyncio.to_thread(objects.get, ref, timeout_s)


def at_once(steps: Coroutine[Any, Any, T]) -> T:
    """Run steps that never suspend."""
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("steps that were to be taken in place have waited for an event loop")

"""Who plays: a role makes payloads, loads them, reads, forwards and ends them, as it is told, and reports what happened.

It is played by an actor, by an actor with an event loop (`AsyncPlayer`), or by a driver or a Ray Client (`soloist`). It knows nothing
of the ledger. What always holds: an error is reported, never raised; between two orders it holds no references but those that it was
told to keep.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from . import forks, values
from .calls import Awaited, InPlace, at_once
from .orders import Hello, Make, Read, Reply, label
from .values import Stamp

GET_TIMEOUT_S = 45.0  # an object may have to come back from disk, from another node, or be made again by a cold worker


class WrongValueError(Exception):
    """A value isn't the one that was expected."""


def _value(stamp: Stamp, size: int) -> bytes:
    return values.make(stamp, size)


class Echo:
    """An actor that is passed on. It dies with the player that has created it, or when nobody has its handle."""

    def __init__(self, stamp: Stamp) -> None:
        self._value = values.make(stamp, 100)

    def value(self) -> bytes:
        """What tells it from others."""
        return self._value


class Role:
    """What a process of the storm can be told to do; one order at a time.

    Args:
        kind: of process; see `ledger.Process`.
        calls: how it calls safe_refs.

    Attributes:
        plain: held while it calls Ray itself.
        calling: set while it calls safe_refs.
    """

    def __init__(self, kind: str = "actor", calls: InPlace | None = None) -> None:
        self.plain = threading.Lock()
        self.calling = threading.Event()
        self._token = uuid.uuid4().hex
        self._kind = kind
        self._calls = calls or InPlace()
        self._kept: dict[str, list[Any]] = {}
        self._node = str(ray.get_runtime_context().get_node_id())

    async def hello(self) -> Hello:
        """Who this is."""
        return Hello(self._token, self._node, os.getpid(), self._kind)

    async def make(self, order: Make) -> Reply:
        """Make objects, and a payload of them; keep none."""
        reply = Reply(self._token, "put")
        try:
            with self.plain:
                refs = self._objects(order) + self._actors(order)
            terms: dict[str, Any] = {"wait": order.wait} if order.wait is False else {}
            await self._dumps(reply, order.payload, refs, order.ttl, uses=order.uses, durable=order.durable, **terms)
        except Exception as error:
            _note(reply, error)
        return reply

    async def read(self, order: Read) -> Reply:
        """Load a payload, and fetch or keep what it leads to."""
        reply = Reply(self._token, "loads")
        try:
            refs = await self._loads(reply, order)
            if order.get:
                await self._get(reply, refs, order.stamps)
            if order.keep:  # only now: nobody asks for the drop of what could not be read
                self._kept[order.keep] = refs
        except Exception as error:
            _note(reply, error)
        return reply

    async def look(self, keep: str, stamps: Sequence[Stamp]) -> Reply:
        """Fetch the values of live references that were kept."""
        reply = Reply(self._token, "get")
        try:
            await self._get(reply, self._kept[keep], stamps)
        except Exception as error:
            _note(reply, error)
        return reply

    async def drop(self, keep: str) -> Reply:
        """Let go of live references."""
        self._kept.pop(keep, None)
        gc.collect()
        return Reply(self._token)

    async def forward(self, orders: Sequence[Read], number: int, ttl: float | None, durable: bool, wait: bool) -> Reply:
        """Load payloads of others, and make one of all their references: this process borrows them."""
        reply = Reply(self._token, "loads")
        try:
            refs = []
            for place, order in enumerate(orders):
                reply.slot = place
                refs += await self._loads(reply, order)
            terms: dict[str, Any] = {} if wait else {"wait": False}
            await self._dumps(reply, number, refs, ttl, durable=durable, **terms)
        except Exception as error:
            _note(reply, error)
        return reply

    async def release(self, payload: bytes) -> Reply:
        """End a payload's lease."""
        reply = Reply(self._token, "release")
        try:
            with self._called(reply):
                reply.count = await self._calls.release(payload)
        except Exception as error:
            _note(reply, error)
        return reply

    async def renew(self, payload: bytes, ttl: float) -> Reply:
        """Prolong a payload's lease."""
        reply = Reply(self._token, "renew")
        try:
            with self._called(reply):
                await self._calls.renew(payload, ttl)
        except Exception as error:
            _note(reply, error)
        return reply

    async def flush(self) -> Reply:
        """Wait until the registry has acknowledged what was made without waiting."""
        reply = Reply(self._token, "flush")
        try:
            with self._called(reply):
                await self._calls.flush()
        except Exception as error:
            _note(reply, error)
        return reply

    async def fork(self, payload: bytes) -> Reply:
        """Have a forked child do what it can."""
        reply = Reply(self._token, "put")
        try:
            with self.plain:
                ref = ray.put(b"for a child")
                reply.step = "fork"
                forks.try_child(payload, ref)
        except Exception as error:
            _note(reply, error)
        return reply

    # What they make these with is made anew each time: in a Ray Client it is an object of the client's, as long as it is kept.

    def _objects(self, order: Make) -> list[Any]:
        by_task = ray.remote(num_cpus=0.5, max_retries=20, scheduling_strategy="SPREAD")(_value)
        first = order.payload + (1_000_000 if order.swap else 0)
        stamps = [(Stamp(first, slot), size) for slot, size in enumerate(order.sizes)]
        if order.by_task:
            return [by_task.remote(stamp, size) for stamp, size in stamps]
        return [ray.put(values.make(stamp, size)) for stamp, size in stamps]

    def _actors(self, order: Make) -> list[Any]:
        """On this node, as what is put is."""
        if not order.actors:
            return []
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        # It may be that the worker is killed that Ray would make into one; so it is started again.
        options: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3, "scheduling_strategy": here}
        # A little CPU, as Ray starts an actor that needs none wherever it likes.
        echo: Any = ray.remote(num_cpus=0.01, **options)(Echo)
        first = len(order.sizes)
        return [echo.remote(Stamp(order.payload, slot)) for slot in range(first, first + order.actors)]

    async def _dumps(self, reply: Reply, number: int, refs: list[Any], ttl: float | None, **terms: Any) -> None:
        reply.step = "dumps"
        with self._called(reply):
            reply.payload = await self._calls.dumps((number, refs), ttl=ttl, label=label(number), **terms)

    async def _loads(self, reply: Reply, order: Read) -> list[Any]:
        with self._called(reply):
            if order.stall_s:
                time.sleep(order.stall_s)
            number, refs = await self._calls.loads(order.payload, take=order.take)
        if number != order.number or len(refs) != len(order.stamps):
            raise WrongValueError(f"payload {number} of {len(refs)} references in place of {order.number}")
        found: list[Any] = refs
        return found

    async def _get(self, reply: Reply, refs: Sequence[Any], stamps: Sequence[Stamp]) -> None:
        reply.step = "get"
        for slot, (ref, stamp) in enumerate(zip(refs, stamps, strict=True)):
            reply.slot = slot
            begun = time.monotonic()
            try:
                with self.plain:
                    is_actor = type(ref).__name__.endswith("ActorHandle")
                    value = await self._calls.get(ref.value.remote() if is_actor else ref, GET_TIMEOUT_S)
            finally:
                reply.get_s = max(reply.get_s, time.monotonic() - begun)
            wrong = values.complaint(value, stamp)
            if wrong:
                raise WrongValueError(wrong)

    @contextmanager
    def _called(self, reply: Reply) -> Iterator[None]:
        """Around a call to safe_refs."""
        begun = time.monotonic()
        self.calling.set()
        try:
            yield
        finally:
            self.calling.clear()
            reply.call_s = max(reply.call_s, time.monotonic() - begun)


class AsyncPlayer(Role):
    """An actor with an event loop, which calls `safe_refs.aio`."""

    def __init__(self) -> None:
        super().__init__("async", Awaited())


class Player:
    """A process that calls in place: the same orders, without an event loop.

    Args:
        kind: as for `Role`.
    """

    def __init__(self, kind: str = "actor") -> None:
        self.role = Role(kind)

    def hello(self) -> Hello:
        return at_once(self.role.hello())

    def make(self, order: Make) -> Reply:
        return at_once(self.role.make(order))

    def read(self, order: Read) -> Reply:
        return at_once(self.role.read(order))

    def look(self, keep: str, stamps: Sequence[Stamp]) -> Reply:
        return at_once(self.role.look(keep, stamps))

    def drop(self, keep: str) -> Reply:
        return at_once(self.role.drop(keep))

    def forward(self, orders: Sequence[Read], number: int, ttl: float | None, durable: bool, wait: bool) -> Reply:
        return at_once(self.role.forward(orders, number, ttl, durable, wait))

    def release(self, payload: bytes) -> Reply:
        return at_once(self.role.release(payload))

    def renew(self, payload: bytes, ttl: float) -> Reply:
        return at_once(self.role.renew(payload, ttl))

    def flush(self) -> Reply:
        return at_once(self.role.flush())

    def fork(self, payload: bytes) -> Reply:
        return at_once(self.role.fork(payload))


def _note(reply: Reply, error: Exception) -> None:
    reply.error = type(error).__name__
    reply.message = (str(error).strip().splitlines() or [""])[0][:300]

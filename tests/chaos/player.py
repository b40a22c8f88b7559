"""The actor that plays: it makes payloads, loads them, reads, forwards and ends them, as it is told, and reports what happened.

It knows nothing of the ledger. What always holds: an error is reported, never raised; between two orders it holds no references but
those that it was told to keep.
"""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

import safe_refs
from safe_refs._ray import objects

from . import values
from .values import Stamp

NAMESPACE = "chaos"
GET_TIMEOUT_S = 45.0  # an object may have to come back from disk, from another node, or be made again by a cold worker


class Hello(NamedTuple):
    """A player's process: a token of its own, its node, its pid."""

    token: str
    node: str
    pid: int


class Make(NamedTuple):
    """An order for a payload.

    Attributes:
        payload: its number.
        sizes: bytes of each of its objects.
        by_task: let tasks make the values, wherever they run, instead of putting them.
        ttl: seconds, or None.
        uses: how often it may be loaded, or None.
        swap: a planted fault: put another's value.
    """

    payload: int
    sizes: tuple[int, ...]
    by_task: bool = False
    ttl: float | None = None
    uses: int | None = None
    swap: bool = False


class Read(NamedTuple):
    """An order to load a payload.

    Attributes:
        payload: its bytes.
        number: its number.
        stamps: the objects expected in it.
        take: end the lease with it.
        get: fetch the values now.
        keep: keep the live references under this name; empty for none.
        stall_s: a planted fault: loiter before the call.
    """

    payload: bytes
    number: int
    stamps: tuple[Stamp, ...]
    take: bool = False
    get: bool = True
    keep: str = ""
    stall_s: float = 0.0


@dataclass
class Reply:
    """What became of an order.

    Attributes:
        token: of the process that did it.
        step: what it was doing at the end: `dumps`, `loads`, `get`, `release`, `renew`.
        error: class of the error; empty if there was none.
        message: of the error, or what is wrong with a value.
        slot: which object was being read.
        payload: the bytes that were made.
        count: how many leases a release ended.
        call_s: the longest call to safe_refs.
        get_s: the longest `ray.get`.
    """

    token: str
    step: str = ""
    error: str = ""
    message: str = ""
    slot: int = 0
    payload: bytes = b""
    count: int = 0
    call_s: float = 0.0
    get_s: float = 0.0


class WrongValueError(Exception):
    """A value isn't the one that was expected."""


def _value(stamp: Stamp, size: int) -> bytes:
    return values.make(stamp, size)


def label(payload: int) -> str:
    """Label of a payload's lease, by which the ledger finds it in a listing."""
    return f"storm {payload}"


class Player:
    """A process of the storm; one order at a time."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._kept: dict[str, list[Any]] = {}
        self._by_task = ray.remote(num_cpus=0.5, max_retries=20, scheduling_strategy="SPREAD")(_value)

    def hello(self) -> Hello:
        """Who this is."""
        return Hello(self._token, ray.get_runtime_context().get_node_id(), os.getpid())

    def make(self, order: Make) -> Reply:
        """Make objects, and a payload of them; keep none."""
        reply = Reply(self._token, "dumps")
        try:
            refs = []
            for slot, size in enumerate(order.sizes):
                stamp = Stamp(order.payload + (1_000_000 if order.swap else 0), slot)
                refs.append(self._by_task.remote(stamp, size) if order.by_task else ray.put(values.make(stamp, size)))
            self._dumps(reply, order.payload, refs, order.ttl, order.uses)
        except Exception as error:
            _note(reply, error)
        return reply

    def read(self, order: Read) -> Reply:
        """Load a payload, and fetch or keep what it leads to."""
        reply = Reply(self._token, "loads")
        try:
            refs = self._loads(reply, order)
            if order.get:
                self._get(reply, refs, order.stamps)
            if order.keep:  # only now: nobody asks for the drop of what could not be read
                self._kept[order.keep] = refs
        except Exception as error:
            _note(reply, error)
        return reply

    def look(self, keep: str, stamps: Sequence[Stamp]) -> Reply:
        """Fetch the values of live references that were kept."""
        reply = Reply(self._token, "get")
        try:
            self._get(reply, self._kept[keep], stamps)
        except Exception as error:
            _note(reply, error)
        return reply

    def drop(self, keep: str) -> Reply:
        """Let go of live references."""
        self._kept.pop(keep, None)
        gc.collect()
        return Reply(self._token)

    def forward(self, orders: Sequence[Read], number: int, ttl: float | None) -> Reply:
        """Load payloads of others, and make one of all their references: this process borrows them."""
        reply = Reply(self._token, "loads")
        try:
            refs = []
            for place, order in enumerate(orders):
                reply.slot = place
                refs += self._loads(reply, order)
            reply.step = "dumps"
            self._dumps(reply, number, refs, ttl, None)
        except Exception as error:
            _note(reply, error)
        return reply

    def release(self, payload: bytes) -> Reply:
        """End a payload's lease."""
        reply = Reply(self._token, "release")
        begun = time.monotonic()
        try:
            reply.count = safe_refs.release(payload)
            reply.call_s = time.monotonic() - begun
        except Exception as error:
            _note(reply, error, time.monotonic() - begun)
        return reply

    def renew(self, payload: bytes, ttl: float) -> Reply:
        """Prolong a payload's lease."""
        reply = Reply(self._token, "renew")
        begun = time.monotonic()
        try:
            safe_refs.renew(payload, ttl)
            reply.call_s = time.monotonic() - begun
        except Exception as error:
            _note(reply, error, time.monotonic() - begun)
        return reply

    def _dumps(self, reply: Reply, number: int, refs: list[Any], ttl: float | None, uses: int | None) -> None:
        begun = time.monotonic()
        try:
            reply.payload = safe_refs.dumps((number, refs), ttl=ttl, uses=uses, label=label(number))
        finally:
            reply.call_s = max(reply.call_s, time.monotonic() - begun)

    def _loads(self, reply: Reply, order: Read) -> list[Any]:
        begun = time.monotonic()
        try:
            if order.stall_s:
                time.sleep(order.stall_s)
            number, refs = safe_refs.loads(order.payload, take=order.take)
        finally:
            reply.call_s = max(reply.call_s, time.monotonic() - begun)
        if number != order.number or len(refs) != len(order.stamps):
            raise WrongValueError(f"payload {number} of {len(refs)} references in place of {order.number}")
        found: list[Any] = refs
        return found

    def _get(self, reply: Reply, refs: Sequence[Any], stamps: Sequence[Stamp]) -> None:
        reply.step = "get"
        for slot, (ref, stamp) in enumerate(zip(refs, stamps, strict=True)):
            reply.slot = slot
            begun = time.monotonic()
            try:
                value = objects.get(ref, GET_TIMEOUT_S)  # which keeps no reference of a read that failed
            finally:
                reply.get_s = max(reply.get_s, time.monotonic() - begun)
            wrong = values.complaint(value, stamp)
            if wrong:
                raise WrongValueError(wrong)


def _note(reply: Reply, error: Exception, call_s: float = 0.0) -> None:
    reply.error = type(error).__name__
    reply.message = (str(error).strip().splitlines() or [""])[0][:300]
    reply.call_s = max(reply.call_s, call_s)

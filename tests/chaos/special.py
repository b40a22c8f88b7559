"""Stories of payloads that are special: durable ones, those that their makers don't wait for, and those of actors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from .ledger import Payload
from .stage import Kept, Stage
from .troupe import Seat

_BOUND_S = 25.0  # as for the others; it is also how long may be left what a killed maker has made


class Teller(Protocol):
    """Who tells stories; see `stories.Stories`."""

    @property
    def stage(self) -> Stage: ...
    @property
    def source(self) -> random.Random: ...

    def read(self, payload: Payload, *, keep: bool = False, get: bool = True, take: bool = False) -> Kept | None: ...
    def release(self, payload: Payload) -> None: ...
    def sleep(self, least: float, most: float) -> None: ...
    def kill(self, seat: Seat) -> None: ...


def _durable(teller: Teller) -> None:
    """The registry copies the objects; their owner may die as soon as it has."""
    sizes = [teller.source.choice((2_000, 150_000, 400_000)) for _ in range(teller.source.randint(1, 2))]
    by_task = teller.source.random() < 0.3
    with teller.stage.seat(teller.source) as seat:
        payload = teller.stage.make(seat, sizes, by_task=by_task, ttl=_BOUND_S, durable=True)
        if payload is not None and teller.source.random() < 0.4:
            teller.kill(seat)
    if payload is not None:
        _used(teller, payload)


def _unacknowledged(teller: Teller) -> None:
    """Read as soon as it is made; its maker makes sure that it is held, or dies, or goes on."""
    with teller.stage.seat(teller.source) as seat:
        payload = teller.stage.make(seat, [teller.source.choice((2_000, 400_000))], ttl=_BOUND_S, wait=False)
        if payload is None:
            return
        next_ = teller.source.random()
        if next_ < 0.2:
            teller.kill(seat)
        elif next_ < 0.6:
            teller.stage.flush(seat, payload)
    _used(teller, payload)


def _of_actors(teller: Teller) -> None:
    """The actor lives as long as a lease or a live handle refers to it, and its creator."""
    sizes = [2_000] * teller.source.randint(0, 1)
    with teller.stage.seat(teller.source) as seat:
        payload = teller.stage.make(seat, sizes, actors=teller.source.randint(1, 2), ttl=_BOUND_S)
    if payload is not None:
        teller.sleep(0, 2)
        _used(teller, payload)


def _used(teller: Teller, payload: Payload) -> None:
    """Read by several, released; a live reference outlives the lease; who comes late is told so."""
    kept = teller.read(payload, keep=True, get=teller.source.random() < 0.5)
    teller.sleep(0, 3)
    teller.read(payload)
    teller.release(payload)
    teller.read(payload)
    teller.sleep(0, 3)
    if kept is not None:
        teller.stage.look(kept)
        teller.stage.drop(kept)


STORIES: dict[str, Callable[[Teller], None]] = {
    "durable": _durable,
    "unacknowledged": _unacknowledged,
    "of actors": _of_actors,
}

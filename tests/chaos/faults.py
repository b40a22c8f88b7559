"""Faults that are planted on purpose, behind the ledger's back: each must show up in its figure, or the storm proves nothing."""

from __future__ import annotations

import contextlib
import random
import time

from .ledger import Payload, Span
from .stage import Stage

_MOURNS_S = 5.0  # Ray takes some seconds to delete the objects of a dead owner


def plant(figure: str, stage: Stage, source: random.Random) -> None:
    """Plant the fault that counts for a figure. A player that dies meanwhile spoils it, so it is tried again."""
    for _ in range(5):
        with contextlib.suppress(_SpoiltError):
            _PLANTS[figure](stage, source)
            return


class _SpoiltError(Exception):
    """A player died just now."""


def _payload(stage: Stage, source: random.Random, *, swap: bool = False) -> Payload:
    with stage.seat(source) as seat:
        made = stage.make(seat, [200_000], ttl=None, swap=swap)
    if made is None:
        raise _SpoiltError
    return made


def _read(stage: Stage, source: random.Random, payload: Payload, stall_s: float = 0.0) -> None:
    with stage.seat(source) as seat:
        reply, _ = stage.read(seat, payload, stall_s=stall_s)
    if reply is None or payload.maker.dying_at < time.monotonic():
        raise _SpoiltError


def _ends_behind_its_back(stage: Stage, source: random.Random) -> None:
    """A registry that releases too early."""
    payload = _payload(stage, source)
    with stage.seat(source) as seat:
        if seat.ask("release", payload.data) is None:
            raise _SpoiltError
    _read(stage, source, payload)


def _never_ends(stage: Stage, source: random.Random) -> None:
    """Somebody who says that it has released, and hasn't."""
    payload = _payload(stage, source)
    now = time.monotonic()
    payload.releases.append(Span(now, now))
    time.sleep(0.1)
    _read(stage, source, payload)
    with stage.seat(source) as seat:
        seat.ask("release", payload.data)


def _swaps(stage: Stage, source: random.Random) -> None:
    """Another's object."""
    payload = _payload(stage, source, swap=True)
    _read(stage, source, payload)
    with stage.seat(source) as seat:
        stage.release(seat, payload)


def _loiters(stage: Stage, source: random.Random) -> None:
    """A call that takes longer than its timeout."""
    payload = _payload(stage, source)
    _read(stage, source, payload, stall_s=45.0)
    with stage.seat(source) as seat:
        stage.release(seat, payload)


def _loses(stage: Stage, source: random.Random) -> None:
    """A live reference to an object that dies: the ledger is not told that the owner was killed."""
    with stage.seat(source) as owner:
        made = stage.make(owner, [200_000], ttl=30.0)
        if made is None:
            raise _SpoiltError
        with stage.seat(source) as reader:
            kept = stage.read(reader, made, get=False, keep=True)[1]
        made.maker.doomed = True
        owner.kill_by_ray()
        owner.arrive(10.0)
    time.sleep(_MOURNS_S)
    if kept is None:
        raise _SpoiltError
    stage.look(kept)
    stage.drop(kept)


_PLANTS = {"lost": _loses, "early": _ends_behind_its_back, "leaked": _never_ends, "hung": _loiters, "wrong": _swaps}

"""What the killer is to do, and when: drawn in advance from the seed. Pure.

What always holds: the same seed and length give the same plan; every kind of failure comes up once before any comes up again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

# Whom or what it strikes: a worker that runs tasks; a player, which owns or borrows objects; a job's driver, and so all of its
# processes; a shard; a node with all that is on it. Pauses stop a process and let it go on. `fill` makes more objects than the store
# has room for. A process that calls `ray.shutdown()` leaves; Ray's control service stalls; a
# `shutdown` of the registry is not carried through; and a node that has come for it is squeezed: its memory is short.
KINDS = (
    *("worker", "player", "shard", "pause player", "fill", "job", "shard", "pause shard", "node", "player"),
    *("leave", "stall", "half shutdown", "leave", "squeeze"),
)
FIRST_S = 3.0
_GAPS_S = (2.0, 5.0)
_PAUSES_S = (1.0, 3.0)


class Action(NamedTuple):
    """One thing that the killer does.

    Attributes:
        at_s: not before this time, from the storm's start; later if the registry hasn't recovered from the last.
        kind: one of `KINDS`.
        draw: from 0 to 1, decides who of those that may be hit is hit.
        seconds: how long a pause lasts, or a node stays away.
        hard: SIGKILL without any warning; otherwise the way that Ray offers (`ray.kill`, a node that ends in order).
    """

    at_s: float
    kind: str
    draw: float
    seconds: float
    hard: bool


def draw_plan(seed: int, seconds: float, kinds: Sequence[str] = KINDS) -> list[Action]:
    """The plan for a storm of so many seconds."""
    source = random.Random(f"plan {seed}")
    actions: list[Action] = []
    deck: list[str] = []
    at_s = FIRST_S
    while at_s < seconds:
        if not deck:
            deck = list(kinds)
            source.shuffle(deck)
        actions.append(
            Action(
                round(at_s, 2),
                deck.pop(),
                source.random(),
                round(source.uniform(*_PAUSES_S), 2),
                source.random() < 0.6,
            )
        )
        at_s += source.uniform(*_GAPS_S)
    return actions

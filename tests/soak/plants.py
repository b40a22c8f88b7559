"""Leaks that are planted on our side, to see them found: each grows with what is done."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from safe_refs._ray.cluster import NAMESPACE
from safe_refs.registry.shard import actor_name

_BYTES = 200_000
_SLOWER_S = 200e-6
_LEFT = 3  # threads and files, each time


def _in_shard(what: tuple[str, ...], shard: Any) -> None:
    """A shard that keeps something of each lease that has ended, and that takes longer for each."""
    original, kept, ends = shard.parts.ended, [], [0]

    def ended(lease: bytes, items: Any) -> None:
        ends[0] += 1
        if "memory" in what:
            kept.append(b"\1" * _BYTES)
        if "latency" in what:
            time.sleep(ends[0] * _SLOWER_S)
        original(lease, items)

    shard.parts.ended = ended


def _in_borrower(what: tuple[str, ...], borrower: Any) -> None:
    """A borrower that leaves a thread or an open file behind, each time."""
    files: list[int] = []

    def besides() -> None:
        for _ in range(_LEFT):
            if "threads" in what:
                threading.Thread(target=partial(time.sleep, 7200), name="planted", daemon=True).start()
            if "files" in what:
                files.append(os.open("/dev/null", os.O_RDONLY))

    borrower.besides = besides


PLANTS: dict[str, Callable[[tuple[str, ...], Any], None]] = {
    "memory": _in_shard,
    "latency": _in_shard,
    "threads": _in_borrower,
    "files": _in_borrower,
}


def plant(what: tuple[str, ...], registry: str, borrower: Any) -> None:
    """Plant these."""
    for way, actor in (
        (_in_shard, ray.get_actor(actor_name(registry), namespace=NAMESPACE)),
        (_in_borrower, borrower),
    ):
        mine = tuple(each for each in what if PLANTS[each] is way)
        if mine:
            ray.get(actor.__ray_call__.remote(partial(way, mine)), timeout=60)

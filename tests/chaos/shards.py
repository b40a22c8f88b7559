"""The registry's shards, as the killer sees them: where each is, and when the registry has recovered from what was done to one."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import safe_refs
from safe_refs.registry.shard import actor_name

_ANSWER_S = 5.0
_POLL_S = 0.05


class Place(NamedTuple):
    """Where a shard runs."""

    node: str
    pid: int


class Shards:
    """All shards of the registry.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def places(self) -> dict[int, Place]:
        """Where each shard is that answers."""
        import ray

        found = {}
        for shard in range(self.count):
            try:
                found[shard] = Place(*ray.get(self.handle(shard).where.remote(), timeout=_ANSWER_S))
            except (ValueError, ray.exceptions.RayError):
                continue
        return found

    def handle(self, shard: int) -> Any:
        """A shard's actor.

        Raises:
            ValueError: there is none.
        """
        import ray

        return ray.get_actor(actor_name("default", shard), namespace="safe_refs")

    def recovered(self, before: dict[int, Place], killed: set[int], timeout_s: float) -> bool:
        """Wait until the shards that were killed run as other processes, and the registry says that all is as it was."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            now = self.places()
            if len(now) == self.count and all(now[shard] != before[shard] for shard in killed) and self.all_well():
                return True
            time.sleep(_POLL_S)
        return False

    def all_well(self) -> bool:
        """Whether the registry says that no shard is down or recovering."""
        try:
            figures = safe_refs.stats(timeout=_ANSWER_S)
        except safe_refs.SafeRefsError:
            return False
        return figures is not None and figures.recovering == 0

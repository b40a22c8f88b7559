"""The part of a shard that asks the owners of what it holds: whether they live, how large the objects are, who they know.

What always holds: one call an owner, never one for several (see `_ray.objects`); an owner that does not respond holds up the others
for a second at most, and then for a tenth; only what Ray's control service says is dead counts as dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._ray import actors, counts, objects, workers
from .hooks import Loop, ShardPart
from .leases import LeaseTable

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_TIMEOUT_S = 1.0  # what is asked about is held as long as the question takes
_AGAIN_TIMEOUT_S = 0.1
_LONGEST_PAUSE_S = 3600.0  # far longer waits overflow
_FORGET_PAUSE_S = 0.02
_DEAD_AFTER_S = 1.0  # owners that do not ask about what the closing shard held are looked at once, after so long


class Owners(ShardPart):
    """The owners of what a shard holds.

    Args:
        table: what it holds.
        lock: guards the table.
        using: held while this has references in its hands, so that others may know that nobody has. Taken before the lock.
        died: called with each owner that is found dead, before its leases end.
    """

    def __init__(
        self,
        table: LeaseTable[Ref],
        lock: threading.Lock,
        using: threading.Lock,
        died: Callable[[bytes], None],
    ) -> None:
        self._table = table
        self._lock = lock
        self._using = using
        self._died = died
        self._silent: set[bytes] = (
            set()
        )  # owners that did not respond to the last question; of those that the table knows
        self._wake = threading.Event()

    def limits_changed(self) -> None:
        """Look soon, as how often to look is one of the limits."""
        self._wake.set()

    def threads(self) -> Sequence[Loop]:
        """The owners' thread: ends leases all of whose owners are dead, and weighs what could not be weighed before."""
        return (Loop("owners", self._watch),)

    def _watch(self) -> None:
        while True:
            self._wake.wait(min(self._table.usage.limits.sweep_s, _LONGEST_PAUSE_S))
            self._wake.clear()
            self.sweep()

    def sweep(self) -> None:
        """One look at all owners."""
        # Silence may be the network's, or that of a process that was stopped for a while.
        for owner in self._ask():
            if workers.is_surely_dead(owner):
                self._died(owner)
                with self._lock:
                    ended = self._table.bury(owner)
                if ended:
                    logger.info("%d lease(s) ended, as the process that owned their objects is dead", ended)
        with self._lock:
            self._table.expire(0)  # forgets tombstones that are old enough
        self._weigh_late()

    def weigh(self, refs: Sequence[Ref]) -> dict[Ref, int]:
        """Sizes of objects, as far as their owners answer in time. An owner that did not respond lately is not asked."""
        asked = [ref for ref in refs if not self._silent or workers.owner_of(ref) not in self._silent]
        return objects.sizes(asked, _PROBE_TIMEOUT_S)

    def known_to(self) -> dict[bytes, bytes]:
        """By the id of each object that is held, its owner, if it has one (a detached actor has none). Under the lock."""
        return {actors.id_of(ref): owner for ref in self._table.items() if (owner := workers.owner_of(ref))}

    def wait_until_forgotten(self, owners: dict[bytes, bytes], timeout_s: float) -> None:
        """Wait until Ray knows nothing here of objects any more (see `known_to`): by then their owners know who else holds them."""
        ids, deadline = list(owners), time.monotonic() + timeout_s
        looks_at = time.monotonic() + _DEAD_AFTER_S
        while (ids := counts.counted(ids)) and time.monotonic() < deadline:
            time.sleep(_FORGET_PAUSE_S)
            if time.monotonic() > looks_at:
                looks_at = deadline  # once: the dead don't ask who holds what they owned
                dead = {owner for owner in {owners[id_] for id_ in ids} if workers.is_surely_dead(owner)}
                ids = [id_ for id_ in ids if owners[id_] not in dead]

    def _weigh_late(self) -> None:
        """Weigh the results of tasks that were still at work when they were pinned."""
        with self._using:
            with self._lock:
                unweighed = self._table.usage.unweighed()
            if unweighed:
                sizes = self.weigh(unweighed)
                with self._lock:
                    self._table.usage.learn({ref: size for ref, size in sizes.items() if ref in self._table.usage})
                del sizes
            del unweighed

    def _ask(self) -> set[bytes]:
        """Ask each owner about one of its objects; those that could not be asked."""
        with self._lock:
            owners = self._table.owners.living()
        unreachable: set[bytes] = set()
        silent: set[bytes] = set()
        for owner in owners:
            patience = _AGAIN_TIMEOUT_S if owner in self._silent else _PROBE_TIMEOUT_S
            with self._using:
                with self._lock:
                    sample = self._table.sample(owner)
                try:
                    if sample is not None and not objects.owner_answers(sample, patience):
                        unreachable.add(owner)
                except TimeoutError:
                    silent.add(owner)
                del sample
        self._silent = silent
        return unreachable

"""What a round has found for its leases: which are anchored, which are tried again, which are lost with the process that pinned them.

What always holds: a lease is lost only if the process that it depended on is dead, and the owners, who do respond, don't know this
shard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._ray import actors, counts, objects, workers
from .._ray.counts import Touch
from .unanchored import Unanchored

if TYPE_CHECKING:
    import ray

    from ..registry.leases import LeaseTable
    from ..registry.records import Origin

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_OWNER_ANSWERS_S = 1.0
_ACTORS_TRIES = 10


class Outcomes:
    """How the outcome of a round is noted, by the rounds' thread.

    Args:
        table: what the shard holds.
        unanchored: what is to be anchored.
        lock: guards both.
        using: held while this has references in its hands. Taken before the lock.
    """

    def __init__(
        self, table: LeaseTable[Ref], unanchored: Unanchored, lock: threading.Lock, using: threading.Lock
    ) -> None:
        self._table = table
        self._unanchored = unanchored
        self._lock = lock
        self._using = using

    def note(
        self,
        leases: dict[bytes, int],
        touched: Mapping[bytes, Touch],
        unconfirmed: Collection[bytes],
        unopened: Collection[bytes],
    ) -> None:
        """Note what a round has found, and strike those leases off; those that it didn't get to are due again.

        Args:
            leases: the round's, with their marks; those that are noted go from it.
            touched: by object what came of it.
            unconfirmed: objects whose owners may not know yet that this shard has them.
            unopened: actors whose handles no process can open any more.
        """
        gone = self._gone(leases, touched).union(unopened)
        self._put_off_verdicts(leases)
        lost = 0
        with self._lock:
            while leases:
                lease, marks = leases.popitem()
                wanted = self._unanchored.wanted(lease, marks)
                all_ids = map(actors.id_of, counts.touchable(self._table.items_of(lease)))
                ids = [id_ for id_ in all_ids if wanted is None or id_ in wanted]
                # To a dead owner there is nothing to report. A lease that holds objects of others, too, lives for those.
                found = {touched.get(id_, Touch.BUSY) for id_ in ids if id_ not in gone}
                worst = next((state for state in (Touch.UNKNOWN, Touch.BUSY) if state in found), Touch.REPORTED)
                from_shard, held = self._unanchored.is_from_shard(lease), self._table.find(lease)
                confirmed = not any(id_ in unconfirmed for id_ in ids)
                if self._unanchored.outcome(lease, marks, worst, confirmed=confirmed):
                    self._table.lose(lease, _why_lost(None if from_shard or held is None else held.origin))
                    lost += 1
        if lost:
            logger.warning(
                "%d lease(s) are lost with the processes that pinned them, as these only borrowed the references", lost
            )

    def _gone(self, leases: Iterable[bytes], touched: Mapping[bytes, Touch]) -> set[bytes]:
        """Of the objects whose owners don't know this shard, those whose owners are dead."""
        unknown = {id_ for id_, state in touched.items() if state is Touch.UNKNOWN}
        if not unknown:
            return set()
        with self._using:
            with self._lock:
                held = [ref for lease in leases for ref in counts.touchable(self._table.items_of(lease))]
                refs = [ref for ref in held if actors.id_of(ref) in unknown]
                held.clear()
            owners = {actors.id_of(ref): workers.owner_of(ref) for ref in refs}
            refs.clear()
        dead = {owner for owner in set(owners.values()) if workers.is_surely_dead(owner)}
        return {id_ for id_, owner in owners.items() if owner in dead}

    def _put_off_verdicts(self, leases: Iterable[bytes]) -> None:
        """An owner that was stopped, or is very busy, may not have processed a dead process's last report. So the verdict waits."""
        with self._lock:
            due = [lease for lease in leases if self._unanchored.is_verdict_due(lease)]
        for lease in due:
            with self._using:
                with self._lock:
                    items = counts.touchable(self._table.items_of(lease))
                    samples = {workers.owner_of(ref): ref for ref in items}
                    if actors.only_actors(items) and self._unanchored.tries(lease) < _ACTORS_TRIES:
                        self._unanchored.put_off_verdict(lease)  # it may only have been in the hands of a call
                    items.clear()
                try:
                    for ref in samples.values():
                        objects.owner_answers(ref, _OWNER_ANSWERS_S)
                except TimeoutError:
                    with self._lock:
                        self._unanchored.put_off_verdict(lease)
                ref = None  # a loop's variable is a reference, too
                samples.clear()


def _why_lost(maker: Origin | None) -> str:
    """Why a lease is lost that depended on its maker, or (None) on the shard that this one had it from; and what to do."""
    if maker is None:
        return "it depended on the shard that had passed it on to another, which is dead; make the payload anew"
    return (
        f"it depended on {maker.process}, which is dead and had only borrowed the references; make the payload anew, in a process "
        "that owns the objects or has no other threads"
    )

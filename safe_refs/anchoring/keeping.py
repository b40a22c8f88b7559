"""References that this process keeps for a second, because the registry had let go of the same objects just before (`let_go`).

    dumps            the registry holds the lease, and is unsure whether the owners will know it, in the end
    [a second]       this process keeps the references: for their owners, they are in use here
    bring            it brings them to the registry once more. By now the report that it let go has arrived, so that the owners hear
                     of the registry anew
    let go

So a `dumps` need not wait. What the process owns dies with it in any case; what it borrows depends on it, as always where it could
not be anchored at once (`borrower`).

It is kept also if the lease is released meanwhile: who has resolved it is known to the owner through the registry only.

What always holds: what is kept is that of the unsure pins of the last second. Time is counted in ticks: a process that was stopped
has not waited. No reference is dropped while counts are touched (`still`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..threads import QueueThread
from .holders import Holders, is_current

if TYPE_CHECKING:
    import ray

    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_TICK_S = 0.2
TICKS = 5
_IDLE_S = 5.0  # then the thread ends


class Kept(NamedTuple):
    """What is kept for a lease: the name of its registry, and the references."""

    registry: str
    refs: Sequence[Ref]


class Keeping:
    """What a session keeps.

    Args:
        session: whose it is.
        holders: how to ask shards.

    Attributes:
        still: whoever has it may touch counts (`_ray.counts`), as no reference is dropped here. A signal's handler may have it twice.
    """

    def __init__(self, session: Session, holders: Holders) -> None:
        self._session = session
        self._holders = holders
        self.still = threading.RLock()
        # By lease, what is kept, and how many ticks still. Each step on them is atomic, and only the thread drops what is there.
        self._kept: dict[bytes, Kept] = {}
        self._ticks: dict[bytes, int] = {}
        self._pid = os.getpid()
        self._thread: QueueThread[bool] = QueueThread("safe_refs-keeping", self._serve, _IDLE_S)
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, registry: str, lease: bytes, refs: Sequence[Ref]) -> None:
        """Keep what a new lease holds."""
        if not self._is_closed:
            self._kept[lease] = Kept(registry, refs)
            self._ticks[lease] = TICKS
            if not self._thread.put(True):
                self._bring([lease])  # the machine has no more threads, or Python is coming to its end

    def close(self) -> None:
        """The connection is about to go, so let go. A forked child must not."""
        self._is_closed = True
        if self._pid == os.getpid():
            self._kept.clear()

    def _serve(self, _: bool) -> None:
        while self._ticks and not self._is_closed:
            self._thread.taken()
            time.sleep(_TICK_S)
            for lease in list(self._ticks):
                self._ticks[lease] -= 1
            self._bring([lease for lease, left in list(self._ticks.items()) if left <= 0])

    def _bring(self, leases: list[bytes]) -> None:
        """Bring what is kept for these to the registry once more, and let go of it."""
        by_registry: dict[str, dict[bytes, Sequence[Ref]]] = {}
        try:
            if leases and is_current(self._session):
                self._gather(leases, by_registry)
                for registry in by_registry:
                    self._holders.bring(registry, by_registry[registry])
        except Exception:
            logger.debug("could not bring references to the registry once more", exc_info=True)  # Ray is gone from it
        finally:
            with self.still:  # here the last references go; no variable of this thread has any
                by_registry.clear()
                for lease in leases:
                    self._kept.pop(lease, None)
                    self._ticks.pop(lease, None)

    def _gather(self, leases: list[bytes], by_registry: dict[str, dict[bytes, Sequence[Ref]]]) -> None:
        for lease in leases:
            kept = self._kept.get(lease)
            if kept is not None:  # None: closed meanwhile
                by_registry.setdefault(kept.registry, {})[lease] = kept.refs

"""The part of a shard that ends leases when their ttl runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from .hooks import Began, Loop, ShardPart
from .leases import LeaseTable

_EXPIRED_AT_ONCE = 100  # leases; about a millisecond, so that calls come in between
_BREATH_S = 0.001
_LONGEST_PAUSE_S = 3600.0  # far longer waits overflow


class Clock(ShardPart):
    """Ends leases by time.

    Args:
        table: the leases.
        lock: guards the table.
    """

    def __init__(self, table: LeaseTable[Any], lock: threading.Lock) -> None:
        self._table = table
        self._lock = lock
        self._wake = threading.Event()

    def pinned(self, lease: bytes, began: Began) -> None:
        """A new lease may be the next to expire."""
        held = self._table.live.get(lease)
        if held is not None and held.expires_at is not None:
            self._wake.set()

    def changed(self, leases: Sequence[bytes]) -> None:
        """So may one that was renewed."""
        for lease in leases:
            self.pinned(lease, Began())

    def replaced(self, lease: bytes, former: Sequence[Any]) -> None:
        """So may one whose ttl counts from when it holds copies."""
        self.pinned(lease, Began())

    def threads(self) -> Sequence[Loop]:
        """The time thread."""
        return (Loop("time", self._keep_time),)

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                self._table.expire(_EXPIRED_AT_ONCE)
                pause = self._table.next_deadline_in_s()
            if pause == 0:
                time.sleep(_BREATH_S)
            else:
                self._wake.wait(_LONGEST_PAUSE_S if pause is None else min(pause, _LONGEST_PAUSE_S))
                self._wake.clear()

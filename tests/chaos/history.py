"""What has happened in a storm, in the order of time, for whoever looks into a finding."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import NamedTuple


class Event(NamedTuple):
    """When, to which payload (0: to all), and what."""

    at: float
    payload: int
    what: str


class History:
    """All events of a storm. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def tell(self, at: float, what: str, payload: int = 0) -> None:
        """Something has happened."""
        with self._lock:
            self._events.append(Event(at, payload, what))

    def of(self, payloads: Collection[int], since: float) -> list[str]:
        """What has happened to these payloads, and to all, since a time."""
        with self._lock:
            events = sorted(self._events)
        return [
            f"{at:.2f} {f'payload {payload} ' if payload else ''}{what}"
            for at, payload, what in events
            if at >= since and (not payload or payload in payloads)
        ]

"""How long calls take, as a side reports it. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Calls:
    """The calls since somebody last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._taken: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A call of that name, which counts if it succeeds."""
        begun = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - begun)

    def note(self, name: str, seconds: float) -> None:
        with self._lock:
            self._taken.setdefault(name, []).append(seconds)

    def news(self) -> dict[str, list[float]]:
        """What has been noted since the last time, in seconds."""
        with self._lock:
            news, self._taken = self._taken, {}
        return news

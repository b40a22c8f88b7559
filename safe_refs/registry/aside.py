"""What may take long, and is not to hold up those in line behind it: a few threads that come when there is work, and go."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("safe_refs")

_MOST = 8
_IDLE_S = 5.0


class Aside:
    """A pool of daemon threads, which no end of the process waits for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0

    def run(self, job: Callable[[], None]) -> None:
        """Have a thread do it, in its turn; or do it here, if no thread can be had."""
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or self._threads == _MOST:
                self._changed.notify()
                return
            self._threads += 1
            try:
                threading.Thread(target=self._work, name="safe_refs-aside", daemon=True).start()
            except RuntimeError:
                self._threads -= 1
                if self._threads:
                    return
                self._jobs.remove(job)
            else:
                return
        job()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: bool(self._jobs), _IDLE_S)
                self._idle -= 1
                if not self._jobs:
                    self._threads -= 1
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                # A job that fails must not take the thread from those that wait for it.
                logger.exception("what was put aside has failed")
            del job  # it knows references

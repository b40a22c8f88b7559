"""A small pool of threads for jobs that may take long, so that such a job does not delay the jobs behind it.

What always holds: a pool has at most 8 threads; a thread that has had no job for 5 seconds ends; each job is run exactly once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("safe_refs")

_MOST_THREADS = 8
_IDLE_S = 5.0


class Background:
    """A pool of daemon threads. The end of the process does not wait for them.

    A forked child has none of its parent's threads, and may inherit the lock while a thread holds it. So it needs a pool of its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all that follows
        # Not bounded here: the callers bound it, as each of them waits for its job, or has a limit of its own.
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0

    def run(self, job: Callable[[], None]) -> None:
        """Have a thread run the job, in the order of arrival. If no thread can be started, run it here and now."""
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or self._threads == _MOST_THREADS:
                self._changed.notify()
                return
            self._threads += 1
            try:
                threading.Thread(target=self._work, name="safe_refs-background", daemon=True).start()
            except RuntimeError:  # the machine has no more threads
                self._threads -= 1
                if self._threads:
                    return  # one of those that run will get to it
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
                # The thread goes on: other jobs may be waiting for it.
                logger.exception("a job in the background has failed")
            del job  # it may hold references, which an idle thread must not keep alive

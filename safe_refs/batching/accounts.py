"""Who gets the errors of pins that nobody waits for: the pipeline in which they were made, or the rest of the process.

What always holds: an error is given once. No lock: a signal handler or a destructor may come in between any two lines.
"""

from __future__ import annotations

import contextvars
from collections import deque

_MOST_FAILED = 100  # errors that an account keeps


class Account:
    """Who gets the errors of pins that nobody waited for: a pipeline, or the rest of the process."""

    def __init__(self) -> None:
        self._failed: deque[Exception] = deque()  # about _MOST_FAILED at most

    def add(self, error: Exception) -> None:
        """Keep an error for the next `flush`."""
        if len(self._failed) < _MOST_FAILED:
            self._failed.append(error)

    def take(self) -> list[Exception]:
        """The errors since the last time."""
        failed: list[Exception] = []
        while self._failed:
            try:
                failed.append(self._failed.popleft())
            except IndexError:  # another thread took the last one
                break
        return failed


# The account of the pipeline that the code runs in; None outside of any.
current: contextvars.ContextVar[Account | None] = contextvars.ContextVar("safe_refs_account", default=None)

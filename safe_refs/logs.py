"""How often safe_refs logs: at most once a minute for one cause, and then how many lines were left out since.

While a registry is silent, say, a process may fail at thousands of pins and renewals, each for the same reason. One line says it.

A cause is a line's text without its figures (`"lease %s could not be renewed"`) and, where several things fail each by itself, which
of them the line is about: `logger.warning("shard %d is away", number, extra={"about": number})`. An error that somebody has to get is
raised or kept as well, as its line may be left out.

What always holds: it applies to all of our loggers (`LOGGERS`), from the moment when the package is imported. Nothing here waits for
another thread, has a lock, or raises, as any thread may log, also in a signal handler, a destructor, or at the end of Python.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Hashable

LOGGERS = ("safe_refs", "safe_refs.registry")

_EVERY_S = 60.0
_MOST = 256


class _Line:
    """A line that was logged.

    Attributes:
        at: when, by the clock.
        left_out: counts those of the same cause that were left out since.
        next: the next line of the same cause, as the only value. Of all threads for whose line it is time, one puts its own there.
    """

    __slots__ = ("at", "left_out", "next")

    def __init__(self, at: float) -> None:
        self.at = at
        self.left_out = itertools.count()
        self.next: dict[None, _Line] = {}


class OnceAMinute(logging.Filter):
    """Lets a line pass if none of the same cause has passed in the last minute.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # The last line of each cause. At most _MOST, or a few more if threads add some at once: then the first half is forgotten. No
        # lock: each step on it is one step for the interpreter, as are those on `_Line.left_out` and `next`.
        self._last: dict[Hashable, _Line] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line passes; it says how many were left out."""
        cause = (record.name, str(record.msg), getattr(record, "about", None))
        line = _Line(self._clock())
        last = self._last.get(cause)
        if last is None:
            self._make_room()
            last = self._last.setdefault(cause, line)
            if last is line:
                return True
        while line.at - last.at >= _EVERY_S:
            following = self._last[cause] = last.next.setdefault(None, line)
            if following is line:
                if left_out := next(last.left_out):
                    record.msg = f"{record.msg} (and {left_out} more like this in the last {line.at - last.at:.0f} s)"
                return True
            last = following
        next(last.left_out)
        return False

    def forget(self) -> None:
        """No line has been logged yet."""
        self._last.clear()

    def _make_room(self) -> None:
        if len(self._last) >= _MOST:
            for cause in list(self._last)[: _MOST // 2]:
                self._last.pop(cause, None)


once_a_minute = OnceAMinute()
for _name in LOGGERS:
    logging.getLogger(_name).addFilter(once_a_minute)

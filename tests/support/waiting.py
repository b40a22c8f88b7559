"""How tests wait: until something holds, or while it must go on holding. Without Ray, so that any program may import it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# The first look comes at once, and each pause is twice the one before: what is quick costs no time, what is slow costs few calls.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def comes(condition: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Wait until a condition holds; whether it does within that time."""
    deadline, pause_s = time.monotonic() + within_s, _FIRST_PAUSE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return True


def wait_until(condition: Callable[[], bool], within_s: float = 20.0, why: str = "") -> None:
    """Wait until a condition holds, and fail if it doesn't within that time.

    Args:
        condition: is called again and again.
        within_s: how long, in seconds.
        why: what the failure says was expected.
    """
    assert comes(condition, within_s), why or f"what was waited for did not come within {within_s:g} s"


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """The same in an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"what was waited for did not come within {within_s:g} s"
        await asyncio.sleep(_LONGEST_PAUSE_S / 5)


def stays(condition: Callable[[], bool], for_s: float) -> None:
    """Watch that a condition holds all the time, and fail as soon as it doesn't: for what must not happen, which can't be awaited.

    Args:
        condition: is called again and again. It must not touch what is watched: to resolve a lease keeps its objects alive.
        for_s: how long, in seconds: as long as it would take to happen.
    """
    begun = time.monotonic()
    while (passed_s := time.monotonic() - begun) < for_s:
        assert condition(), f"what was to stay was over after {passed_s:.2f} s"
        time.sleep(min(_LONGEST_PAUSE_S, for_s - passed_s))
    assert condition(), f"what was to stay was over after {for_s:g} s"

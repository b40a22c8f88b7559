"""Which source line of a user's has called safe_refs, also where an event loop has a thread make the call.

What always holds: what is handed on to a thread holds for that call alone, as the thread runs in a context of its own.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from .errors import RegistryUnavailableError

T = TypeVar("T")

MARGIN_S = 0.2  # so that a call itself can say first that it got no answer

FOLDER = str(Path(__file__).parent) + os.sep  # of the package
_STANDARD = Path(threading.__file__).parent
_ASYNCIO = str(_STANDARD / "asyncio") + os.sep
# What runs calls for others: an event loop, a pool's thread. No user's line is to be found in it.
MACHINERY = (_ASYNCIO, str(_STANDARD / "concurrent") + os.sep, threading.__file__)
# These await something in their caller's task, so that the caller's line comes next.
_AWAITS = (_ASYNCIO + "tasks.py", _ASYNCIO + "timeouts.py")

_MOST_BYTES = 720

_handed_on: contextvars.ContextVar[str] = contextvars.ContextVar("safe_refs_caller", default="")


def line(frame: FrameType | None = None) -> str:
    """The nearest source line outside safe_refs, as `/a/file.py:7 in function`.

    In a thread that makes a call for an event loop, it is the line that awaits the call; where the call is a task of its own
    (`asyncio.gather(aio.dumps(obj))`), the task's name. In a thread that a user's pool has made, a line of the pool's.

    Args:
        frame: where to begin; the caller's by default.
    """
    found = ""
    frame = frame or sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(FOLDER):
            here = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
            if not code.co_filename.startswith(MACHINERY):
                return here
            if not code.co_filename.startswith(_AWAITS) and (known := _handed_on.get() or _task()):
                return known
            found = found or here
        frame = frame.f_back
    return found or "unknown"


SHORT = 180  # characters; a line of no more is short enough whatever they are


def clipped(found: str) -> str:
    """The end of a long source line, where the file's name is: a shard takes 1 KiB, of which a Ray Client's host needs a part."""
    data = found.encode("utf-8", "surrogatepass")
    return found if len(data) <= _MOST_BYTES else "..." + data[-_MOST_BYTES:].decode("utf-8", "ignore")


def level() -> int:
    """The `stacklevel` with which the function that asks warns the nearest caller outside safe_refs."""
    found, frame = 1, sys._getframe(1)
    while frame.f_code.co_filename.startswith(FOLDER) and frame.f_back is not None:
        found, frame = found + 1, frame.f_back
    return found


def _task() -> str:
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # there is no loop in this thread
        return ""
    return "" if task is None else f"asyncio task {task.get_name()!r}"


def context() -> contextvars.Context:
    """A copy of the current context, for a thread that is to make a call in the name of whoever awaits it here."""
    found = contextvars.copy_context()
    found.run(_handed_on.set, line())
    return found


async def to_thread(call: Callable[[], T], within_s: float) -> T:
    """`asyncio.to_thread`, for a call that is to name the line that awaits it, with a deadline of its own.

    An event loop has a few threads only. The call waits no longer than `within_s` once it is begun; but all threads may be busy with
    others. If nobody awaits it any more when its turn comes, it isn't begun.

    Raises:
        RegistryUnavailableError: no answer in that time, and a little more.
    """
    import asyncio  # takes a while, and most processes never need it

    future = asyncio.get_running_loop().run_in_executor(None, context().run, call)
    try:
        # The loop counts no longer times than some days.
        if (await asyncio.wait([future], timeout=min(within_s + MARGIN_S, threading.TIMEOUT_MAX)))[0]:
            return future.result()
        raise RegistryUnavailableError(
            f"no answer within {within_s:g} s: the registry does not respond, or the event loop's threads are busy with other calls "
            "that wait; try again, or allow a longer timeout"
        )
    finally:
        future.cancel()

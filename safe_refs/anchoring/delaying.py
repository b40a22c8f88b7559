"""How an actor whose last handle is dropped gets the time to anchor.

Ray calls nothing in the actor's process before it tells the owners that the process is gone. But an actor ends only when the calls
that it has made itself are answered. So a thread keeps a call to an *exit delay* actor open, and looks whether the actor was told
to end:

    actor's thread            control service           exit delay
      open a call of 3 s ───────────────────────────────►  (answers after 3 s)
      every 0.1 s: has it called exit_actor?  (asks nobody)
      every 1 s ──► is it marked dead?
      every 1.5 s: open another ────────────────────────►
      … dead ─── open a call of 10 s, anchor, cancel all calls ──► the actor ends

What always holds: while a thread watches, a call is open that ends 1.5 s later or more, and between two look-ups there is 1 s. The
control service serves the whole cluster, so it isn't asked more often. An actor that ends is delayed by up to 1 s until the
look-up, and by what anchoring takes (`exits`); by 3 s if its thread can't come to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from .._ray import cluster, requests
from ..bounds import Range
from ..errors import RegistryUnavailableError
from ..registry.received import actor, checked
from . import relays

if TYPE_CHECKING:
    import ray

LOOKS_S = 0.1
LOOK_UP_S = 1.0
DELAY_S = 3.0
MOST_S = 60.0  # of a call; far more than anybody asks for
_NAME = "exit_delay"
_TIDY_S = 5.0
_FAILED_S = 0.01
_FOUND_S = 1.0  # for Ray's control service, when the exit delay is looked up or started
_AGAIN_S = 0.3  # a call that could not be opened is tried again


@actor
class SafeRefsExitDelay:
    """The actor's class: answers late, so that a process that asks doesn't end before. Async, as many may wait at once."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._leaving: asyncio.Task[None] | None = None

    @checked
    async def wait(self, seconds: Annotated[float, Range(0, MOST_S)]) -> None:
        """Answer after `seconds`."""
        self._asked_at = time.monotonic()
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.sleep(seconds)

    @checked
    async def end(self) -> None:
        """End, unless somebody has asked for something meanwhile."""
        import ray

        if time.monotonic() - self._asked_at < relays.STAYS_S:
            return
        ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped

    async def _leave(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        while True:  # until the call to end finds that nobody has asked meanwhile, and ends the process
            await asyncio.sleep(_TIDY_S)
            with contextlib.suppress(Exception):
                if time.monotonic() - self._asked_at >= relays.STAYS_S:
                    await me.end.remote()  # one at a time: see `relays.SafeRefsRelay`


class Delaying(Protocol):
    """Calls that hold up the end of this actor."""

    def open(self, seconds: float) -> bool:
        """Begin a call that is answered after `seconds`; whether that could be."""

    def close(self) -> None:
        """End all of them."""


class Delays:
    """See `Delaying`."""

    def __init__(self) -> None:
        # Open calls, the newest last. The oldest is dropped when its time has long been over.
        self._calls: deque[ray.ObjectRef[None]] = deque(maxlen=4)
        self._handle: Any = None

    def open(self, seconds: float) -> bool:
        """See `Delaying`."""
        import ray

        try:
            if self._calls and ray.wait([self._calls[-1]], timeout=_FAILED_S)[0]:
                self._handle = None  # the last one should still be open: the exit delay has died
            if self._handle is None:
                self._handle = cluster.start_actor(_NAME, SafeRefsExitDelay, place=0, deadline=requests.soon(_FOUND_S))
            self._calls.append(self._handle.wait.remote(seconds))
        except (ValueError, RegistryUnavailableError, ray.exceptions.RayError):
            self._handle = None  # it is being started, or has just died
            return False
        return True

    def close(self) -> None:
        """See `Delaying`."""
        import ray

        while self._calls:
            with contextlib.suppress(Exception):  # Ray may be gone from this process
                ray.cancel(self._calls.pop())


class Watch:
    """When to look whether this actor ends, and when to open another call.

    Args:
        has_called_exit: a cheap local look.
        is_marked_dead: asks the control service.
        delays: the calls that hold up the end.
    """

    def __init__(
        self, has_called_exit: Callable[[], bool], is_marked_dead: Callable[[], bool], delays: Delaying
    ) -> None:
        self._has_called_exit = has_called_exit
        self._is_marked_dead = is_marked_dead
        self._delays = delays
        self._opens_at = self._looked_up_at = float("-inf")

    def begin(self, now: float) -> None:
        """From now on, monotonic seconds, no end goes unseen."""
        self._opens_at = now + (DELAY_S / 2 if self._delays.open(DELAY_S) else _AGAIN_S)

    def tick(self, now: float) -> bool:
        """One look, at monotonic seconds `now`; whether the actor was told to end."""
        if now >= self._opens_at:
            self.begin(now)
        if self._has_called_exit():
            return True
        if now - self._looked_up_at < LOOK_UP_S:
            return False
        self._looked_up_at = now
        return self._is_marked_dead()

    def delay(self, seconds: float) -> None:
        """Hold up the end for so long, at most."""
        self._delays.open(seconds)

    def end(self) -> None:
        """Hold it up no longer."""
        self._delays.close()

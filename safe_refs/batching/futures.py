"""Requests of event loops: their answers are awaited, and no thread waits for them.

    task ──► Batched.post ──► thread `safe_refs-sending` asks the registry ──► parts of the client learn of it ──► the task's future

What always holds: nothing here blocks the loop; another thread does what may wait. A task that is cancelled holds nothing, even if
the registry acknowledges its pin later. A future has a deadline of its own besides the call's, so that a thread that dies leaves
nobody waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import callers
from ..config import Deadline
from ..registry import giving_back
from ..registry.calls import Registry
from ..registry.records import Identity
from ..registry.requests import Plan, Wanted
from .groups import Batched
from .unacknowledged import Unacknowledged

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")

logger = logging.getLogger("safe_refs")

_MARGIN_S = 0.2  # so that the call itself can say first that it got no answer


class _Answer(Generic[A]):
    """A future of the running loop, which another thread answers.

    Args:
        registry: which is asked.
        deadline: of the call. A little later the future ends by itself.
    """

    def __init__(self, registry: Registry, deadline: Deadline) -> None:
        self.registry = registry
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[A] = self.loop.create_future()
        self._timer = self.loop.call_later(deadline.left_s() + _MARGIN_S, self._end)

    def __call__(self, answer: A | None, error: Exception | None) -> None:
        """Give the answer, or the error. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._set, answer, error)
        except RuntimeError:  # the loop has been closed meanwhile
            if error is None:
                self.undo(answer)

    def undo(self, answer: A | None) -> None:
        """There is an answer, and nobody waits for it any more. Called by any thread; must not wait."""

    def _end(self) -> None:
        self._set(None, self.registry.no_answer(self.deadline))

    def _set(self, answer: A | None, error: Exception | None) -> None:
        if self.future.done():
            if error is None:
                self.undo(answer)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(answer)  # type: ignore[arg-type] # it is one, as there is no error
        # Last of all: the loop drops what a signal's handler raises in here, and then the future has to end by itself.
        self._timer.cancel()


class _Pinned(_Answer[Identity]):
    """The answer to a pin.

    Args:
        sender: which sends it.
        registry: which is to hold it.
        plan: the lease.
        deadline: of the call.
    """

    def __init__(self, sender: Batched, registry: Registry, plan: Plan, deadline: Deadline) -> None:
        super().__init__(registry, deadline)
        self._sender = sender
        self._plan = plan

    def over(self, identity: Identity | None, error: Exception | None) -> None:
        """Called by the thread that sends. Wings learn of the pin first, in another thread, as they may take long."""
        if identity is not None and self._plan.is_unsure and not self._plan.may_take_long:
            self._sender.session.after_pins(self.registry.name, [(self._plan, identity)], self.deadline)
        if identity is not None and self._plan.may_take_long:
            self._sender.background.run(partial(self._tell_parts, identity))
        else:
            self(identity, error)

    def _tell_parts(self, identity: Identity) -> None:
        if not self.future.done():
            try:
                self._sender.session.after_pins(self.registry.name, [(self._plan, identity)], self.deadline)
            except Exception as error:
                self(None, error.with_traceback(None))
                return
            except BaseException:  # whatever ends this thread, somebody awaits the answer
                self(None, self.registry.no_answer(self.deadline))
                raise
        self(identity, None)

    def undo(self, answer: Identity | None) -> None:
        """Release the lease. The cancelled caller has done so, but perhaps before there was a registry to get the release."""
        self._sender.background.run(self._give_up)

    def _give_up(self) -> None:
        self.registry.release_later([self._plan.lease], self._plan.maker)
        self._sender.session.after_pins(self.registry.name, [(self._plan, None)], self.deadline)


class _Resolved(_Answer["list[Ref]"]):
    """The answer to a resolve.

    Args:
        sender: which sends it.
        row: what is wanted.
        deadline: of the call.
    """

    def __init__(self, sender: Batched, row: Wanted, deadline: Deadline) -> None:
        super().__init__(sender.session.registry(row.address.registry), deadline)
        self._sender = sender
        self._row = row

    def undo(self, answer: list[Ref] | None) -> None:
        """Give the use back, if it may count."""
        if self._row.spends and answer is not None:
            self._sender.background.run(partial(self._give_back, answer))

    def _give_back(self, refs: list[Ref]) -> None:
        deadline = Deadline(time.monotonic() + self.deadline.timeout_s, self.deadline.timeout_s)
        try:
            giving_back.give_back(self._sender.session, [(self._row, refs)], set(), deadline)
        except Exception as error:
            logger.warning("a use could not be given back, and stays spent: %s", error)


async def pin(sender: Batched, registry: Registry, plan: Plan, deadline: Deadline) -> Identity:
    """`Batched.pin`, awaited. When it returns, the parts of the client have learned of the pin, by a thread, as `after_pin` may wait.

    `before_pin` is not called. If this raises, or is cancelled, the caller releases the lease, as with every `Sender`.
    """
    answer = _Pinned(sender, registry, plan, deadline)
    try:
        sender.post(registry.name, plan, deadline, answer.over)
        return await answer.future
    finally:
        answer._timer.cancel()
        del answer  # an error's traceback leads to this frame, and would lead back to the error


async def resolve(sender: Batched, row: Wanted, deadline: Deadline) -> list[Ref]:
    """`Batched.resolve`, awaited."""
    answer = _Resolved(sender, row, deadline)
    try:
        sender.post_resolve(row, deadline, answer)
        return await answer.future
    finally:
        answer._timer.cancel()
        del answer  # as above


async def post(unacknowledged: Unacknowledged, registry: str, plan: Plan, deadline: Deadline) -> None:
    """`Unacknowledged.post`, awaited. If too many pins are unacknowledged, a thread waits until there is room."""
    if not unacknowledged.post(registry, plan, deadline, blocks=False):
        await callers.to_thread(partial(unacknowledged.post, registry, plan, deadline), deadline.left_s())

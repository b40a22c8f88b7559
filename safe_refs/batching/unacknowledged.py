"""Pins that nobody waits for, until the registry has acknowledged them (`wait=False`, `pipeline`, `flush`).

    post ──► Batched.post ──► the registry ──► parts of the client learn of it ──► counted off; an error goes to the account
    flush ── waits until all that were posted before are counted off ── raises the first error of its account

What always holds: such a pin keeps its references alive until the registry holds them or refuses. Each is acknowledged, or fails,
once. `flush`, and an orderly end of the process, wait for all earlier ones. An error is logged, and raised to the pipeline, or to the
rest of the process, that made the pin.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from .._ray import exits
from ..config import Deadline
from ..errors import LeaseReleasedError, RegistryUnavailableError
from ..registry.records import Identity
from ..registry.requests import Plan
from ..threads import Background

if TYPE_CHECKING:
    from ..registry.sessions import Session

logger = logging.getLogger("safe_refs")

_MOST = 100_000  # pins at a time; then `post` waits until some are acknowledged
_MOST_FAILED = 100  # errors that an account keeps
_LAST_WAIT_S = 30.0  # for all pins together, at the end of the process


class Account:
    """Who gets the errors of pins that nobody waited for: a pipeline, or the rest of the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards `_failed`; a destructor may come in between
        self._failed: list[Exception] = []  # at most _MOST_FAILED

    def add(self, error: Exception) -> None:
        """Keep an error for the next `flush`."""
        with self._lock:
            if len(self._failed) < _MOST_FAILED:
                self._failed.append(error)

    def take(self) -> list[Exception]:
        """The errors since the last time."""
        with self._lock:
            failed, self._failed = self._failed, []
            return failed


# Of the pipeline that the code runs in; None outside of any.
current: contextvars.ContextVar[Account | None] = contextvars.ContextVar("safe_refs_account", default=None)

# For the end of the process, and for `flush`: all objects that there are. Bound: one for each session. No lock: to add one is one
# step for the interpreter, and a weak set may be read meanwhile. A forked child leaves those of its parent alone.
_live: weakref.WeakSet[Unacknowledged] = weakref.WeakSet()


class Unacknowledged:
    """The pins of a session that nobody waits for.

    Args:
        session: whose; complete, with its `sender`, before anything is posted.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._others = Account()  # of what is made outside of pipelines
        self._background = Background()
        self._is_hooked = False
        # Guards all that follows. Re-entrant, for a destructor may post something in between.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # which costs more to enter than its lock
        self._waiting: OrderedDict[int, Account] = OrderedDict()  # by ordinal number; at most _MOST
        self._last = 0  # ordinal number of the last one
        self._goals: list[int] = []  # up to which number somebody waits; one for each `flush` that is under way
        self._is_closed = False
        _live.add(self)

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which has none of the threads, and may have a lock that a thread of its parent held."""
        return self._session.pid == os.getpid()

    def post(self, registry: str, plan: Plan, deadline: Deadline, *, blocks: bool = True) -> bool:
        """Have a lease pinned soon. What goes wrong is logged, and raised by `flush`.

        Args:
            registry: name of the registry.
            plan: the lease.
            deadline: until when the pin is tried, and until when this call waits if _MOST pins are unacknowledged.
            blocks: False: in that case, don't wait, and do nothing.

        Returns:
            Whether it is on its way; only with `blocks=False` it may not be.

        Raises:
            RegistryUnavailableError: _MOST pins are unacknowledged, up to the deadline. Or the connection has ended. As with every
                error, the caller has to release the lease.
        """
        if not self._is_hooked:
            # First of all hooks: what is acknowledged here may be work for the hook of another wing.
            exits.call_before_exit(_flush_at_exit, first=True)
            self._is_hooked = True
        number = None
        try:
            with self._lock:
                while len(self._waiting) >= _MOST:
                    if not blocks:
                        return False
                    if deadline.is_over():
                        raise self._session.registry(registry).no_answer(deadline)
                    self._changed.wait(deadline.left_s())
                if self._is_closed:
                    raise _gone()
                number = self._last = self._last + 1
                self._waiting[number] = current.get() or self._others
                self._session.sending = True
            pin = _Pin(self, number, registry, plan, deadline)
            self._session.sender.post(registry, plan, deadline, pin.over)
        except BaseException:
            if number is not None:
                self._count_off(number, None)  # the caller hears of it by this error
            raise
        return True

    def flush(self, deadline: Deadline, account: Account | None = None) -> None:
        """Wait until every pin that was posted before is acknowledged; see the function `flush`."""
        _flush([self], deadline, account or current.get())

    def wait(self, deadline: Deadline) -> int:
        """Wait until every pin that was posted before is acknowledged or has failed; of how many that isn't so by the deadline."""
        with self._changed:
            last = self._last
            self._goals.append(last)
            try:
                self._changed.wait_for(lambda: self._are_over(last), max(0.0, deadline.at - time.monotonic()))
            finally:
                self._goals.remove(last)
            return sum(number <= last for number in self._waiting)

    def close(self) -> None:
        """The connection is gone: nothing more is acknowledged."""
        _live.discard(self)
        if not self.is_of_this_process:
            return
        with self._changed:
            self._is_closed = True
            left = list(self._waiting.values())
            self._waiting.clear()
            self._session.sending = False
            self._changed.notify_all()
        for account in left:
            account.add(_gone())
        if left:
            logger.error(
                "the connection to Ray has ended, and %d pin(s) that nobody waited for are not acknowledged", len(left)
            )

    def _are_over(self, number: int) -> bool:
        """Whether all up to that one are acknowledged or have failed."""
        return not self._waiting or next(iter(self._waiting)) > number

    def _is_waiting(self, number: int) -> bool:
        with self._lock:
            return number in self._waiting

    def _count_off(self, number: int, error: Exception | None) -> bool:
        """A pin is acknowledged, or has failed. False: it was counted off before (`post` was interrupted, or the session ended)."""
        if isinstance(error, LeaseReleasedError):
            error = None  # its release, or its scope's end, has overtaken it, and wins
        with self._lock:
            account = self._waiting.pop(number, None)
            if account is None:
                return False
            self._session.sending = bool(self._waiting)
            if error is not None:
                account.add(error)
            if len(self._waiting) == _MOST - 1 or (self._goals and self._are_over(min(self._goals))):
                self._changed.notify_all()
        if error is not None:
            logger.error("a payload was made without waiting, and its references could not be held: %s", error)
        return True


class _Pin:
    """A pin that is on its way.

    Args:
        owner: where it is counted off.
        number: its ordinal number there.
        registry: name of the registry.
        plan: the lease.
        deadline: until when it is tried.
    """

    __slots__ = ("_deadline", "_number", "_owner", "_plan", "_registry")

    def __init__(self, owner: Unacknowledged, number: int, registry: str, plan: Plan, deadline: Deadline) -> None:
        self._owner = owner
        self._number = number
        self._registry = registry
        self._plan: Plan | None = plan
        self._deadline = deadline

    def over(self, identity: Identity | None, error: Exception | None) -> None:
        """The registry of that identity holds the lease, or the pin has failed. Called by the thread that sends."""
        plan = self._plan
        if plan is not None and (plan.borrowed or plan.durable):
            # Wings have something to do for it, which may take long: other pins wait for this thread.
            del plan
            self._owner._background.run(partial(self._end, identity, error))
        elif plan is not None and error is None:
            # Nearly every pin, and so in a short way. Its references go first, as below.
            lease, self._plan = plan.lease, None
            del plan
            if not self._owner._count_off(self._number, None) and not self._owner._is_closed:
                self._owner._session.registry(self._registry).release_later([lease])
        else:
            del plan
            self._end(identity, error)

    def _end(self, identity: Identity | None, error: Exception | None) -> None:
        session, plan, self._plan = self._owner._session, self._plan, None
        if plan is None or self._owner._is_closed:
            return
        if not self._owner._is_waiting(self._number):
            identity = None  # `post` was interrupted, or the connection has ended: nobody is to have it
        try:
            try:
                session.after_pins(self._registry, [(plan, identity)], self._deadline)
            except Exception as failure:
                identity, error = None, failure.with_traceback(None)
                session.after_pins(self._registry, [(plan, None)], self._deadline)
            if identity is None and not isinstance(error, LeaseReleasedError):
                session.registry(self._registry).release_later([plan.lease])
        finally:
            # The references go first: when all pins are counted off, no thread of ours uses any (`sending`).
            del plan
            self._owner._count_off(self._number, error)


def flush(deadline: Deadline, account: Account | None = None) -> None:
    """Wait until every pin of this process that was posted before is acknowledged.

    Args:
        deadline: until when.
        account: whose errors are raised; by default the current pipeline's, outside of any those of the rest of the process.

    Raises:
        RegistryUnavailableError: not all in time; they are still tried.
        SafeRefsError: the error of the first pin that has failed since the last `flush`; nothing of the failed ones is held.
    """
    _flush(_of_this_process(), deadline, account or current.get())


def _of_this_process() -> list[Unacknowledged]:
    return [each for each in list(_live) if each.is_of_this_process]


def _flush(of: Iterable[Unacknowledged], deadline: Deadline, account: Account | None) -> None:
    """As `flush`, for some sessions; None: the errors of what was made outside of pipelines."""
    waited = list(of)
    left = sum([each.wait(deadline) for each in waited])
    failed = [error for each in waited for error in each._others.take()] if account is None else account.take()
    if failed:
        if len(failed) > 1:
            logger.warning("%d pins that nobody waited for have failed; the first error is raised", len(failed))
        try:
            raise failed[0]
        finally:
            failed.clear()  # this frame is in the error's traceback
    if left:
        raise RegistryUnavailableError(
            f"{left} pin(s) are not acknowledged after {deadline.timeout_s:g} s: the registry is overloaded, stopped, or its node "
            "can't be reached. They are still on their way: call flush() again"
        )


def _flush_at_exit() -> None:
    """An orderly end of this process waits for what was posted, while Ray still answers."""
    waited = [each for each in _of_this_process() if each._waiting]
    if waited:
        # Errors are logged already, and stay where they are: the process may be in the middle of a `flush` of its own.
        deadline = Deadline(time.monotonic() + _LAST_WAIT_S, _LAST_WAIT_S)
        if left := sum([each.wait(deadline) for each in waited]):
            logger.error("the process ends, and %d pin(s) that nobody waited for are not acknowledged", left)


def _gone() -> RegistryUnavailableError:
    return RegistryUnavailableError(
        "the connection to Ray has ended before the registry acknowledged a pin that nobody waited for: call flush() before "
        "ray.shutdown()"
    )

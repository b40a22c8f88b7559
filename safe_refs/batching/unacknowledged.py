"""Pins that nobody waits for, until the registry has acknowledged them (`wait=False`, `pipeline`, `flush`).

    post ──► Batched.post ──► the registry ──► parts of the client learn of it ──► counted off; an error goes to the account
    flush ── waits until all that were posted before are counted off ── raises the first error of its account

What always holds: such a pin keeps its references alive until the registry holds them or refuses. Each pin is counted off once, when
it is acknowledged or has failed. `flush`, and an orderly end of the process, wait for all earlier pins. An error is logged, and kept
for the account of whoever made the pin: a pipeline, or the rest of the process. Nothing here has a lock: a signal handler or a
destructor may post or flush in the middle of any function here. If a handler raises, no pin stays counted that is not on its way.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from .._ray import exits, serializing
from ..config import Deadline
from ..errors import LeaseReleasedError, RegistryUnavailableError, of_lease
from ..registry.records import Identity
from ..registry.requests import Plan
from ..threads import Background, mark
from .accounts import Account, current

if TYPE_CHECKING:
    from ..registry.sessions import Session

logger = logging.getLogger("safe_refs")

_MOST = 100_000  # unacknowledged pins; beyond that, `post` waits until some are acknowledged
_MOST_NAMED = 5  # leases in a line of the log
_LONGEST_REASON = 500  # characters; a shard keeps it as long as it remembers the lease
_LAST_WAIT_S = 30.0  # for all pins together, at the end of the process


# All `Unacknowledged` objects of the process, for its end and for `flush`. Bound: one for each session; weak. No lock: to add, to
# discard and to copy is one step each. A forked child leaves those of its parent alone.
_live: set[weakref.ref[Unacknowledged]] = set()
# Of the session that has ended last: for a `flush` that comes before there is another one. Replaced whole.
_last = Account()


class _Posted(NamedTuple):
    """A pin that is on its way: whose account gets its error, and its lease's short id."""

    account: Account
    short_id: str


class _Waiter:
    """A thread that waits until `is_over()` is true. Whatever is put into `wakes` wakes it."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over = is_over
        self.wakes: SimpleQueue[None] = SimpleQueue()


class Unacknowledged:
    """The pins of a session that nobody waits for.

    Args:
        session: whose; complete, with its `sender`, before anything is posted.

    Attributes:
        is_given_up: the end of the process has waited for them, in vain.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._others = Account()  # for pins that are made outside of pipelines
        self._background = Background()
        self._is_hooked = self.is_given_up = False
        self._numbers = itertools.count(1)
        self._waiting: OrderedDict[int, _Posted] = OrderedDict()  # by ordinal number; about _MOST at most
        # Weak, so that each goes with the frame that waits. Bound: one for each thread in `flush` or waiting for room. No lock: to
        # add, to discard and to copy is one step each, as is each step on `_waiting`.
        self._waiters: set[weakref.ref[_Waiter]] = set()
        self._is_closed = False
        _live.add(weakref.ref(self, _live.discard))

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which has none of the threads."""
        return self._session.pid == os.getpid()

    @property
    def is_sending(self) -> bool:
        """Whether pins are on their way. Their references are used by a thread of ours."""
        return bool(self._waiting)

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
            # Before all other hooks: a pin that is acknowledged there may make work for the hook of another wing.
            exits.call_before_exit(_flush_at_exit, first=True)
            self._is_hooked = True
        while len(self._waiting) >= _MOST:
            if not blocks:
                return False
            if deadline.is_over():
                raise self._session.registry(registry).no_answer(deadline)
            self._wait_until(lambda: len(self._waiting) < _MOST, deadline)
        number = next(self._numbers)
        is_posted = False
        try:
            self._waiting[number] = _Posted(current.get() or self._others, plan.lease[:4].hex())
            if self._is_closed:
                raise _gone()
            pin = _Pin(self, number, registry, plan, deadline)
            self._session.sender.post(registry, plan, deadline, pin.over)
            is_posted = True
        finally:
            if not is_posted:
                self._count_off(number, None)  # the caller hears of it by the error
        return True

    def flush(self, deadline: Deadline, account: Account | None = None) -> None:
        """Wait until every pin that was posted before is acknowledged; see the function `flush`."""
        _flush([self], deadline, account or current.get())

    def wait(self, deadline: Deadline) -> int:
        """Wait until every pin that was posted before is acknowledged or has failed. Returns how many are left at the deadline."""
        last = max(list(self._waiting), default=0)
        self._wait_until(lambda: self._are_over(last), deadline)
        return sum(number <= last for number in list(self._waiting))

    def _wait_until(self, is_over: Callable[[], bool], deadline: Deadline) -> None:
        if not is_over() and mark.is_ours:  # a destructor, which perhaps the very thread runs that sends them
            raise RegistryUnavailableError(
                "pins can't be waited for here, in a thread of safe_refs that others wait for: flush in a thread of your own"
            )
        if not is_over() and serializing.holds_lock():
            raise RegistryUnavailableError(
                "pins can't be waited for here, in the middle of Ray's own code, which holds a lock that is needed: flush elsewhere"
            )
        waiter = _Waiter(is_over)
        self._waiters.add(weakref.ref(waiter, self._waiters.discard))
        while not is_over() and not self._is_closed and not deadline.is_over():
            try:
                waiter.wakes.get(timeout=min(deadline.left_s(), threading.TIMEOUT_MAX))
            except Empty:
                return

    def close(self) -> None:
        """The connection is gone: nothing more is acknowledged."""
        global _last
        _live.discard(weakref.ref(self))
        if not self.is_of_this_process:
            return
        self._is_closed, _last = True, self._others
        left: list[_Posted] = []
        for number in list(self._waiting):
            if (posted := self._waiting.pop(number, None)) is not None:
                left.append(posted)
        self._wake()
        for posted in left:
            posted.account.add(of_lease(_gone(), posted.short_id))
        if left and not self.is_given_up:  # else that line is logged already
            logger.error(
                "the connection to Ray has ended, and %d pin(s) that nobody waited for are not acknowledged: of lease %s",
                len(left),
                ", ".join(each.short_id for each in left[:_MOST_NAMED]) + ", …" * (len(left) > _MOST_NAMED),
            )

    def _are_over(self, number: int) -> bool:
        """Whether all pins up to that one are acknowledged or have failed."""
        while self._waiting:
            try:
                return next(iter(self._waiting)) > number
            except (RuntimeError, StopIteration):
                continue  # another thread has changed it in between
        return True

    def _count_off(self, number: int, error: Exception | None) -> bool:
        """A pin is acknowledged, or has failed. False: it was counted off before (`post` was interrupted, or the session ended)."""
        if isinstance(error, LeaseReleasedError):
            error = None  # its release, or its scope's end, has overtaken it, and wins
        posted = self._waiting.pop(number, None)
        if posted is None:
            return False
        if error is not None:
            posted.account.add(error)
            # Of several with the same kind of error, one line: the account has them all.
            logger.error(
                "a payload was made without waiting, and its references could not be held: %s",
                error,
                extra={"about": type(error)},
            )
        if self._waiters:
            self._wake()
        return True

    def _wake(self) -> None:
        for each in list(self._waiters):
            waiter = each()
            if waiter is not None and (self._is_closed or waiter.is_over()):
                waiter.wakes.put(None)


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
        if plan is not None and plan.is_unsure and not plan.may_take_long and identity is not None:
            self._owner._session.after_pins(self._registry, [(plan, identity)], self._deadline)
        if plan is not None and plan.may_take_long:
            # Wings have something to do for it, which may take long, and other pins wait for this thread.
            del plan
            self._owner._background.run(partial(self._end, identity, error))
        elif plan is not None and error is None:
            # Nearly every pin, so this is the short way. It drops the references first, as below.
            lease, maker, self._plan = plan.lease, plan.maker, None
            del plan
            if not self._owner._count_off(self._number, None) and not self._owner._is_closed:
                self._owner._session.registry(self._registry).release_later([lease], maker)
        else:
            del plan
            self._end(identity, error)

    def _end(self, identity: Identity | None, error: Exception | None) -> None:
        session, plan, self._plan = self._owner._session, self._plan, None
        if plan is None or self._owner._is_closed:
            return
        if self._number not in self._owner._waiting:
            identity = None  # `post` was interrupted, or the connection has ended: the lease is to end
        try:
            try:
                session.after_pins(self._registry, [(plan, identity)], self._deadline)
            except Exception as failure:
                identity, error = None, failure.with_traceback(None)
                session.after_pins(self._registry, [(plan, None)], self._deadline)
            if identity is None and not isinstance(error, LeaseReleasedError):
                reason = "" if error is None else str(error)[:_LONGEST_REASON]
                session.registry(self._registry).release_later([plan.lease], plan.maker, reason)
            error = error and of_lease(error, plan.lease[:4].hex())
        finally:
            # Dropped first: when all pins are counted off, no thread of ours uses any of their references (see `is_sending`).
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
    found = [each() for each in list(_live)]
    return [each for each in found if each is not None and each.is_of_this_process]


def _flush(of: Iterable[Unacknowledged], deadline: Deadline, account: Account | None) -> None:
    """As `flush`, for some sessions. Without an account, the errors are those of pins made outside of pipelines."""
    waited = list(of)
    left = sum([each.wait(deadline) for each in waited])
    others = [each._others for each in waited] or [_last]
    failed = [error for each in ([account] if account else others) for error in each.take()]
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
    """An orderly end of this process waits for what was posted, while Ray still answers; once, although it may be called twice."""
    waited = [each for each in _of_this_process() if each._waiting and not each.is_given_up]
    if waited:
        # Errors are logged already, and stay in their accounts: the process may be in the middle of a `flush` of its own.
        deadline = Deadline(time.monotonic() + _LAST_WAIT_S, _LAST_WAIT_S)
        if left := sum([each.wait(deadline) for each in waited]):
            logger.error(
                "the process ends, or leaves Ray, and %d pin(s) that nobody waited for are not acknowledged: lost", left
            )
            for each in waited:
                each.is_given_up = True


def _gone() -> RegistryUnavailableError:
    return RegistryUnavailableError(
        "the connection to Ray has ended before the registry acknowledged a pin that nobody waited for: call flush() before "
        "ray.shutdown()"
    )

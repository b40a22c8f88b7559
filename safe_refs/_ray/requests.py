"""Calls of Ray that may wait without a limit: another thread makes each, and the caller waits no longer than its deadline.

`control` has the list of them. A caller without a deadline waits `PATIENCE_S`. A thread that answers other processes' calls
(`answers_calls`) waits `BRIEF_S`, counted from when the request began, whoever began it: its callers must not wait for what one of
them asks.

What always holds: what nobody waits for any more is not begun; a process has no more requests under way than `threads.Background` has
threads, and of those with one question one at most; an answer that comes too late is thrown away. A signal handler may raise behind
any line: that ends its own call, and no other caller's.

Errors that a call raised lose their traceback, and no frame in the new one knows the error or the request: that cycle would keep all
that the caller's frames know, references too, until the next garbage collection.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from ..config import Deadline
from ..errors import RegistryUnavailableError
from ..threads import Background
from . import client, serializing
from .native import connected, gone, is_left

T = TypeVar("T")

PATIENCE_S = 2.0
BRIEF_S = 0.3
_PIECE_S = 0.1  # how often a caller looks whether this process has left its cluster


class _Thread(threading.local):
    """How this thread asks.

    Attributes:
        is_brief: it answers calls of other processes.
        makes: it is in the middle of a request. A destructor may run there.
        opens: it opens handles of our own actors, or what they have sent; see `classes`.
    """

    is_brief = False
    makes = False
    opens = False


this_thread = _Thread()
_background = Background()
# The requests under way, by connection and question. Bound: what the pool's threads do, and what waits for them, as nothing is begun
# that nobody waits for. No lock: each step on it is atomic.
_pending: dict[Hashable, _Request] = {}


def _begin_anew() -> None:
    """A forked child has none of the threads."""
    global _background
    _background = Background()
    _pending.clear()


os.register_at_fork(after_in_child=_begin_anew)


class _UnwantedError(Exception):
    """When the call's turn came, nobody waited for it any more."""


class _Request:
    """A call that a thread of the pool makes.

    Args:
        core: by which this process is connected.
        question: under which others find it; None if it is not shared.
        call: the call.

    Attributes:
        key: in `_pending`.
        begun: when.
        callers: who waits. Each step on it is atomic.
    """

    def __init__(self, core: Any, question: Hashable, call: Callable[[], Any]) -> None:
        self.key = (core, question)
        self._call = [call]  # the thread that takes it out makes it
        self._over = threading.Event()
        self._result: tuple[Any, BaseException | None] = (None, None)
        self.begun = time.monotonic()
        self.callers: list[object] = []

    @property
    def is_begun(self) -> bool:
        """Whether a thread makes the call, or has made it."""
        return not self._call

    def run(self) -> None:
        """Make the call, unless another thread does, nobody waits for it, or the connection is another one by now."""
        try:
            call = self._call.pop()
        except IndexError:
            return
        try:
            if not self.callers:
                raise _UnwantedError
            this_thread.makes = True
            if connected() is not self.key[0] or is_left(self.key[0]):
                raise RegistryUnavailableError(
                    "the connection to Ray has ended before Ray's control service (GCS) was asked: try again with the new one"
                )
            self._result = (call(), None)
        except BaseException as error:  # of whatever kind it is, the waiting threads raise it
            self._result = (None, error)
        finally:
            this_thread.makes = False
            self.forget()
            self._over.set()

    def forget(self) -> None:
        """Callers with the same question make another request from now on."""
        if _pending.get(self.key) is self:
            _pending.pop(self.key, None)

    def wait(self, until: float) -> Any:
        """Its answer, or error, by then.

        Raises:
            TimeoutError: there is none yet.
        """
        while not self._over.wait(min(max(until - time.monotonic(), 0.0), _PIECE_S)):
            if is_left(self.key[0]):
                raise gone()
            if time.monotonic() >= until:
                raise TimeoutError
        answer, error = self._result
        if error is None:
            return answer
        try:
            raise error.with_traceback(None)
        finally:
            del self, error  # see the module


def answers_calls() -> None:
    """This thread answers calls of other processes from now on: what it asks, it waits for briefly."""
    this_thread.is_brief = True


def opening(call: Callable[[], T]) -> T:
    """Make a call that opens handles of our own actors, or what they have sent; see `classes`."""
    before = this_thread.opens
    try:
        try:
            this_thread.opens = True
            return call()
        finally:
            this_thread.opens = before
    except BaseException:
        this_thread.opens = before  # a signal handler may have raised just before that line
        raise


def soon(timeout_s: float = PATIENCE_S) -> Deadline:
    """The deadline of who has none, for several questions one after the other."""
    return Deadline(time.monotonic() + timeout_s, timeout_s)


def left_s(deadline: Deadline | None) -> float:
    """How many seconds the control service is waited for."""
    if this_thread.is_brief:
        return BRIEF_S
    return PATIENCE_S if deadline is None else min(deadline.left_s(), threading.TIMEOUT_MAX)


def asked(call: Callable[[], T], deadline: Deadline | None, question: Hashable = None) -> T:
    """Make a call to the control service, in another thread.

    In the middle of Ray's own code, where another thread would wait for this one, this thread makes it itself, and so waits without a
    limit.

    Args:
        call: what to do.
        deadline: until when to wait; None: see the module.
        question: callers with the same one share a call; None: this caller only.

    Raises:
        RegistryUnavailableError: no answer in time. The call may still be carried out.
        Exception: what the call raises.
    """
    wait_s = left_s(deadline)
    if client.was_here():
        return client.asked(call, wait_s)
    core = connected()
    if core is None:
        return call()  # Ray is gone from this process, or was never there: Ray says so
    if serializing.holds_lock():
        return call()
    if this_thread.makes:
        # A destructor in the middle of another request, whose callers wait for this thread to their deadlines.
        return call()
    until = time.monotonic() + wait_s
    while True:
        try:
            answer: T = _shared(_Request(core, question, call), until, wait_s)
            return answer
        except TimeoutError:
            raise silent(wait_s) from None
        except _UnwantedError:
            continue  # its turn came just before this caller did


def _shared(request: _Request, until: float, wait_s: float) -> Any:
    """The answer to a request, or to the one that another caller has made with the same question."""
    caller = object()
    try:
        if request.key[1] is not None:
            request = _pending.setdefault(request.key, request)
        request.callers.append(caller)
        if not request.is_begun:  # also another caller's, whom a signal handler may have interrupted before this line
            _background.run(request.run)
        return request.wait(request.begun + wait_s if this_thread.is_brief else until)
    finally:
        if caller in request.callers:
            request.callers.remove(caller)
        if not request.callers and not request.is_begun:
            request.forget()  # its turn has not come, or it was never put in the queue
        del request  # see the module


def silent(wait_s: float) -> RegistryUnavailableError:
    """The error of who got no answer for so long."""
    return RegistryUnavailableError(
        f"Ray's control service (GCS) did not answer within {wait_s:.1f} s, and the registry can't be found without it: it is "
        "restarting, stopped, or overloaded; try again, or allow a longer timeout"
    )

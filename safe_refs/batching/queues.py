"""The queue of a group (see `groups`), and the thread that sends what is in it, for callers that wait and callers that don't.

What always holds: a request is answered once. If a shared call does not decide it, it is sent again by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from .._ray import serializing
from ..config import Deadline
from ..threads import Background, QueueThread, later

W = TypeVar("W")  # what is asked
A = TypeVar("A")  # what is answered

logger = logging.getLogger("safe_refs")

AT_ONCE = 1000  # requests in one call
_IDLE_S = 30.0  # then the group's thread ends
_LINGERS_S = 0.005  # how long to wait for the call of another thread, which takes 1.4 to 2 ms
_LOOKS_S = 0.0002  # how often to look whether it is over

OPEN: Any = object()  # in place of an answer: the request is to be sent again, by itself

Then = Callable[[A | None, Exception | None], None]


class Request(Generic[W, A]):
    """A request that may share a call with others.

    Args:
        what: what is asked.
        deadline: until when somebody waits for the answer.
        then: gets the answer or the error.
        waits: whether a thread waits for the answer. If the request must be sent again, that thread gets `OPEN`, and does it.
    """

    __slots__ = ("_then", "deadline", "waits", "what")

    def __init__(self, what: W, deadline: Deadline, then: Then[A], *, waits: bool = False) -> None:
        self.what: W | None = what
        self.deadline = deadline
        self.waits = waits
        self._then = [then]  # who takes it out answers; empty once there is an answer, or nobody waits any more

    @property
    def is_over(self) -> bool:
        """Whether there is an answer, or nobody waits for one any more."""
        return not self._then

    def drop(self) -> None:
        """Nobody waits any more."""
        self._then.clear()

    def answer(self, answer: A | None, error: Exception | None) -> None:
        """Give the answer or the error, unless somebody has done so."""
        try:
            then = self._then.pop()
        except IndexError:
            return
        # Dropped before the callback is called: from then on this thread uses no reference of this request.
        self.what = None
        try:
            then(answer, error)
        except BaseException:
            logger.exception("the callback of a request has failed")  # others' callbacks are still to be called


class GroupQueue(Generic[W, A]):
    """Requests of one kind to one registry: the half of a `Group` that is entered only while a call is under way.

    Args:
        alone: sends one request, and waits until it is decided, or the deadline is over.
        together: sends several; for each the answer, or its error; None if the request is to be sent again, by itself.
        no_answer: makes the error for a deadline that is over.
        background: its threads send posted requests again, by themselves, as that may take long.
        late: gets a request and its answer, in another thread, if a signal handler's exception has ended the wait for it.
    """

    def __init__(
        self,
        alone: Callable[[W, Deadline], A],
        together: Callable[[Sequence[W], Deadline], Sequence[A | Exception | None]],
        no_answer: Callable[[Deadline], Exception],
        background: Background,
        late: Callable[[W, A], None] | None = None,
    ) -> None:
        self._late = late
        self._alone = alone
        self._together = together
        self._no_answer = no_answer
        self._background = background
        # Ident of the thread whose own call is under way. It only says whether it is worth while to share a call: an interrupted
        # thread may leave it set, until its own next call, or until the group's thread has nothing to do.
        self._caller: int | None = None
        # Its queue has at most one request for each thread of the process, and what is posted. Those who post bound that.
        self._sending: QueueThread[Request[W, A]] = QueueThread("safe_refs-sending", self._serve, _IDLE_S)
        # Requests in shared calls, by the thread that sends them: at most AT_ONCE each. Two threads may send when a burst begins.
        self._under_way: dict[int, list[Request[W, A]]] = {}
        self._gone: Callable[[], Exception] | None = None  # once the group is closed: makes the error

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, nor waits."""
        # In the queue of a closed group stays what ends its thread.
        waits = self._gone is None and not self._sending.items.empty()
        return self._caller is None and not self._under_way and not waits

    def _ask_with_others(self, what: W, deadline: Deadline) -> A:
        if serializing.holds_lock():
            return self._alone(what, deadline)
        box: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        request: Request[W, A] = Request(what, deadline, lambda *answer: box.put(answer), waits=True)
        answer, error = OPEN, None
        try:
            if self._put(request):
                answer, error = box.get(timeout=min(max(0.0, deadline.at - time.monotonic()), threading.TIMEOUT_MAX))
        except Empty:
            request.drop()
            raise self._no_answer(deadline) from None
        except BaseException as failure:
            if isinstance(failure, Exception) or self._late is None:
                request.drop()
            else:
                later(partial(self._wait_late, what, request, box, deadline))
            raise
        request.drop()
        if error is not None:
            try:
                raise error
            finally:
                del error  # this frame is in its traceback
        if answer is OPEN:
            return self._alone(what, deadline)
        found: A = answer
        return found

    def _wait_late(
        self, what: W, request: Request[W, A], box: SimpleQueue[tuple[Any, Exception | None]], deadline: Deadline
    ) -> None:
        """Wait for the answer in place of a thread whose wait a signal handler's exception has ended."""
        try:
            answer, error = box.get(timeout=min(deadline.left_s(), threading.TIMEOUT_MAX))
        except Empty:
            return
        finally:
            request.drop()
        if self._late is not None and error is None and answer is not OPEN:
            self._late(what, answer)

    def post(self, what: W, deadline: Deadline, then: Then[A]) -> None:
        """Have a request sent soon. `then` gets the answer or the error, in another thread; it should not take long.

        Raises:
            RegistryUnavailableError: the group is closed.
            RuntimeError: no thread can be started.
        """
        if self._gone is not None:
            raise self._gone()
        request: Request[W, A] = Request(what, deadline, then)
        if serializing.holds_lock():
            # No other thread can send it before this one goes on; and this one may wait for it, by loading what it has just posted.
            self._send_again(request)
            return
        is_put = False
        try:
            is_put = self._put(request)
        finally:
            if not is_put:
                request.drop()
        if not is_put:
            raise RuntimeError(
                "this process can't start another thread, which safe_refs needs to send requests: end some, or raise the limit"
            )

    def _put(self, request: Request[W, A]) -> bool:
        is_put = self._sending.put(request)
        if self._gone is not None:  # it was closed meanwhile
            request.answer(None, self._gone())
        return is_put

    def close(self, gone: Callable[[], Exception]) -> None:
        """Answer all requests with this error, and end the thread. A call that is under way ends by its own deadline."""
        self._gone = gone
        for request in [*chain(*list(self._under_way.values())), *self._sending.taken()]:
            request.answer(None, gone())
        self._caller = None
        self._sending.put(None)

    # In the group's thread.

    def _serve(self, first: Request[W, A]) -> None:
        """Send a request with all others that wait. Each gets an answer, also if something ends this thread meanwhile."""
        mine, me = [first], threading.get_ident()
        del first
        try:
            self._send(mine, me)
        except BaseException:
            self._under_way.pop(me, None)
            for each in mine:
                each.answer(None, self._no_answer(each.deadline))
            raise

    def _send(self, mine: list[Request[W, A]], me: int) -> None:
        """Send requests with all others that wait, which are added to them.

        A call under way is waited for: the registry takes one after the other.
        """
        self._under_way[me] = mine
        until = time.monotonic() + _LINGERS_S
        while self._caller is not None and time.monotonic() < until:
            time.sleep(_LOOKS_S)
        mine += self._sending.taken(most=AT_ONCE - 1)
        mine[:] = [each for each in mine if not each.is_over]
        batch = [(each, each.what) for each in mine]  # `close` may answer a request, whose `what` is None then
        whats = [what for _, what in batch if what is not None]
        left = [each for each, what in batch if what is not None]
        del batch
        answers: list[A | Exception | None] = [None] * len(left)
        if left:
            # The latest deadline keeps nobody waiting: threads that wait, and event loops' futures, go by their own.
            deadline = max(each.deadline for each in left)
            try:
                answers = list(self._together(whats, deadline))
            except BaseException as error:
                # Of whatever kind it is: each request is sent again, by itself, and gets its own error.
                logger.debug("a call for several requests has failed: %r", error)
        # From here on this thread has no references but those in `left`, and drops each before its answer is given.
        self._under_way.pop(me, None)
        del whats
        left.reverse()
        answers.reverse()
        while left:
            self._answer(left.pop(), answers.pop())
        if self._sending.items.empty():
            self._caller = None

    def _answer(self, request: Request[W, A], answer: A | Exception | None) -> None:
        if isinstance(answer, Exception):
            request.answer(None, answer)
        elif answer is not None or request.waits:
            request.answer(OPEN if answer is None else answer, None)
        elif request.deadline.is_over():
            request.answer(None, self._no_answer(request.deadline))
        else:
            self._background.run(partial(self._send_again, request))

    def _send_again(self, request: Request[W, A]) -> None:
        """Send a posted request by itself."""
        what = request.what
        if what is None:
            return
        try:
            answer, error = self._alone(what, request.deadline), None
        except Exception as failure:
            answer, error = None, failure.with_traceback(None)
        except BaseException:
            # Whatever ends this thread, somebody may wait for the answer.
            request.answer(None, self._no_answer(request.deadline))
            raise
        del what
        request.answer(answer, error)

"""The queue of a group: what waits for its next call, who leads, and the thread that sends requests for which nobody waits.

`GroupQueue` is the half of a `Group` (see there) that a thread which finds nobody else enters only once its own call has ended.

What always holds: a request is answered once; a request for which a leader got no answer is queued again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any, Generic, TypeVar

from ..config import Deadline
from ..threads import Background

W = TypeVar("W")  # what is asked
A = TypeVar("A")  # what is answered

logger = logging.getLogger("safe_refs")

AT_ONCE = 1000  # requests in one call
_MARGIN_S = 5.0  # a leader that has not ended so long after its deadline was interrupted at the worst of moments
_IDLE_S = 30.0  # then the thread for posted requests ends

OPEN: Any = object()  # in place of an answer: to be asked again, by itself


class Request(Generic[W, A]):
    """A request that goes together with others. The group's lock guards all but `what`.

    Args:
        what: what is asked.
        deadline: until when somebody waits for the answer.
        then: gets the answer or the error of a posted request.

    Attributes:
        answer: the answer; `OPEN` if the request is to be sent again, by itself.
        error: what to raise instead.
        is_over: it has an answer or an error, or nobody waits for it any more.
        waiter: locked while a thread waits in the queue; released when there is an answer, or when that thread is to lead.
    """

    __slots__ = ("answer", "deadline", "error", "is_over", "then", "waiter", "what")

    def __init__(
        self, what: W, deadline: Deadline, then: Callable[[A | None, Exception | None], None] | None = None
    ) -> None:
        self.what = what
        self.deadline = deadline
        self.then = then
        self.answer: Any = None
        self.error: Exception | None = None
        self.is_over = False
        self.waiter: threading.Lock | None = None

    def forget(self) -> None:
        """Drop what is asked, and the references in it."""
        self.what = None  # type: ignore[assignment] # nobody looks any more


class GroupQueue(Generic[W, A]):
    """Requests of one kind to one registry, and the thread for those that are posted.

    Args:
        alone: sends one request, and waits until it is decided, or the deadline is over.
        together: sends several; for each the answer, or its error; None if the request is to be sent again, by itself.
        no_answer: makes the error for a deadline that is over.
        background: where posted requests are sent again, by themselves, as that may take long.
        inside: the threads that are in a group just now; see `Batched`.
    """

    def __init__(
        self,
        alone: Callable[[W, Deadline], A],
        together: Callable[[Sequence[W], Deadline], Sequence[A | Exception | None]],
        no_answer: Callable[[Deadline], Exception],
        background: Background,
        inside: set[int],
    ) -> None:
        self._alone = alone
        self._together = together
        self._no_answer = no_answer
        self._background = background
        self._inside = inside
        self._lock = threading.Lock()  # guards all that follows; held for microseconds
        self._called = threading.Condition(self._lock)  # the thread for posted requests waits for it
        # A thread has a call under way: its request, or, where that goes alone, a mark for it. None: no thread has.
        self._leader: object = None
        self._leads_until = 0.0  # by then that call ends, in monotonic seconds
        self._waiting = deque[Request[W, A]]()  # at most one for each thread of the process
        self._posted = deque[Request[W, A]]()  # bounded by those who post: `Unacknowledged`, and tasks of event loops
        self._under_way: list[Request[W, A]] = []  # in the leader's shared call: at most AT_ONCE
        self._clerk: Request[Any, Any] = Request(None, Deadline(0.0, 0.0))  # stands for the thread when that leads
        self._thread: threading.Thread | None = None
        self._is_idle = False  # that thread waits to be called
        self._gone: Callable[[], Exception] | None = None  # once the group is closed: makes the error

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, nor waits."""
        return self._leader is None and not self._waiting and not self._posted

    def post(self, what: W, deadline: Deadline, then: Callable[[A | None, Exception | None], None]) -> None:
        """Have a request sent soon. `then` gets the answer or the error, in another thread; it should not take long.

        Raises:
            RegistryUnavailableError: the group is closed.
            RuntimeError: no thread can be started.
        """
        request: Request[W, A] = Request(what, deadline, then)
        me = get_ident()
        if me in self._inside:
            self._background.run(partial(self._send_again, request))
            return
        self._inside.add(me)
        try:
            with self._lock:
                if self._gone is not None:
                    raise self._gone()
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name="safe_refs-sending", daemon=True)
                    thread.start()
                    self._thread = thread
                self._posted.append(request)
                if self._is_idle and self._is_free():
                    self._call_thread()
        finally:
            self._inside.discard(me)

    def close(self, gone: Callable[[], Exception]) -> None:
        """Answer all requests with this error, and end the thread. A call that is under way ends by its own deadline."""
        with self._lock:
            self._gone = gone
            left = [each for each in (*self._under_way, *self._waiting, *self._posted) if not each.is_over]
            for request in left:
                request.is_over, request.error = True, gone()
                if request.waiter is not None:
                    request.waiter.release()
            self._waiting.clear()
            self._posted.clear()
            self._called.notify_all()
        posted = [each for each in left if each.then is not None]
        if posted:
            self._background.run(partial(self._report, posted))

    def _answer(
        self, leader: object, batch: Sequence[Request[W, A]], answers: Sequence[A | Exception | None]
    ) -> list[Request[W, A]]:
        """Give requests their answers, pass the lead on, and return the requests that were posted."""
        posted, waiters = list[Request[W, A]](), list[threading.Lock]()
        with self._lock:
            for request, answer in zip(batch, answers, strict=True):
                if request.is_over:
                    continue
                request.is_over = True
                if isinstance(answer, Exception):
                    request.error = answer
                elif request.error is None:
                    request.answer = OPEN if answer is None else answer
                if request.then is not None:
                    posted.append(request)
                elif request.waiter is not None:
                    waiters.append(request.waiter)
            self._next(leader)  # before the others wake, who would compete with the next leader for the interpreter
            for waiter in waiters:
                waiter.release()
        return posted

    def _pass_on(self, leader: object) -> None:
        """The leader's call has ended: let another one lead, if there is something to send."""
        with self._lock:
            self._next(leader)

    def _next(self, leader: object) -> None:  # under the lock
        if self._leader is not leader:
            return  # it took so long that another one leads by now
        self._again()
        self._leader = None
        if self._posted and self._is_idle:
            self._call_thread()  # it takes along all that wait
        while self._waiting and self._leader is None:
            heir = self._waiting.popleft()
            waiter, heir.waiter = heir.waiter, None
            if waiter is not None and not heir.is_over:
                self._leader, self._leads_until = heir, heir.deadline.at
                waiter.release()

    def _is_free(self) -> bool:  # under the lock
        """Whether nobody leads; or the leader's thread was interrupted so that it could not pass the lead on."""
        return self._leader is None or self._leads_until + _MARGIN_S < time.monotonic()

    def _take_lead(self, request: Request[W, A]) -> None:  # under the lock
        self._again()
        self._leader, self._leads_until = request, request.deadline.at

    def _again(self) -> None:  # under the lock
        """Put what was in the leader's call and has no answer back into the queues, in front."""
        for request in reversed(self._under_way):
            if not request.is_over and request is not self._leader:
                (self._waiting if request.then is None else self._posted).appendleft(request)
        self._under_way = []

    def _gather(self, queue: deque[Request[W, A]]) -> None:  # under the lock
        """Move what is in a queue to the call that is about to be made."""
        while queue and len(self._under_way) < AT_ONCE:
            # First in one place, then gone from the other: an interruption in between sends a request twice, and loses none.
            if not queue[0].is_over:
                self._under_way.append(queue[0])
            queue.popleft()

    # The thread for posted requests.

    def _call_thread(self) -> None:  # under the lock
        self._leader, self._leads_until, self._is_idle = self._clerk, time.monotonic(), False
        self._called.notify()

    def _work(self) -> None:
        self._inside.add(get_ident())
        try:
            while self._take_posted():
                self._send_posted()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread, self._is_idle = None, False
            self._pass_on(self._clerk)
            self._inside.discard(get_ident())

    def _take_posted(self) -> bool:
        """Wait until this thread leads, and gather what it is to send; False when it is to end."""
        with self._lock:
            is_tired = False
            while self._leader is not self._clerk:
                if self._gone is not None or (is_tired and not self._posted):
                    self._thread = None  # here, so that whoever posts next starts another one
                    return False
                if self._posted and self._is_free():
                    self._take_lead(self._clerk)
                    break
                self._is_idle = True
                is_tired = not self._called.wait(_IDLE_S)
                self._is_idle = False
            self._gather(self._waiting)
            self._gather(self._posted)
            # Nobody is kept waiting by this: threads that wait leave by their own deadlines, and so do the futures of event loops.
            deadlines = [each.deadline for each in self._under_way]
            self._clerk.deadline = max(Deadline(time.monotonic(), 0.0), *deadlines)
            self._leads_until = self._clerk.deadline.at
        return True

    def _send_posted(self) -> None:
        batch = self._under_way
        answers: Sequence[A | Exception | None] = [None] * len(batch)
        try:
            answers = self._together([each.what for each in batch], self._clerk.deadline)
        except BaseException as error:
            # Whatever it was, also what ends a thread: each request is sent again, by itself, and gets its own error.
            logger.debug("a call for several requests has failed: %r", error)
        posted = self._answer(self._clerk, batch, answers)
        del batch, answers  # the references of those that waited are theirs alone from here on
        again = [each for each in posted if each.answer is OPEN]
        self._report([each for each in posted if each.answer is not OPEN])
        del posted
        while again:
            request = again.pop(0)
            if request.deadline.is_over():
                request.error = self._no_answer(request.deadline)
                self._report([request])
            else:
                self._background.run(partial(self._send_again, request))

    def _send_again(self, request: Request[W, A]) -> None:
        """Send a posted request by itself."""
        try:
            request.answer = self._alone(request.what, request.deadline)
        except Exception as error:
            request.error = error.with_traceback(None)
        except BaseException:
            request.error = self._no_answer(
                request.deadline
            )  # whatever ends this thread, somebody may wait for the callback
            raise
        finally:
            self._report([request])

    def _report(self, posted: list[Request[W, A]]) -> None:
        """Call the callbacks of posted requests that are answered."""
        while posted:
            request = posted.pop(0)
            then, request.then = request.then, None
            # The references go before the callback is called: from then on this thread uses none of this request.
            request.forget()
            try:
                if then is not None:
                    then(None if request.error is not None else request.answer, request.error)
            except BaseException:
                logger.exception("the callback of a request has failed")  # those of others are still to be called

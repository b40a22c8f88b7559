"""Group commit: calls that several threads make at the same time go out together, and pins that nobody waits for, too.

Whoever finds nobody sending sends, at once and by itself, so that a lone thread pays nothing. Who comes meanwhile waits in line; when
the answer is there, the first in line sends all that has gathered. Posted requests, which nobody waits for, are sent by a thread of
their own, which takes along whoever waits.

What always holds: a request is answered once; who waits doesn't wait longer than its own deadline; at most one call of a group is
under way, so that a slow registry makes groups larger and not calls more.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_MOST_AT_ONCE = 1000
_MARGIN_S = 5.0
_IDLE_S = 30.0


class Request:
    """Something asked for.

    Args:
        what: for whoever sends it.
        deadline: monotonic seconds, until when somebody waits for it.
        then: called with this request when it is answered, by the thread that sent it; for requests that are posted.

    Attributes:
        answer: what came back; never None.
        error: or what went wrong.
    """

    __slots__ = ("_gone", "_leads", "_waiter", "answer", "deadline", "error", "then", "what")

    def __init__(self, what: Any, deadline: float, then: Callable[[Request], None] | None = None) -> None:
        self.what = what
        self.deadline = deadline
        self.then = then
        self.answer: Any = None
        self.error: BaseException | None = None
        self._waiter: threading.Lock | None = None
        self._leads = False
        self._gone = False  # who waited for it waits no more

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer or an error."""
        return self.answer is not None or self.error is not None


class Group:
    """Requests of one kind to one registry.

    Args:
        send: sends some together and sets the answer or error of each; what it raises is the error of those that have neither.
        longest_s: how long that may take.
    """

    def __init__(self, send: Callable[[Sequence[Request]], None], longest_s: float) -> None:
        self._send = send
        self._longest_s = longest_s + _MARGIN_S
        self._lock = threading.Lock()
        self._line: deque[Request] = deque()
        self._busy_until: float | None = None  # while somebody leads: when it is taken for gone
        self._thread: threading.Thread | None = None
        self._wake = threading.Semaphore(0)

    def ask(self, request: Request) -> Any:
        """Send a request, perhaps with others, and wait for its answer.

        Raises:
            TimeoutError: none by its deadline; what was sent may still arrive.
            BaseException: its error.
        """
        with self._lock:
            leads = self._take_lead()
            if not leads:
                request._waiter = threading.Lock()
                request._waiter.acquire()
                self._line.append(request)
        if leads or self._follow(request):
            self._lead([request])
        if request.error is not None:
            try:
                raise request.error
            finally:
                request.error = request.what = (
                    None  # an error that led back to itself would keep all that its frames know
                )
        return request.answer

    def post(self, request: Request) -> None:
        """Have a request sent soon, without waiting for it."""
        with self._lock:
            self._line.append(request)
            if self._take_lead():
                self._hire()

    def _take_lead(self) -> bool:
        """Whether nobody leads, so that the caller does from now on; or whoever did was interrupted at the worst of moments."""
        now = time.monotonic()
        if self._busy_until is not None and now < self._busy_until:
            return False
        self._busy_until = now + self._longest_s
        return True

    def _hire(self) -> None:
        """Have the thread for posted requests lead."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="safe_refs-sending", daemon=True)
            self._thread.start()
        self._wake.release()

    def _follow(self, request: Request) -> bool:
        """Wait for the answer of a request that stands in line; whether it leads now instead."""
        waiter: Any = request._waiter
        try:
            if waiter.acquire(timeout=max(0.0, request.deadline - time.monotonic())):
                return request._leads
        except BaseException:
            if not self._leave(request) and request._leads:
                self._pass_on()
            raise
        if self._leave(request):
            raise TimeoutError
        return request._leads  # or it was answered in the last moment

    def _leave(self, request: Request) -> bool:
        """Stand in line no longer; False if it was answered or given the lead just now."""
        with self._lock:
            if request._leads or (request._waiter is not None and request._waiter.acquire(blocking=False)):
                return False
            request._gone = True
            if request in self._line:
                self._line.remove(request)
            return True

    def _work(self) -> None:
        while True:
            if not self._wake.acquire(timeout=_IDLE_S):
                with self._lock:
                    if not self._wake.acquire(blocking=False):
                        self._thread = None  # whoever needs one hires another
                        return
            self._lead([])

    def _lead(self, batch: list[Request]) -> None:
        """Send a request with all that waits, and pass the lead on."""
        mine = batch[0] if batch else None
        with self._lock:
            # Who waits takes along none that is posted: what is to be done when those are answered may take long.
            taken = [each for each in self._line if mine is None or each.then is None][: _MOST_AT_ONCE - len(batch)]
            if taken:
                chosen = set(map(id, taken))
                self._line = deque(each for each in self._line if id(each) not in chosen)
                batch += taken
        try:
            if batch:
                self._send(batch)
        except Exception as error:
            error.__traceback__ = None  # the frames below know the requests
            for request in batch:
                if not request.is_answered:
                    request.error = error if request is mine else copy.copy(error)
        except BaseException:
            # Ctrl-C hits this thread alone: the others' requests stand in line again, and may be sent twice.
            with self._lock:
                again = [each for each in batch if each is not mine and not each.is_answered and not each._gone]
                self._line.extendleft(reversed(again))
                batch = [each for each in batch if each not in again]
            raise
        finally:
            self._pass_on()
            for request in batch:
                if request._waiter is not None and request is not mine:
                    request._waiter.release()
            for request in batch:
                if request.then is not None:
                    request.then(request)

    def _pass_on(self) -> None:
        """Somebody else leads, if there is something to send."""
        with self._lock:
            if not self._line:
                self._busy_until = None
                return
            self._busy_until = time.monotonic() + self._longest_s
            heir = self._line[0]
            if heir._waiter is None:
                self._hire()
            else:
                self._line.remove(heir)
                heir._leads = True
                heir._waiter.release()

"""Threads of ours: one that serves a queue (`QueueThread`), and a small pool for jobs that may take long (`Background`).

A signal handler may raise between any two lines of the code that puts something into a queue here. A handler or a destructor may
also put something into the queue in the middle of that code. So nothing here has a lock. A step on a `SimpleQueue`, a deque or a set
is one step for the interpreter, which neither a signal nor a collection can divide.

What always holds: what is put is served once, and taken out in the order of arrival, whatever serving another raises; a thread
without work ends; whoever puts something waits for nobody. If two threads put something at the same moment, two threads may serve for
a while, but never none. If no thread can be started, and none runs, `QueueThread.put` says so, and `Background.run` does the work
itself. (CPython's `SimpleQueue.get` may forget its timeout if another thread takes the item that has woken it just as the time is
over, seen with 3.11. Then an idle thread stays, and serves what is put next.)

The threads are daemons: the end of the process does not wait for them. A forked child has none of its parent's threads, and needs
queues of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

logger = logging.getLogger("safe_refs")

T = TypeVar("T")

_MOST_THREADS = 8
_IDLE_S = 5.0


class _Mark(threading.local):
    """Whether this thread is one that this module has started."""

    is_ours = False


# A destructor that runs in such a thread must not wait for one: for itself, or for another that waits for this one.
mark = _Mark()


def later(job: Callable[[], None]) -> None:
    """Have a thread of its own do what is left to do, while a signal handler's exception goes on. Raises no `Exception`."""
    with suppress(RuntimeError):  # the machine has no more threads, or Python is ending
        threading.Thread(target=job, name="safe_refs-giving-back", daemon=True).start()


class QueueThread(Generic[T]):
    """A thread that serves what is put, one item after the other. It starts when something is put, and ends when idle for long.

    Args:
        name: of the thread.
        serve: serves one item. It may take further ones, by `taken`.
        idle_s: after so many seconds without work the thread ends.

    Attributes:
        items: what waits to be served. Not bounded here: those who put something say what bounds it.
        thread: the thread; None while none runs.
    """

    def __init__(self, name: str, serve: Callable[[T], None], idle_s: float) -> None:
        self._name = name
        self._serve = serve
        self._idle_s = idle_s
        self.items: SimpleQueue[T | None] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def put(self, item: T | None) -> bool:
        """Have an item served; None has the thread end. False: no thread can be started, and the item stays in the queue."""
        self.items.put(item)
        if item is not None and (self.thread is None or not self.thread.is_alive()):
            # Two at once may start one each: see `_work`.
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if thread.ident is not None:
                    raise  # the thread runs: a signal handler has raised this
                return False
        return True

    def taken(self, within_s: float = 0.0, most: int | None = None) -> list[T]:
        """Take out what waits; if nothing does, wait that long for something. What stands behind a None stays."""
        taken: list[T] = []
        while most is None or len(taken) < most:
            try:
                item = self.items.get(timeout=0.0 if taken else within_s)
            except Empty:
                break
            if item is None:
                self.items.put(None)  # for the thread, which is to end
                break
            taken.append(item)
        return taken

    def _work(self) -> None:
        mark.is_ours = True
        # The thread sets this itself: it may have ended before the thread that started it goes on.
        self.thread = me = threading.current_thread()
        try:
            while (item := self._next()) is not None:
                try:
                    self._serve(item)
                except BaseException:  # also one that is to end a thread: who put something has nobody else
                    logger.exception(
                        "%s has failed at something", self._name, extra={"about": self._name}
                    )  # other items are served all the same
                del item  # it may hold references, which an idle thread must not keep alive
                if self.thread not in (None, me):
                    break  # one is enough
        finally:
            self._forget_thread()

    def _next(self) -> T | None:
        try:
            item = self.items.get(timeout=self._idle_s)
        except Empty:
            self._forget_thread()
        else:
            if item is None:
                self.items.put(None)  # for another thread, if two were started at once
            return item
        try:
            item = self.items.get_nowait()  # from a thread that put it while `thread` was still set
        except Empty:
            return None
        self.thread = threading.current_thread()
        return item

    def _forget_thread(self) -> None:
        if self.thread is threading.current_thread():
            self.thread = None


class Background:
    """A pool of threads. A job that takes long does not delay the jobs behind it, as long as not all threads have such jobs."""

    def __init__(self) -> None:
        # Not bounded here: the callers bound it, as each of them waits for its job, or has a limit of its own.
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Threads that wait for a job, or have just got one. Each puts itself in and takes itself out, so that no interrupted caller
        # leaves one in that doesn't wait any more.
        self._waiting: set[int] = set()
        self._threads: set[threading.Thread] = set()  # at most _MOST_THREADS

    def run(self, job: Callable[[], None]) -> None:
        """Have a thread run the job, in the order of arrival. If no thread can be started, run it here and now."""
        self._jobs.put(job)
        self._start_if_needed()

    def _start_if_needed(self) -> None:
        """Start a thread if there are more jobs than threads that wait for one."""
        if self._jobs.qsize() > len(self._waiting):
            self._start()

    def _start(self) -> None:
        if len(self._threads) >= _MOST_THREADS:
            return  # one of the running threads will take the job
        thread = threading.Thread(target=self._work, name="safe_refs-background", daemon=True)
        try:
            self._threads.add(thread)
            thread.start()
        except BaseException as error:
            if thread.ident is None:
                self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise
            # The machine has no more threads, or Python is ending.
            while not self._threads:
                try:
                    self._run(self._jobs.get_nowait())
                except Empty:
                    break

    def _work(self) -> None:
        mark.is_ours = True
        try:
            while (job := self._next()) is not None:
                self._run(job)
                del job  # it may hold references, which an idle thread must not keep alive
        finally:
            self._threads.discard(threading.current_thread())
            if not self._jobs.empty():  # a job came while this thread was still in the set
                self._start()

    def _next(self) -> Callable[[], None] | None:
        """The next job, waited for; None if none comes for long."""
        me, job = threading.get_ident(), None
        try:
            job = self._jobs.get_nowait()
        except Empty:
            self._waiting.add(me)
            try:
                job = self._jobs.get(timeout=_IDLE_S)
            except Empty:
                pass
            finally:
                self._waiting.discard(me)
        if job is None:
            try:
                job = self._jobs.get_nowait()  # of somebody who still saw this thread wait
            except Empty:
                return None
        self._start_if_needed()  # for another one, of somebody who still saw this thread wait, or was interrupted
        return job

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException:
            # The thread goes on: other jobs may be waiting for it.
            logger.exception("a job in the background has failed")

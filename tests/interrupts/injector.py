"""Does something at one chosen line of safe_refs, as a signal handler could between any two lines: raises, or calls safe_refs.

`python -m tests.interrupts.injector ADDRESS MODE EVERY WAY...` goes through ways to use safe_refs, one run for every line that a way
executes in our files in this thread, and prints what it found as JSON. It is a process of its own, with a connection of its own, so
that nobody else's threads, hooks or leases matter.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray

import safe_refs
from safe_refs import config, slots, terms
from safe_refs._ray import requests
from safe_refs._ray.native import core_worker
from tests.support.cluster import as_actor

from .ways import BOUND_S, WAYS, Made, Way

OURS = str(Path(safe_refs.__file__).parent) + os.sep
ENDS_S = 8.0  # until a lease that an interrupted call may have begun is gone


class TimeLimitError(BaseException):
    """What a job runner's time limit raises in a signal handler."""


class Injector:
    """Calls something with every line of ours counted; at one of them `what` is called, once.

    Args:
        at: the ordinal number of the line; 0 for none.
        what: what comes in between; if it raises, that line does.
    """

    def __init__(self, at: int = 0, what: Callable[[], None] | None = None) -> None:
        self.lines = 0
        self.where = ""
        self._at = at
        self._what = what

    def run(self, call: Callable[[], Any]) -> Any:
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._at and self._what is not None and not _is_entry_of_exit(frame):
                self.where = f"{frame.f_code.co_filename[len(OURS) :]}:{frame.f_lineno}"
                self._what()
        return self._line


def _is_entry_of_exit(frame: FrameType) -> bool:
    """Whether a `with` block is about to be left, and no line has been executed for that: nothing in Python can help there."""
    return frame.f_code.co_name == "__exit__" and frame.f_lineno == frame.f_code.co_firstlineno + 1


class Found:
    """What one process has found."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.injections = 0
        self.hung: list[str] = []
        self.held: list[str] = []
        self.leases: list[str] = []
        self.swallowed: list[str] = []
        self.failed: list[str] = []
        self.slowest_s = 0.0


class Tracer:
    """Goes through ways.

    Args:
        raises: an exception comes in between; otherwise calls.
        every: at each so manieth line.
    """

    def __init__(self, raises: bool, every: int) -> None:
        self.found = Found()
        self._raises = raises
        self._every = every
        self._own = ray.put("own")
        self._maker = _maker()
        self._borrowed = ray.get(self._maker.make.remote(), timeout=60)[0]
        self._other = ray.put("other")
        self._calls: list[bytes] = []
        self._before: Any = None

    def go(self, name: str) -> None:
        way = WAYS[name]
        ref = self._borrowed if way.borrows else self._own
        for _ in range(3):  # until what is known from the last call is known
            counted = Injector()
            made: Made = []
            counted.run(partial(way.act, way.begin(ref, made), made))
            safe_refs.release(made)
        self.found.lines[name] = counted.lines
        self._before = self._state(ref)
        for at in range(1, counted.lines + 1, self._every):
            self._once(name, way, ref, at)

    def _once(self, name: str, way: Way, ref: Any, at: int) -> None:
        made: Made = []
        begun = way.begin(ref, made)
        self._calls = [safe_refs.dumps(self._other), safe_refs.dumps(self._other)]
        injector = Injector(at, self._raise if self._raises else self._call)
        self.found.injections += 1
        came = False
        started = time.monotonic()
        where = ""
        try:
            injector.run(partial(way.act, begun, made))
        except TimeLimitError:
            came = True
        except Exception as error:
            where = f"{name} {at} {injector.where}"
            self.found.failed.append(f"{where}: the call: {error!r}")
            traceback.print_exc()
        where = f"{name} {at} {injector.where}"
        if self._raises and injector.where and not came:
            self.found.swallowed.append(where)
        self._note(where, started, "the call itself")
        with self._bounded(where, "what ends it"):
            safe_refs.release(made)
        del begun, made
        with self._bounded(where, "what was at hand"):
            safe_refs.release(self._calls)
        self._check(where, ref)

    def _raise(self) -> None:
        raise TimeLimitError

    def _call(self) -> None:
        """What a handler, or a destructor, might do."""
        kept, gone = self._calls
        safe_refs.release(safe_refs.dumps([self._other]))
        assert ray.get(safe_refs.loads(kept), timeout=5) == "other"
        assert safe_refs.release(gone) == 1

    @contextlib.contextmanager
    def _bounded(self, where: str, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self.found.failed.append(f"{where}: {what}: {error!r}")
            traceback.print_exc()
        self._note(where, started, what)

    def _note(self, where: str, started: float, what: str) -> None:
        took_s = time.monotonic() - started
        self.found.slowest_s = max(self.found.slowest_s, took_s)
        if took_s > BOUND_S:
            self.found.hung.append(f"{where}: {what} took {took_s:.1f} s")

    def _check(self, where: str, ref: Any) -> None:
        with self._bounded(where, "the same thread"):
            self._use()
        with self._bounded(where, "another thread"):
            thread = threading.Thread(target=self._use, daemon=True)
            thread.start()
            thread.join(BOUND_S)
            if thread.is_alive():
                self.found.hung.append(f"{where}: another thread")
        until = time.monotonic() + ENDS_S
        before = self._before
        while (after := self._state(ref)) != before and time.monotonic() < until:
            gc.collect()
            time.sleep(0.002)
        if after != before:
            kind = self.found.leases if after[0] != before[0] else self.found.held
            kind.append(f"{where}: {before} before, {after} after")
            self._before = after  # each is reported once

    def _use(self) -> None:
        payload = safe_refs.dumps(self._other)
        safe_refs.loads(payload)
        assert safe_refs.release(payload) == 1

    def _state(self, ref: Any) -> Any:
        """What must be as it was: leases, the thread's state, the collector, and how often Ray counts the reference here."""
        stats = safe_refs.stats()
        counted = core_worker().get_all_reference_counts().get(ref.hex().encode(), {})
        return (
            stats.live_leases if stats else 0,
            slots.state.writing,
            slots.state.reading,
            terms.current.get(),
            config.waiting.get(),
            requests.this_thread.opens,
            len(requests._pending),
            (gc.isenabled(), len(gc.callbacks), sys.getswitchinterval()),
            (counted.get("local"), counted.get("submitted")),
            sum(thread.name == "safe_refs-sending" for thread in threading.enumerate()) > 6,
        )


def _maker() -> Any:
    class Maker:
        def make(self) -> list[Any]:
            self.ref = ray.put("borrowed")
            return [self.ref]

    return as_actor(Maker).remote()


def main() -> None:
    address, mode, every, *names = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    os.environ["SAFE_REFS_TIMEOUT"] = "20"
    os.environ["SAFE_REFS_REGISTRY"] = f"traced-{os.getpid()}"
    safe_refs.init()
    tracer = Tracer(mode == "raise", int(every))
    try:
        for name in names or WAYS:
            tracer.go(name)
    finally:
        safe_refs.shutdown()
    print(json.dumps(vars(tracer.found)))


if __name__ == "__main__":
    main()

"""Calls of safe_refs from an event loop: threads make them, and the loop goes on.

What always holds: a task that is cancelled leaves nothing held: leases that a thread makes for it end as soon as they have begun.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import ParamSpec, TypeVar, cast

from . import asks, callers, envelope, lifetimes
from .handle import SafeRef

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(call: Callable[P, T], *, bounds: bool = True) -> Callable[P, Coroutine[object, None, T]]:
    """A function of `safe_refs`, awaitable: a thread calls it. `bounds`: its `timeout` bounds the whole call."""
    named = inspect.signature(call)

    @functools.wraps(call)
    async def awaited(*args: P.args, **kwargs: P.kwargs) -> T:
        timeout = named.bind(*args, **kwargs).arguments.get("timeout")
        within_s = await asks.waits_s(timeout) if bounds else math.inf
        return await callers.to_thread(partial(call, *args, **kwargs), within_s)

    awaited.__doc__, awaited.__module__ = f"`safe_refs.{call.__name__}`, awaited.", f"{__package__}.aio"
    return awaited


async def made(make: Callable[[], T], timeout: float | timedelta | None) -> T:
    """Make leases in a thread. Who is cancelled meanwhile doesn't get them, so that they end as soon as they have begun."""
    return await undoable(make, _end, timeout)


async def undoable(make: Callable[[], T], undo: Callable[[T], None], timeout: float | timedelta | None) -> T:
    """What `make` returns, in a thread. Who is cancelled, or gets no answer in time, doesn't get it, and it is undone in a thread."""
    kept: list[T] = []  # at most one; who takes it out sees to its end
    is_gone = False

    def run() -> T:
        found = make()
        kept.append(found)
        if is_gone:
            _undo(kept, undo)
        return found

    try:
        return await callers.to_thread(run, await asks.waits_s(timeout))
    except BaseException:
        is_gone = True
        _undo(kept, partial(_later, undo))
        raise


def _undo(made: list[T], undo: Callable[[T], None]) -> None:
    while made:
        try:
            found = made.pop()
        except IndexError:  # the other thread was quicker
            break
        undo(found)


async def made_durably(make: Callable[[], T], timeout: float | timedelta | None = None) -> T:
    """The same in a thread of its own, as it may take long, and the loop has but a few; who is cancelled has it given up.

    Nothing there waits for a thread, so that `make` ends by its own deadlines.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    gone = threading.Event()

    def answer(found: T | None, error: BaseException | None) -> None:
        if future.done():
            _later(_end, found)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, found))

    def run() -> None:
        from .assembly import given_up

        given_up.set(gone)
        found, failure = None, None
        try:
            found = make()
        except BaseException as error:  # whatever it is, who awaits is to have it
            failure = error
        try:
            loop.call_soon_threadsafe(answer, found, failure)
        except RuntimeError:  # the loop has been closed meanwhile
            _end(found)

    threading.Thread(target=callers.context().run, args=(run,), name="safe_refs-durable", daemon=True).start()
    try:
        return await future
    except BaseException:
        gone.set()
        raise


def _later(undo: Callable[[T], None], made: T) -> None:
    """Undo something from an event loop: a thread does it, as it may have to look for the registry."""
    try:
        asyncio.get_running_loop().run_in_executor(None, undo, made)
    except RuntimeError:  # the loop has ended, or its threads have
        undo(made)


def _end(made: object) -> None:
    if made is None:
        return
    for target in made if isinstance(made, list) else [made]:
        if isinstance(target, SafeRef) or envelope.is_payload(target):
            asks.release_later(lifetimes.address_of(target))

"""`pipeline` and `flush`: passing references on without waiting for the registry each time.

What always holds: what was passed on without waiting is held when `flush` returns, or it raises; `pipeline` flushes at its end, and
an orderly end of the process does, too.
"""

from __future__ import annotations

import contextvars
import logging
from contextlib import ContextDecorator
from datetime import timedelta
from functools import partial
from typing import NoReturn

from . import _settings, callers, config
from .payloads import outside
from .registry import known

logger = logging.getLogger("safe_refs")

_NOT_FLUSHED = (
    "a pipeline could not flush: what was passed on inside may not be held; the error that ended it is raised"
)


@outside
def flush(timeout: float | timedelta | None = None) -> None:
    """Wait until the registry holds all that this process passed on with `wait=False`.

    Args:
        timeout: seconds to wait; default from `init` or `SAFE_REFS_TIMEOUT`.

    Raises:
        RegistryUnavailableError: not all is held in time; it is still tried, so `flush` may be called again.
        RegistryFullError: or another error of `dumps`: that of the first that failed since the last `flush`. Nothing of a failed one
            is held. What was passed on inside a `pipeline` is its own: it is raised by a `flush` inside, or by the pipeline's end.
    """
    deadline = _settings.deadline(timeout)
    # Not even an import where there is nothing: a forked child may have the lock of an import that a thread of its parent's was in.
    if known.has_begun:
        from . import assembly

        assembly.flush(deadline)


_NOT_FLUSHED = (
    "a pipeline could not flush: what was passed on inside may not be held; the error that ended it is raised"
)


class Pipeline(ContextDecorator):
    """What `pipeline()` gives: a context manager, also an asynchronous one, for one use."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._before: contextvars.Context | None = None  # in which both variables are as they were before the block
        self._is_open = False

    def __repr__(self) -> str:
        return f"<pipeline {'open' if self._is_open else 'not entered' if self._before is None else 'closed'}>"

    def _recreate_cm(self) -> Pipeline:
        return Pipeline(self._timeout)  # as a decorator: one for each call

    def __enter__(self) -> Pipeline:
        if self._before is not None:
            raise RuntimeError("a pipeline can be entered once: call pipeline() again for another")
        from .assembly import Account, current_account

        self._before = contextvars.copy_context()
        try:
            current_account.set(Account())
            config.waiting.set(False)
            self._is_open = True
            return self
        except BaseException:  # a signal handler's: the block is not entered, and so is not left, either
            self._leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._end(error)
        except BaseException:
            self._leave()  # once more: a signal handler may raise at any line of that
            raise

    def _end(self, error: BaseException | None) -> None:
        try:
            flush(self._timeout)
        except Exception:
            if error is None:
                raise
            logger.exception(_NOT_FLUSHED)
        finally:
            self._leave()

    async def __aenter__(self) -> Pipeline:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            await self._end_async(error)
        except BaseException:
            self._leave()
            raise

    async def _end_async(self, error: BaseException | None) -> None:
        try:
            await callers.to_thread(partial(flush, self._timeout), _settings.timeout_s(self._timeout))
        except Exception:
            if error is None:
                raise
            logger.exception(_NOT_FLUSHED)
        finally:
            self._leave()

    def __await__(self) -> NoReturn:
        raise TypeError("pipeline() is entered, not awaited: async with pipeline()")

    def _leave(self) -> None:
        from .assembly import current_account

        if self._before is not None:
            config.waiting.set(self._before.get(config.waiting))
            current_account.set(self._before.get(current_account))
        self._is_open = False


def pipeline(*, timeout: float | timedelta | None = None) -> Pipeline:
    """A context manager: inside, `dumps` and `pin` don't wait, unless they are called with `wait=True`; at its end it flushes.

    It is the thread's or the asyncio task's that entered it, and covers whatever code that calls. `async with` works, too: its end
    doesn't block the event loop.

    Args:
        timeout: seconds to wait at its end; default from `init` or `SAFE_REFS_TIMEOUT`.

    Raises:
        Exception: at the end, as from `flush`, unless the block raised something itself.
    """
    return Pipeline(None if timeout is None else config.seconds(timeout, "timeout"))

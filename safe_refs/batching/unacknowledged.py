"""Pins that nobody waits for, until they are held.

What always holds: such a pin keeps its references alive until the registry holds them or refuses; each is counted off once; `flush`,
and an orderly end of the process, wait for all that were posted before; what went wrong is told to whoever's account it is on.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import threading
from collections import OrderedDict

from .. import _ray
from ..errors import LeaseReleasedError, RegistryUnavailableError
from . import anchoring, exits, outbox, releasing
from .pinning import Pin
from .site import Site

logger = logging.getLogger("safe_refs")

_MOST = 100_000  # at a time; then `post` waits for some to be held
_MOST_FAILED = 100  # errors that an account keeps
_LAST_WAIT_S = 30.0


class Account:
    """Whose pins they are: a pipeline's, or those of the rest of the process."""

    def __init__(self) -> None:
        self.failed: list[Exception] = []


class _Posts:
    """All that is posted and not held yet, by number."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: OrderedDict[int, Account] = OrderedDict()
        self.last = 0
        self.goals: list[int] = []  # up to which number somebody waits
        self.hooked = False

    def are_over(self, number: int) -> bool:
        """Whether all up to that one are."""
        return not self.waiting or next(iter(self.waiting)) > number


_posts = _Posts()
_everybody = Account()
current: contextvars.ContextVar[Account] = contextvars.ContextVar("safe_refs_account", default=_everybody)


def post(registry: str, wanted: Pin, timeout: float, here: Site) -> None:
    """Have a registry hold references soon. What goes wrong is logged, and raised by `flush`."""
    if not _posts.hooked:
        _hook()
    with _posts.changed:
        if len(_posts.waiting) >= _MOST:
            _posts.changed.wait_for(lambda: len(_posts.waiting) < _MOST, timeout)
        _posts.last += 1
        number = _posts.last
        _posts.waiting[number] = current.get()
        anchoring.sending = True

    def over(_: object, error: Exception | None) -> None:
        _note(number, error)

    try:
        outbox.send(registry, wanted, timeout, here, over)
    except BaseException:
        # It may stand in line already. The registry refuses it if it hears of the release first.
        releasing.release_later(registry, [wanted.lease])
        _note(number, None)
        raise


def flush(timeout: float, account: Account | None = None) -> None:
    """Wait until every pin that was posted before is held.

    Args:
        timeout: seconds.
        account: whose errors are raised; by default the current one's.

    Raises:
        RegistryUnavailableError: not all in time; they are still tried.
        SafeRefsError: what the first of those that failed since the last `flush` failed with; nothing of theirs is held.
    """
    account = account or current.get()
    with _posts.changed:
        last = _posts.last
        _posts.goals.append(last)
        try:
            over = _posts.changed.wait_for(lambda: _posts.are_over(last), timeout)
        finally:
            _posts.goals.remove(last)
        failed, account.failed = account.failed, []
        waiting = sum(number <= last for number in _posts.waiting)
    if failed:
        if len(failed) > 1:
            logger.warning("%d pins that nobody waited for have failed; the first error is raised", len(failed))
        try:
            raise failed[0]
        finally:
            failed.clear()
    if not over:
        raise RegistryUnavailableError(
            f"{waiting} pin(s) that nobody waited for are not held after {timeout:g} s: the registry is overloaded, stopped, or its "
            "node can't be reached; they are still tried: flush again"
        )


def _note(number: int, error: Exception | None) -> None:
    """A pin is held, or has failed."""
    if isinstance(error, LeaseReleasedError):
        error = None  # its release, or its scope's end, has overtaken it, and wins
    with _posts.changed:
        account = _posts.waiting.pop(number, None)
        if account is None:
            return
        anchoring.sending = bool(_posts.waiting)
        if error is not None and len(account.failed) < _MOST_FAILED:
            account.failed.append(error)
        if len(_posts.waiting) == _MOST - 1 or (_posts.goals and _posts.are_over(min(_posts.goals))):
            _posts.changed.notify_all()
    if error is not None:
        logger.error("a payload was made without waiting, and its references could not be held: %s", error)


def _hook() -> None:
    """An orderly end of this process waits for what was posted, while Ray still answers."""
    _posts.hooked = True
    _ray.call_before_exit(_flush_at_exit)
    atexit.register(_flush_at_exit)
    os.register_at_fork(after_in_child=_forget)


def _flush_at_exit() -> None:
    if _posts.waiting:
        try:
            flush(_LAST_WAIT_S, _everybody)
        except Exception:
            # The process ends all the same, and what comes after this is still to be done.
            logger.exception("the process ends, and references that it passed on without waiting are not held")
        exits.hand_over()  # which may have run already, and found less


def _forget() -> None:
    """A forked child has none of the threads that would send."""
    global _posts
    _posts = _Posts()

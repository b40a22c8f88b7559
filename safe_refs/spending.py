"""Reading what a use of a lease gave; if it can't be opened, the use is given back.

What always holds: giving back ends by its deadline, a thread does it for an event loop, and the error that is raised is the one that
has kept the object from being opened.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from . import _settings, callers, checks, terms, threads
from ._ray import serializing
from .config import Deadline
from .envelope import Header, LeaseAddress
from .payloads import client
from .slots import Opened, Reading, opening

logger = logging.getLogger("safe_refs")

_GIVES_BACK_S = 2.0  # at most, before the error is raised that has kept an object from being opened
# Before references go back to a registry that has just dropped them. Ray tells an object's owner that a process has dropped it by a
# message of its own. If that comes after the process has got the object again, the owner takes it to have none (seen with 2.60 on a
# busy machine, in 1 of 1,000 returns, without safe_refs too: the object is then lost as soon as the reader lets go of it).
_OWNER_HEARS_S = 0.1


class Use(NamedTuple):
    """A use of a lease that this process has made, and may have to give back.

    Attributes:
        address: the lease.
        use: its id; empty for one that counts nowhere.
        take: whether it has taken the lease.
        refs: what the process has got by it.
    """

    address: LeaseAddress
    use: bytes
    take: bool
    refs: Sequence[Any]


def give_back(uses: Sequence[Use], timeout: float | timedelta | None) -> None:
    """Give uses back, as what they gave could not be opened. Waits a little; logs what goes wrong, and raises no `Exception`.

    If a signal handler's exception ends the wait, a thread goes on with it.
    """
    uses = [each for each in uses if each.use]
    try:
        if uses:
            _give_back(uses, timeout)
    except Exception as error:
        logger.warning("%d use(s) could not be given back, and stay spent: %s", len(uses), error)
    except BaseException:
        threads.later(partial(give_back, uses, timeout))
        raise
    finally:
        del uses  # an error keeps this frame


@serializing.outside
def _give_back(uses: Sequence[Use], timeout: float | timedelta | None) -> None:
    from .registry import giving_back
    from .registry.verbs import wanted

    here = client()
    time.sleep(_OWNER_HEARS_S)
    seconds = min(_GIVES_BACK_S, _settings.deadline(timeout).timeout_s)
    spent = [(wanted(each.address, here, slot=None, take=each.take, use=each.use), each.refs) for each in uses]
    giving_back.give_back(here, spent, set(), Deadline(time.monotonic() + seconds, seconds))


def opened(uses: Sequence[Use]) -> None:
    """What these uses gave has been opened, and none is given back any more: the leases that they took need no scope.

    Uses of payloads inside one that is being taken go to that one: it may not be opened yet.
    """
    how = around.how
    for each in uses:
        if how is not None and how.take and how.holds(each.address.lease):
            how.uses.append(each)
        elif each.take:
            terms.ended(each.address.registry, [each.address.lease])


class How:
    """What the caller of `loads` has said, which is said for payloads inside that payload, too, whoever opens them.

    A payload is inside of another if its bytes are. Others that are opened meanwhile are not: a signal handler or a destructor may
    load what it likes.

    Args:
        inside: the pickle in whose bytes they are.
        resolve: as for `loads`, like `take`.
        take: see `resolve`.
        until: when the caller's timeout is over, if there is one.
        uses: of what was taken inside, to be given back if the whole can't be opened.
    """

    __slots__ = ("_at", "_inside", "resolve", "take", "until", "uses")

    def __init__(self, inside: Any, resolve: bool, take: bool, until: Deadline | None, uses: list[Use]) -> None:
        self._inside = inside
        self.resolve = resolve
        self.take = take
        self.until = until
        self.uses = uses
        self._at = 0  # where the last one was found: they are nearly always opened in their order

    def holds(self, lease: bytes) -> bool:
        """Whether the payload of a lease is inside."""
        pattern = re.compile(re.escape(lease))
        found = pattern.search(self._inside, self._at) or pattern.search(self._inside)
        if found is not None:
            self._at = found.start()
        return found is not None

    def reaching(self, leases: Sequence[bytes], resolve: bool, take: bool, timeout: Any) -> tuple[bool, bool, Any]:
        """What holds for payloads, if one of them is inside: `resolve`, `take` and `timeout`, where these are said for them alone."""
        resolve, take = checks.flag(resolve, "resolve"), checks.flag(take, "take")
        if not any(map(self.holds, leases)):
            return resolve, take, timeout
        if self.until is not None:
            left_s = self.until.left_s()
            timeout = left_s if timeout is None else min(checks.seconds(timeout, "timeout"), left_s)
        resolve = resolve and self.resolve
        return resolve, resolve and (take or self.take), timeout


class _Around(threading.local):
    """What is said for payloads inside of the one that this thread is opening; None if nothing is."""

    how: How | None = None


around = _Around()


def within(
    leases: Sequence[bytes], resolve: bool, take: bool, timeout: float | timedelta | None
) -> tuple[bool, bool, float | timedelta | None, Deadline | None]:
    """What holds for payloads that are to be opened now (see `How.reaching`), and until when their caller waits, if it says so."""
    if around.how is not None:
        resolve, take, timeout = around.how.reaching(leases, resolve, take, timeout)
    return resolve, take, timeout, None if timeout is None else _settings.deadline(timeout)


@contextmanager
def unless_opened(uses: list[Use], timeout: float | timedelta | None) -> Iterator[None]:
    """A context manager in which what those uses gave is opened: if that fails, they are given back, and dropped from the list."""
    try:
        yield
    except BaseException:
        try:
            give_back(uses, timeout)
        finally:
            uses.clear()  # the error keeps the callers' frames
        raise


async def give_back_async(uses: list[Use], timeout: float | timedelta | None) -> None:
    """`give_back`, awaited; the uses are dropped from the list."""
    import asyncio

    spent = uses.copy()
    uses.clear()
    if any(each.use for each in spent):
        try:
            given = asyncio.get_running_loop().run_in_executor(None, give_back, spent, timeout)
        except RuntimeError:  # the loop's threads have ended
            give_back(spent, timeout)
        else:
            del spent
            await asyncio.wait([given], timeout=callers.MARGIN_S)  # it goes on, if the loop's threads are busy


def new_use(header: Header, take: bool) -> bytes:
    """An id for a use of a payload's lease, if the use may count, and so may have to be given back; else nothing."""
    return os.urandom(8) if take or "uses" in header.terms else b""


def reading(
    header: Header,
    values: Sequence[Any],
    resolve: bool,
    use: bytes = b"",
    take: bool = False,
    timeout: float | timedelta | None = None,
    *,
    inside: Any = b"",
    until: Deadline | None = None,
    uses: list[Use] | None = None,
) -> AbstractContextManager[None]:
    """While it lasts, a payload's inner pickle is opened: `values` from `handle.slot_values`, with the same `resolve` and `take`.

    Args:
        header: of the payload.
        values: see above.
        resolve: see above.
        use: by which they came, if it may count: it is given back if opening fails.
        take: see above.
        timeout: for giving back.
        inside: the inner pickle, if `resolve`, `take` and `until` are to reach the payloads in it.
        until: when the caller's timeout is over, if it gave one.
        uses: where to put the uses of these, if the caller gives them back itself.
    """
    inner = opening(Reading(header.tag, values, Opened(header.address, header.kinds, resolve)))
    mine = Use(header.address, use, take, values) if use and resolve else None
    if mine is None and resolve and not take and until is None:
        return inner
    return reaching(inner, inside, mine, timeout, resolve=resolve, take=take, until=until, uses=uses)


def plainly(
    data: Any, resolve: bool, take: bool, until: Deadline | None, uses: list[Use] | None = None
) -> AbstractContextManager[None]:
    """While it lasts, a pickle is opened that is no payload, but may have payloads in it. Arguments as of `reading`."""
    inner: AbstractContextManager[None] = nullcontext()
    if resolve and not take and until is None:
        return inner
    return reaching(inner, data, resolve=resolve, take=take, until=until, uses=uses)


@contextmanager
def reaching(
    inner: AbstractContextManager[None],
    inside: Any,
    use: Use | None = None,
    timeout: float | timedelta | None = None,
    *,
    resolve: bool,
    take: bool,
    until: Deadline | None,
    uses: list[Use] | None = None,
) -> Iterator[None]:
    """A context manager: in it, a pickle is opened, and what is said reaches payloads in it. Arguments as of `reading`."""
    mine = [] if use is None else [use]
    del use  # an error may keep this frame
    before = around.how
    with unless_opened(mine, timeout):
        try:
            try:
                around.how = How(inside, resolve, take, until, mine if uses is None else uses)
                with inner:
                    yield
            finally:
                around.how = before
        finally:
            around.how = before  # once more: a signal handler may raise at any line
        opened(mine)

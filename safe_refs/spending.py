"""Reading what a use of a lease gave; if it can't be opened, the use is given back.

What always holds: giving back ends by its deadline, a thread does it for an event loop, and the error that is raised is the one that
has kept the object from being opened.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from . import _settings, callers, terms, threads
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
    """What these uses gave has been opened, and none is given back any more: the leases that they took need no scope."""
    for each in uses:
        if each.take:
            terms.ended(each.address.registry, [each.address.lease])


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
) -> AbstractContextManager[None]:
    """While it lasts, a payload's inner pickle is opened: `values` from `handle.slot_values`, with the same `resolve`.

    If they came by a use that may count, it is given back if opening fails.
    """
    inner = opening(Reading(header.tag, values, Opened(header.address, header.kinds, resolve)))
    return _once(inner, Use(header.address, use, take, values), timeout) if use and resolve else inner


@contextmanager
def _once(inner: AbstractContextManager[None], use: Use, timeout: float | timedelta | None) -> Iterator[None]:
    uses = [use]
    del use  # an error may keep this frame
    with unless_opened(uses, timeout):
        with inner:
            yield
        opened(uses)

"""Pins, loads and releases on their way to the registry: those of many threads together, many at once, and pins nobody waits for.

Between the public functions and `pinning`, `resolving` and `releasing`, which do one thing at a time. One request alone goes straight
through. Several go out in one call to each shard that has to do with them; what that call can't settle at once (a shard is down, a
lease counts its uses, a limit is passed) is asked again by itself, which is safe, as ids are the caller's.

What always holds: who waits is told the truth about its own request, within its own timeout; a pin that nobody waits for keeps its
references alive until the registry holds them or refuses (see `posting`).
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import _ray
from ..envelope import LeaseAddress
from ..errors import RegistryUnavailableError, SafeRefsError
from ..threads import Background
from . import contact, pinning, releasing, resolving, site
from .grouping import Group, Request
from .pinning import Pin
from .resolving import Wanted
from .site import Site

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs")

_AT_ONCE = 1000  # leases in one call

_groups: dict[tuple[str, _ray.Connection, str, float], Group] = {}
_groups_lock = threading.Lock()
_aside = Background()

Identity = tuple[bytes, int]
P = ParamSpec("P")
R = TypeVar("R")


def _bare_errors(call: Callable[P, R]) -> Callable[P, R]:
    """Errors lose the frames below: these know the error, as a reply, and so, round in a circle, would keep the call's references."""

    @functools.wraps(call)
    def bare(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    return bare


class _Alone:
    """An answer that is none: ask again, by itself."""


_ALONE = _Alone()


@_bare_errors
def pin(registry: str, wanted: Pin, timeout: float, here: Site) -> Identity:
    """Have a registry hold references, and wait until it does; see `pinning.pin`.

    Raises:
        RegistryFullError: a limit would be passed.
        RegistryUnavailableError: no answer in time. As with every error, nothing stays held.
    """
    request = Request(wanted, time.monotonic() + timeout)
    try:
        answer = _pins(registry, timeout, here).ask(request)
    except TimeoutError:
        releasing.release_later(registry, [wanted.lease])
        raise contact.late(registry, timeout) from None
    except BaseException:
        releasing.release_later(registry, [wanted.lease])
        raise
    if answer is _ALONE:
        answer = pinning.pin(registry, wanted, timeout, here, request.deadline)
    found: Identity = answer
    return found


@_bare_errors
def pin_many(registry: str, wanted: Sequence[Pin], timeout: float, here: Site) -> list[Identity]:
    """The same for several leases: all are held, or none.

    Raises:
        RegistryFullError: as for `pin`, and so on.
    """
    deadline = time.monotonic() + timeout
    done: list[Identity] = []
    try:
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            for each, answer in zip(some, pinning.pin_together(registry, some, deadline, timeout, here), strict=True):
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    done.append(pinning.pin(registry, each, timeout, here, deadline))
                else:
                    done.append(answer)
    except BaseException:
        releasing.release_later(registry, [each.lease for each in wanted])
        raise
    return done


@_bare_errors
def resolve(address: LeaseAddress, timeout: float, *, slot: int | None = None, take: bool = False) -> list[Ref]:
    """The references of a lease; see `resolving.resolve`."""
    here = site.site()
    site.check_cluster(address, here)
    wanted = resolving.wanted(address, here, slot=slot, take=take)
    request = Request(wanted, time.monotonic() + timeout)
    try:
        answer = _resolves(address.registry, timeout, here).ask(request)
    except TimeoutError:
        raise contact.late(address.registry, timeout) from None
    if answer is _ALONE:
        answer = resolving.resolve(wanted, timeout, here, request.deadline)
    refs: list[Ref] = answer
    return refs


@_bare_errors
def resolve_many(addresses: Sequence[LeaseAddress], timeout: float, *, take: bool = False) -> list[list[Ref]]:
    """The references of several leases, in one call to each shard that holds some.

    Raises:
        LeaseError: one has ended, as for `resolve`.
    """
    here, deadline = site.site(), time.monotonic() + timeout
    found: list[list[Ref]] = []
    for address in addresses:
        site.check_cluster(address, here)
    rows = [resolving.wanted(address, here, slot=None, take=take) for address in addresses]
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        answers: dict[int, list[Ref]] = {}
        for registry in dict.fromkeys(row.address.registry for row in some):
            places = [place for place, row in enumerate(some) if row.address.registry == registry]
            theirs = resolving.resolve_together(registry, [some[place] for place in places], deadline, here)
            answers.update((place, refs) for place, refs in zip(places, theirs, strict=True) if refs is not None)
        for place, row in enumerate(some):
            if place not in answers:
                answers[place] = resolving.resolve(row, timeout, here, deadline)
        found += [answers[place] for place in range(len(some))]
    return found


def release(addresses: Iterable[LeaseAddress], timeout: float) -> int:
    """End leases; how many that ended. Those that had ended before, or were lost, count 0."""
    here = site.site()
    by_registry: dict[str, list[bytes]] = {}
    for address in addresses:
        site.check_cluster(address, here)
        by_registry.setdefault(address.registry, []).append(address.lease)
    return sum(release_ids(registry, leases, timeout) for registry, leases in by_registry.items())


@_bare_errors
def release_ids(registry: str, leases: Sequence[bytes], timeout: float) -> int:
    """End leases of a registry of this cluster by their bare ids; how many that ended."""
    here = site.site()
    request = Request((leases, site.origin(here)), time.monotonic() + timeout)
    try:
        answer = _releases(registry, timeout, here).ask(request)
    except TimeoutError:
        raise contact.late(registry, timeout) from None
    ended: int = answer[0]
    return ended


def send(registry: str, wanted: Pin, timeout: float, here: Site, then: Callable[[Any, Exception | None], None]) -> None:
    """Have a registry hold references soon, and call `then` with the identity that holds them, or with the error."""
    lease = wanted.lease

    def finish(request: Request) -> None:
        answer, error = _answer(request, lambda: pinning.pin(registry, request.what, timeout, here, request.deadline))
        if error is not None:
            releasing.release_later(registry, [lease])
        request.what = None  # the references go before anybody is told: from then on this thread uses none
        then(answer, error)

    _pins(registry, timeout, here).post(Request(wanted, time.monotonic() + timeout, _or_aside(finish)))


def send_resolve(
    address: LeaseAddress,
    timeout: float,
    then: Callable[[Any, Exception | None], None],
    *,
    slot: int | None = None,
    take: bool = False,
) -> None:
    """Ask for a lease's references, and call `then` with them, or with the error."""
    here = site.site()
    site.check_cluster(address, here)
    wanted = resolving.wanted(address, here, slot=slot, take=take)

    def finish(request: Request) -> None:
        then(*_answer(request, lambda: resolving.resolve(wanted, timeout, here, request.deadline)))

    _resolves(address.registry, timeout, here).post(Request(wanted, time.monotonic() + timeout, _or_aside(finish)))


def _or_aside(finish: Callable[[Request], None]) -> Callable[[Request], None]:
    """What is to be asked again, by itself, may take long: the thread that sends leaves it to others."""

    def done(request: Request) -> None:
        if request.answer is _ALONE:
            _aside.run(partial(finish, request))
        else:
            finish(request)

    return done


def _answer(request: Request, alone: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """A posted request's answer, or its error."""
    try:
        if request.answer is _ALONE:
            return alone(), None
    except Exception as failure:  # whoever posted it is told
        return None, failure.with_traceback(None)
    return request.answer, request.error if isinstance(request.error, Exception) else None


def _forget() -> None:
    """A forked child has none of the threads that would send, and may have locks that somebody held."""
    global _aside, _groups_lock
    _aside, _groups_lock = Background(), threading.Lock()
    _groups.clear()


os.register_at_fork(after_in_child=_forget)


def _pins(registry: str, timeout: float, here: Site) -> Group:
    found = _groups.get(("pin", here.connection, registry, timeout))
    if found is not None:
        return found

    def together(wanted: Sequence[Pin], deadline: float) -> Sequence[Identity | Exception | None]:
        return pinning.pin_together(registry, wanted, deadline, timeout, here)

    def alone(request: Request) -> Identity:
        return pinning.pin(registry, request.what, timeout, here, request.deadline)

    send = partial(_send, alone, together)
    return _begin("pin", here, registry, timeout, send)


def _resolves(registry: str, timeout: float, here: Site) -> Group:
    found = _groups.get(("resolve", here.connection, registry, timeout))
    if found is not None:
        return found

    def together(wanted: Sequence[Wanted], deadline: float) -> Sequence[list[Ref] | None]:
        return resolving.resolve_together(registry, wanted, deadline, here)

    def alone(request: Request) -> list[Ref]:
        return resolving.resolve(request.what, timeout, here, request.deadline)

    send = partial(_send, alone, together)
    return _begin("resolve", here, registry, timeout, send)


def _releases(registry: str, timeout: float, here: Site) -> Group:
    found = _groups.get(("release", here.connection, registry, timeout))
    if found is not None:
        return found

    def send(batch: Sequence[Request]) -> None:
        ended = releasing.release_ids(registry, [each.what for each in batch], timeout)
        for each in batch:
            theirs = ended.intersection(each.what[0])
            ended -= theirs
            each.answer = (len(theirs),)

    return _begin("release", here, registry, timeout, send)


def _send(
    alone: Callable[[Request], Any],
    together: Callable[[Sequence[Any], float], Sequence[Any]],
    batch: Sequence[Request],
) -> None:
    """Send a batch: a lone one that waits as it is, others together. What that doesn't settle is to be asked again, alone.

    It takes no longer than who sends may wait, whose request is the first, and in line since earlier than the others.
    """
    first = batch[0]
    if len(batch) == 1 and first.then is None:
        first.answer = alone(first)
        return
    answers: Sequence[Any] = [None] * len(batch)
    try:
        answers = together([each.what for each in batch], first.deadline)
    except Exception as error:
        # Whatever it was, each asks again by itself, and is told what that says.
        if first.then is None and isinstance(error, RegistryUnavailableError):
            first.error = error.with_traceback(None)  # its time is over; the others, who may have some left, ask again
    for request, answer in zip(batch, answers, strict=True):
        if isinstance(answer, Exception):
            request.error = answer
        elif request.error is None:
            request.answer = _ALONE if answer is None else answer


def _begin(kind: str, here: Site, registry: str, timeout: float, send: Callable[[Sequence[Request]], None]) -> Group:
    with _groups_lock:
        if len(_groups) > 4 * contact.MOST_CONTACTS:
            _groups.clear()
        return _groups.setdefault((kind, here.connection, registry, timeout), Group(send, timeout))

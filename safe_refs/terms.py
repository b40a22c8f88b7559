"""The terms of a lease, as callers give them: checked, and completed by what the scope and the process say. Pure.

A scope is a context variable: each thread has its own, and each asyncio task begins with that of the code that started it.
"""

from __future__ import annotations

import contextvars
import warnings
import weakref
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from . import _settings, checks, config
from .config import waiting
from .registry.records import NO_TERMS, Terms


class Surrounding:
    """What a scope says of the leases that are made inside it; `scopes.Scope` is one.

    Attributes:
        ttl: seconds to live of leases that have no ttl of their own; None says nothing, as for all of these.
        label: their label.
        durable: whether they hold copies.
        registry: the registry that they go to.
        timeout: seconds that the calls wait.
        around: the scope around this one.
        is_open: whether leases can still be made in it.
    """

    ttl: float | None = None
    label: str | None = None
    durable: bool | None = None
    registry: str | None = None
    timeout: float | None = None
    around: Surrounding | None = None
    is_open: bool = True

    def note(self, registry: str, lease: bytes) -> bool:
        """Take a lease, which may not have begun yet, into this scope; False if it is closed."""
        raise NotImplementedError

    def forget(self, registry: str, leases: Iterable[bytes]) -> None:
        """Leases have ended."""
        raise NotImplementedError


current: contextvars.ContextVar[Surrounding | None] = contextvars.ContextVar("safe_refs_scope", default=None)


class Asked(NamedTuple):
    """What a caller asks for.

    Attributes:
        terms: of the lease.
        waits: whether the call waits until the registry holds it.
        durable: whether it is to hold copies.
        registry: name of the registry that is to hold it.
        timeout_s: seconds to wait for that.
        given_s: the same, where the caller has said so: for the whole call, copies included.
    """

    terms: Terms
    waits: bool
    durable: bool
    registry: str
    timeout_s: float
    given_s: float | None


def ask(
    ttl: float | timedelta | None,
    uses: int | None,
    label: str | None,
    wait: bool | None,
    durable: bool | None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> Asked:
    """Check what a caller asks for, and fill in the defaults: the innermost scope's that has one, else the process's.

    Raises:
        ValueError: `ttl` or `uses` isn't above zero, `label` is too long, or no text that can be written, or `durable=True` and
            `wait=False`.
        TypeError: one of them is of the wrong type.
    """
    settings = _settings.current(timeout)
    seconds = given_s = None
    if ttl is not None or uses is not None or label is not None:
        seconds, uses = checked(ttl, uses, label)
    if wait is not None or durable is not None or registry is not None or timeout is not None:
        wait, durable, given_s = checked_way(wait, durable, registry, timeout)
    copies = durable
    if current.get() is not None:
        if ttl is None:
            seconds = innermost("ttl")
        label = innermost("label") if label is None else label
        copies = innermost("durable") if durable is None else durable
        registry = innermost("registry") if registry is None else registry
        given_s = innermost("timeout") if given_s is None else given_s
    if ttl is None and seconds is None:
        seconds = settings.ttl_s
    if seconds is None and settings.require_ttl:
        raise ValueError(
            "a lease needs a time to live here, as require_ttl says: give ttl=…, or a default for it by init(ttl=…), SAFE_REFS_TTL "
            "or a scope"
        )
    waits = waiting.get() if wait is None else wait
    if waits is None:
        waits = settings.wait
    terms = NO_TERMS if seconds is None and uses is None and label is None else Terms(seconds, uses, label)
    return Asked(
        terms,
        copies or waits,
        bool(copies),
        settings.registry if registry is None else registry,
        settings.timeout_s if given_s is None else given_s,
        given_s,
    )


def checked(
    ttl: float | timedelta | None, uses: int | None = None, label: str | None = None
) -> tuple[float | None, int | None]:
    """Check terms, where no lease is made of them yet, too.

    Returns:
        The time to live in seconds, None for no limit; and the uses.

    Raises:
        ValueError: `ttl` or `uses` isn't above zero, or `label` is too long, or no text that can be written.
        TypeError: one of them is of the wrong type.
    """
    if label is not None:
        checks.label(label)
    seconds = None if ttl is None else checks.ttl_s(ttl)
    return seconds, None if uses is None else checks.positive(uses, "uses", checks.MOST_USES)


def checked_way(
    wait: bool | None, durable: bool | None, registry: str | None, timeout: float | timedelta | None
) -> tuple[bool | None, bool | None, float | None]:
    """Check how a lease is to be made, where none is made, too.

    Returns:
        The first two, and the timeout in seconds.

    Raises:
        ValueError: `registry` is no name, `timeout` isn't above zero, or `durable=True` and `wait=False`.
        TypeError: one of them is of the wrong type.
    """
    if registry is not None:
        config.checked_name(registry)
    given_s = None if timeout is None else checks.seconds(timeout, "timeout")
    wait = None if wait is None else checks.flag(wait, "wait")
    durable = None if durable is None else checks.flag(durable, "durable")
    if durable and wait is False:
        raise ValueError("durable=True returns when the copies exist, so that it can't be had with wait=False")
    return wait, durable, given_s


def without_lease(
    ttl: float | timedelta | None,
    uses: int | None,
    durable: bool | None,
    label: str | None,
    wait: bool | None,
    registry: str | None,
    timeout: float | timedelta | None,
) -> None:
    """An object holds no references: check what was asked for it, and say that its terms are of no use."""
    checked(ttl, uses, label)
    _, durable, _ = checked_way(wait, durable, registry, timeout)
    if uses is not None or durable:
        warnings.warn(
            "the object holds no Ray references, so that it has no lease: uses and durable do nothing here. Its bytes can be loaded "
            "anywhere, at any time; safe_refs.put(value, …) gives a payload with a lease",
            stacklevel=3,
        )


def innermost(name: str) -> Any:
    """What the innermost open scope that sets this says; None if none sets it."""
    scope = open_scope(current.get())
    while scope is not None:
        said = getattr(scope, name)
        if said is not None:
            return said
        scope = open_scope(scope.around)
    return None


def open_scope(scope: Surrounding | None) -> Surrounding | None:
    """A scope, or the nearest one around it that is still open."""
    while scope is not None and not scope.is_open:
        scope = scope.around
    return scope


def note(registry: str, lease: bytes) -> None:
    """A lease is about to be made: it belongs to the innermost open scope, if there is one."""
    scope = open_scope(current.get())
    while scope is not None and not scope.note(registry, lease):
        scope = open_scope(scope.around)


# All scopes that are open, in whatever thread, so that a lease that ends can leave its scope. Bound: as many as users keep open;
# weak, so that a scope that nobody closed goes by itself. No lock: a destructor or a signal handler may come here at any time, in a
# thread that is here already. To add, to discard and to copy is one step each.
_open: set[weakref.ref[Surrounding]] = set()


def opened(scope: Surrounding) -> None:
    """A scope is open from now on."""
    _open.add(weakref.ref(scope, _open.discard))


def closed(scope: Surrounding) -> None:
    """A scope is closed."""
    _open.discard(weakref.ref(scope))


def ended(registry: str, leases: Iterable[bytes]) -> None:
    """This process has ended leases: their scopes needn't."""
    for each in list(_open):
        if (scope := each()) is not None:
            scope.forget(registry, leases)

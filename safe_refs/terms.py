"""The terms of a lease, as callers give them: checked, and completed by what the scope and the process say. Pure.

A scope is a context variable: each thread has its own, and each asyncio task begins with that of the code that started it.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from . import config
from .registry.records import NO_TERMS, Terms


class Surrounding:
    """What a scope says of the leases that are made inside it; `scopes.Scope` is one.

    Attributes:
        ttl: seconds to live of leases that have no ttl of their own; None says nothing, as for all of these.
        label: their label.
        durable: whether they hold copies.
        around: the scope around this one.
        is_open: whether leases can still be made in it.
    """

    ttl: float | None = None
    label: str | None = None
    durable: bool | None = None
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
        settings: of this process, as they are now.
    """

    terms: Terms
    waits: bool
    durable: bool
    settings: config.Settings


def ask(
    ttl: float | timedelta | None, uses: int | None, label: str | None, wait: bool | None, durable: bool | None
) -> Asked:
    """Check what a caller asks for, and fill in the defaults: the innermost scope's that has one, else the process's.

    Raises:
        ValueError: `ttl` or `uses` isn't above zero, `label` is no text that can be written, or `durable=True` and `wait=False`.
        TypeError: one of them is of the wrong type.
    """
    settings = config.settings(wait)
    if label is not None:
        if not isinstance(label, str):
            raise TypeError(f"label must be a string, not {type(label).__name__}")
        try:
            label.encode()
        except UnicodeEncodeError:
            raise ValueError(f"label must be text that can be written as UTF-8, not {label!r}") from None
    seconds = None if ttl is None else config.ttl_s(ttl)
    if uses is not None:
        uses = config.positive(uses, "uses")
    if durable and wait is False:
        raise ValueError("durable=True returns when the copies exist, so that it can't be had with wait=False")
    copies = durable
    if current.get() is not None:
        if ttl is None:
            seconds = innermost("ttl")
        label = innermost("label") if label is None else label
        copies = innermost("durable") if durable is None else durable
    if ttl is None and seconds is None:
        seconds = settings.ttl_s
    terms = NO_TERMS if seconds is None and uses is None and label is None else Terms(seconds, uses, label)
    return Asked(terms, copies or settings.waits, bool(copies), settings)


def innermost(name: str) -> Any:
    """What the innermost open scope says that says something; None if none does."""
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


# All scopes that are open, in whatever thread, so that a lease that ends can leave its scope. As many as users keep open; weak, so
# that a scope that nobody closed goes by itself. No lock: a destructor or a signal handler may come here at any time, in a thread
# that is here already. To add, to discard and to copy is one step each.
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

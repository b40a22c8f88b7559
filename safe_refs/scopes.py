"""`scope`: leases made inside end when it closes. `keepalive`: a lease lives as long as the process that renews it.

What always holds: a lease is noted in its scope before the registry is asked to hold it, so that whatever happens in between it is
released; a scope releases in one call a registry; what a closed scope's leftovers (a task that outlives it) make belongs to the
nearest scope around it that is still open.

The current scope is a context variable: each thread has its own, each asyncio task begins with that of the code that started it.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from . import config
from .envelope import LeaseAddress
from .errors import LeaseError, RegistryUnavailableError
from .registry import late

T = TypeVar("T")

logger = logging.getLogger("safe_refs")

_current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("safe_refs_scope", default=None)


class Scope:
    """What `scope()` gives: a context manager, also an asynchronous one, for one use.

    Args:
        ttl: time to live, in seconds, of leases made inside without one of their own.
        label: label of leases made inside without one of their own.
        durable: whether leases made inside hold copies, where they aren't told otherwise; None for what is so outside.
        addresses_of: gives the leases that a target names.
    """

    def __init__(
        self,
        ttl: float | None,
        label: str | None,
        durable: bool | None,
        addresses_of: Callable[[Any], Iterable[LeaseAddress]],
    ) -> None:
        self.ttl = ttl
        self.label = label
        self.durable = durable
        self._addresses_of = addresses_of
        self._lock = threading.Lock()
        self._leases: dict[tuple[str, bytes], None] | None = None
        self._around: Scope | None = None
        self._token: contextvars.Token[Scope | None] | None = None

    def __repr__(self) -> str:
        leases = self._leases
        return f"<scope {'closed' if leases is None else f'with {len(leases)} lease(s)'}>"

    def keep(self, target: T) -> T:
        """Let what `target` names outlive this scope; it belongs to the scope around, if there is one, as if made there.

        Args:
            target: a payload, a `SafeRef` or its text, a `PayloadInfo`, or an iterable of these. Leases not of this scope are left
                alone.

        Returns:
            The target, so that one can write `return scope.keep(payload)`.

        Raises:
            EnvelopeError: a target is cut or altered; nothing was kept.
            RuntimeError: the scope is closed: it has released its leases.
        """
        keys = [(address.registry, address.lease) for address in self._addresses_of(target)]
        with self._lock:
            if self._leases is None:
                raise RuntimeError("the scope is closed, and has released its leases: keep them before it ends")
            kept = [key for key in keys if key in self._leases]
            for key in kept:
                del self._leases[key]
        around = open_scope(self._around)
        for registry, lease in kept:
            if around is not None:
                around.note(registry, lease)
        return target

    def note(self, registry: str, lease: bytes) -> bool:
        """Take a lease, which may not have begun yet, into this scope; False if it is closed."""
        with self._lock:
            if self._leases is None:
                return False
            self._leases[(registry, lease)] = None
            return True

    @property
    def is_open(self) -> bool:
        """Whether leases can still be made in it."""
        return self._leases is not None

    def __enter__(self) -> Scope:
        if self._token is not None:
            raise RuntimeError("a scope can be entered once: call scope() again for another")
        self._leases = {}
        self._around = _current.get()
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._leave()
        try:
            self._release()
        except RegistryUnavailableError:
            if error is None:
                raise
            # The error that ended the block is the one to tell.
            logger.warning("a scope could not release its leases, as the registry did not answer", exc_info=True)

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._leave()
        try:
            import asyncio

            await asyncio.to_thread(self._release)
        except RegistryUnavailableError:
            if error is None:
                raise
            logger.warning("a scope could not release its leases, as the registry did not answer", exc_info=True)

    def _leave(self) -> None:
        if self._token is not None:
            try:
                _current.reset(self._token)
            except ValueError:
                # Closed in another task or thread than it was opened in (a fixture, a generator): that one's scope is its own.
                if _current.get() is self:
                    _current.set(self._around)

    def _release(self) -> None:
        with self._lock:
            leases, self._leases = self._leases or {}, None
        by_registry: dict[str, list[bytes]] = {}
        for registry, lease in leases:
            by_registry.setdefault(registry, []).append(lease)
        for registry, ids in by_registry.items():
            late.outbox.release_ids(registry, ids, config.timeout_s())


def open_scope(scope: Scope | None) -> Scope | None:
    """A scope, or the nearest one around it that is still open."""
    while scope is not None and not scope.is_open:
        scope = scope._around
    return scope


def current() -> Scope | None:
    """The innermost open scope of this thread or task."""
    return open_scope(_current.get())


def note(registry: str, lease: bytes) -> None:
    """A lease is about to be made: it belongs to the current scope, if there is one."""
    scope = current()
    while scope is not None and not scope.note(registry, lease):
        scope = open_scope(scope._around)


class KeepAlive:
    """What `keepalive()` gives: a context manager that renews leases from a thread of its own.

    Args:
        addresses: the leases.
        ttl: seconds that each renewal gives them; they are renewed three times in that time.
    """

    def __init__(self, addresses: Iterable[LeaseAddress], ttl: float) -> None:
        self._addresses = list(addresses)
        self._ttl = ttl
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: LeaseError | None = None

    @property
    def error(self) -> LeaseError | None:
        """How the first of the leases ended under way; None as long as all live."""
        return self._error

    def __enter__(self) -> KeepAlive:
        for address in self._addresses:
            late.resolving.renew(address, self._ttl, config.timeout_s())
        self._thread = threading.Thread(target=self._renew, name="safe_refs-keepalive", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(config.timeout_s())
        if self._error is not None and error is None:
            raise self._error

    def _renew(self) -> None:
        alive = list(self._addresses)
        pause = self._ttl / 3
        while alive and not self._stop.wait(pause):
            begun = time.monotonic()
            for address in list(alive):
                try:
                    late.resolving.renew(address, self._ttl, min(config.timeout_s(), self._ttl))
                except LeaseError as error:
                    alive.remove(address)
                    self._error = self._error or error
                except RegistryUnavailableError:
                    logger.warning("lease %s could not be renewed now; trying again", address.short_id)
            pause = max(0.0, self._ttl / 3 - (time.monotonic() - begun))


def default_ttl_s() -> float | None:
    """The time to live of a lease that is made here without one: the nearest scope's that has one, else the process's."""
    ttl: float | None = _nearest("ttl")
    return config.default_ttl_s() if ttl is None else ttl


def default_label() -> str | None:
    """The label of a lease that is made here without one: the nearest scope's that has one."""
    label: str | None = _nearest("label")
    return label


def default_durable() -> bool:
    """Whether a lease that is made here holds copies, where it isn't told: as the nearest scope says that says something."""
    return bool(_nearest("durable"))


def _nearest(term: str) -> Any:
    """What the nearest open scope says of a term that says anything; None if none does."""
    scope = current()
    while scope is not None:
        said = getattr(scope, term)
        if said is not None:
            return said
        scope = open_scope(scope._around)
    return None

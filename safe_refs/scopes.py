"""`scope`: leases made inside end when it closes. `keepalive`: a lease lives as long as the process that renews it.

What always holds: a lease is noted in its scope before the registry is asked to hold it, so that it is released whatever happens
in between; a scope releases in one call a registry; a lease that this process ends leaves its scope; what outlives a closed scope (a
task, say) makes its leases in the nearest scope around it that is still open.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from . import asks, config, payloads
from .envelope import LeaseAddress
from .errors import LeaseError, RegistryUnavailableError
from .terms import Surrounding, closed, current, open_scope, opened

T = TypeVar("T")

logger = logging.getLogger("safe_refs")


class Scope(Surrounding):
    """What `scope()` gives: a context manager, also an asynchronous one, for one use.

    Args:
        ttl: time to live, in seconds, of leases made inside without one of their own.
        label: label of leases made inside without one of their own.
        durable: default for `durable` of leases that are made inside; None for the default outside.
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
        self._lock = threading.RLock()  # guards `_leases`; a destructor may come while its thread has it
        self._leases: dict[tuple[str, bytes], None] | None = (
            None  # those that were made inside and live, as far as is known here
        )
        self._token: contextvars.Token[Surrounding | None] | None = None

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
        around = open_scope(self.around)
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

    def forget(self, registry: str, leases: Iterable[bytes]) -> None:
        """Leases have ended: the scope needn't release them."""
        with self._lock:
            if self._leases:
                for lease in leases:
                    self._leases.pop((registry, lease), None)

    @property
    def is_open(self) -> bool:  # type: ignore[override] # read only here
        """Whether leases can still be made in it."""
        return self._leases is not None

    def __enter__(self) -> Scope:
        if self._token is not None:
            raise RuntimeError("a scope can be entered once: call scope() again for another")
        self._leases = {}
        self.around = current.get()
        self._token = current.set(self)
        opened(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._leave()
        try:
            self._release()
        except RegistryUnavailableError:
            if error is None:
                raise
            # The error that ended the block is the one to raise.
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
                current.reset(self._token)
            except ValueError:
                # Closed in another task or thread than it was opened in (a fixture, a generator): that one's scope is its own.
                if current.get() is self:
                    current.set(self.around)

    def _release(self) -> None:
        with self._lock:
            leases, self._leases = self._leases or {}, None
        by_registry: dict[str, list[bytes]] = {}
        for registry, lease in leases:
            by_registry.setdefault(registry, []).append(lease)
        closed(self)
        for registry, ids in by_registry.items():
            payloads.client().sender.release(registry, ids, config.deadline())


class KeepAlive:
    """What `keepalive()` gives: a context manager that renews leases from a thread of its own.

    Args:
        addresses: the leases.
        ttl: seconds that each renewal gives them; they are renewed three times in that time.
    """

    def __init__(self, addresses: Iterable[LeaseAddress], ttl: float) -> None:
        self._addresses = list(addresses)
        self._ttl = ttl
        self._stop: threading.Event | None = None  # while the block runs
        self._thread: threading.Thread | None = None
        self._error: LeaseError | None = None
        self._failure: Exception | None = None  # an error of another kind, with which the last renewal failed

    @property
    def error(self) -> LeaseError | None:
        """How the first of the leases ended under way; None as long as all live."""
        return self._error

    def __enter__(self) -> KeepAlive:
        if self._stop is not None:
            raise RuntimeError("this keepalive is renewing already: call keepalive() again for another")
        for address in self._addresses:
            asks.renew(address, self._ttl, None)
        self._error, self._failure, self._stop = None, None, threading.Event()
        self._thread = threading.Thread(target=self._renew, args=(self._stop,), name="safe_refs-keepalive", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join(config.timeout_s())
        self._stop = None
        if error is None and (failure := self._error or self._failure) is not None:
            raise failure

    def _renew(self, stop: threading.Event) -> None:
        alive = list(self._addresses)
        pause = self._ttl / 3
        while alive and not stop.wait(pause):
            begun, failure = time.monotonic(), None
            for address in list(alive):
                try:
                    asks.renew(address, self._ttl, min(config.timeout_s(), self._ttl))
                except LeaseError as error:
                    alive.remove(address)
                    self._error = self._error or error
                except RegistryUnavailableError:
                    logger.warning("lease %s could not be renewed now; trying again", address.short_id)
                except (
                    Exception
                ) as error:  # whatever it is, the other leases are to be renewed, and the block gets it at its end
                    failure = error
                    logger.warning("lease %s could not be renewed; trying again", address.short_id, exc_info=True)
            self._failure = failure
            pause = max(0.0, self._ttl / 3 - (time.monotonic() - begun))

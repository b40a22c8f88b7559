"""`scope`: leases made inside end when it closes. `keepalive`: a lease lives as long as the process that renews it.

What always holds: a lease is noted in its scope before the registry is asked to hold it, so that it is released whatever happens
in between; a scope releases in one call a registry; a lease that this process ends leaves its scope. One that it takes does so when
the object has been opened: if the take is given back, it is the scope's still, and if the scope has closed meanwhile, it has ended.
What outlives a closed scope (a task, say) makes its leases in the nearest scope around it that is still open.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from typing import NoReturn, TypeVar

from . import _settings, asks, callers, payloads
from ._ray import workers
from .envelope import LeaseAddress
from .errors import LeaseError, RegistryUnavailableError
from .terms import Surrounding, closed, current, open_scope, opened

T = TypeVar("T")

logger = logging.getLogger("safe_refs")

_LOOKS_S = 0.5  # how often a keepalive looks whether this process has left its cluster
_MOST_NAMED = 5  # leases in a line of the log


class Scope(Surrounding):
    """What `scope()` gives: a context manager, also an asynchronous one, for one use.

    Args:
        ttl: time to live, in seconds, of leases made inside without one of their own.
        label: label of leases made inside without one of their own.
        durable: default for `durable` of leases that are made inside; None for the default outside.
        addresses_of: gives the leases that a target names.
        registry: the registry of leases made inside without one of their own.
        timeout: seconds that calls inside wait for it, and the end of the scope.
    """

    def __init__(
        self,
        ttl: float | None,
        label: str | None,
        durable: bool | None,
        addresses_of: Callable[[object], Iterable[LeaseAddress]],
        registry: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.ttl = ttl
        self.label = label
        self.durable = durable
        self.registry = registry
        self.timeout = timeout
        self._addresses_of = addresses_of
        # Those that were made inside and live, as far as is known here; None before and after. No lock: each change is one step for
        # the interpreter, and who takes a lease out is to see to it.
        self._leases: dict[tuple[str, bytes], None] | None = None
        self._is_entered = False

    def __repr__(self) -> str:
        leases, ended = self._leases, "closed" if self._is_entered else "not entered"
        label = "" if self.label is None else f", label {self.label!r}"
        ttl = "" if self.ttl is None else f", ttl {self.ttl:g} s"
        return f"<scope {ended if leases is None else f'with {len(leases)} lease(s)'}{label}{ttl}>"

    def keep(self, target: T) -> T:
        """Let what `target` names outlive this scope; it belongs to the scope around, if there is one, as if made there.

        Args:
            target: a payload, a `SafeRef` or its text, a `PayloadInfo`, or an iterable of these. Leases not of this scope are left
                alone.

        Returns:
            The target, so that one can write `return scope.keep(payload)`.

        Raises:
            EnvelopeError: a target is cut or altered; nothing was kept.
            RuntimeError: the scope is not entered yet, or is closed: it has released its leases.
        """
        keys = [(address.registry, address.lease) for address in self._addresses_of(target)]
        leases = self._leases
        if leases is None and not self._is_entered:
            raise RuntimeError(
                "the scope is not entered yet: keep leases inside of it (with safe_refs.scope() as scope: …)"
            )
        if leases is None:
            raise RuntimeError("the scope is closed, and has released its leases: keep them before it ends")
        kept = [key for key in keys if leases.pop(key, self) is None]
        around = open_scope(self.around)
        for registry, lease in kept:
            if around is not None:
                around.note(registry, lease)
        return target

    def note(self, registry: str, lease: bytes) -> bool:
        """Take a lease, which may not have begun yet, into this scope; False if it is closed."""
        leases = self._leases
        if leases is None:
            return False
        leases[(registry, lease)] = None
        # If it was closed in between, and has not seen the lease, the lease belongs to the scope around.
        return self._leases is not None or leases.pop((registry, lease), self) is not None

    def forget(self, registry: str, leases: Iterable[bytes]) -> None:
        """Leases have ended: the scope needn't release them."""
        mine = self._leases
        if mine:
            for lease in leases:
                mine.pop((registry, lease), None)

    @property
    def is_open(self) -> bool:  # type: ignore[override] # read only here
        """Whether leases can still be made in it."""
        return self._leases is not None

    def __enter__(self) -> Scope:
        if self._is_entered:
            raise RuntimeError("a scope can be entered once: call scope() again for another")
        self._is_entered, self._leases = True, {}
        self.around = current.get()
        try:
            current.set(self)
            opened(self)
            return self
        except BaseException:  # a signal handler's: the block is not entered, and so is not left, either
            self._leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._end(error)
        except BaseException:  # the registry's, or a signal handler's at any line
            self._leave()
            if self._leases is not None:  # it came before the release had begun
                self._release()
            raise

    def _end(self, error: BaseException | None) -> None:
        try:
            try:
                self._leave()
            finally:
                self._release()
        except RegistryUnavailableError:
            if error is None:
                raise
            # The error that ended the block is the one to raise.
            logger.warning(
                "a scope could not release its leases, as the registry did not answer: they live until their ttl, if any",
                exc_info=True,
            )

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._leave()
            await callers.to_thread(self._release, _settings.timeout_s(self.timeout))
        except RegistryUnavailableError:
            if error is None:
                raise
            logger.warning(
                "a scope could not release its leases, as the registry did not answer: they live until their ttl, if any",
                exc_info=True,
            )
        except BaseException:  # a signal handler's, a cancellation, a loop that has no threads any more
            self._leave()
            # If it came before the release had begun. The loop must not wait.
            leases, self._leases = self._leases or {}, None
            closed(self)
            _release_later(leases)
            raise

    def __await__(self) -> NoReturn:
        raise TypeError("scope() is entered, not awaited: async with scope()")

    def _leave(self) -> None:
        # Where it is closed in another task or thread than it was opened in (a fixture, a generator), that one's scope is its own.
        if current.get() is self:
            current.set(self.around)

    def _release(self) -> None:
        leases, self._leases = self._leases or {}, None
        by_registry: dict[str, list[bytes]] = {}
        try:
            closed(self)
            for registry, lease in list(leases):
                if leases.pop((registry, lease), self) is None:
                    by_registry.setdefault(registry, []).append(lease)
            for registry, ids in by_registry.items():
                payloads.client().sender.release(registry, ids, _settings.deadline(self.timeout))
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal handler's: nobody is to wait, and nothing is to stay
                for registry, ids in by_registry.items():
                    payloads.client().registry(registry).release_later(ids)
                _release_later(leases)
            raise


def _release_later(leases: Iterable[tuple[str, bytes]]) -> None:
    for registry, lease in list(leases):
        payloads.client().registry(registry).release_later([lease])


class KeepAlive:
    """What `keepalive()` gives: a context manager, also an asynchronous one, that renews leases from a thread of its own.

    A renewal only lengthens a lease's time, and leaves its terms as they are: so there is nothing to give back at the end.

    Args:
        addresses: the leases.
        ttl: seconds that they have left after a renewal, at least; they are renewed three times in that time.
        timeout: seconds that each renewal waits for the registry; None as elsewhere.
    """

    def __init__(self, addresses: Iterable[LeaseAddress], ttl: float, timeout: float | None = None) -> None:
        self._addresses = list(addresses)
        self._ttl = ttl
        self._timeout = timeout
        self._stop: threading.Event | None = None  # while the block runs
        self._thread: threading.Thread  # from when the block is entered
        self._error: LeaseError | None = None
        self._failure: BaseException | None = None  # an error of another kind, with which the last renewal failed

    def __repr__(self) -> str:
        state = "not renewing" if self._stop is None else "renewing"
        ended = "" if self._error is None else f", {type(self._error).__name__} of lease {self._error.lease}"
        return f"<keepalive of {len(self._addresses)} lease(s), ttl {self._ttl:g} s, {state}{ended}>"

    @property
    def error(self) -> LeaseError | None:
        """How the first of the leases ended under way; None as long as all live."""
        return self._error

    def __enter__(self) -> KeepAlive:
        stop = threading.Event()
        try:
            self._begin(stop)
            self._start(stop)
            return self
        except BaseException:  # also a signal handler's: the block is not entered, and so is not left, either
            self._leave(stop)
            raise

    async def __aenter__(self) -> KeepAlive:
        stop = threading.Event()
        try:
            self._begin(stop)
            await callers.to_thread(partial(self._start, stop), await asks.waits_s(self._timeout))
            return self
        except BaseException:  # also a cancellation, while the thread goes on
            self._leave(stop)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        stop = self._stop
        try:
            if stop is not None:
                stop.set()
                self._thread.join(_settings.timeout_s(self._timeout))
        finally:
            self._leave(stop)
        if error is None:
            self._raise()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        stop = self._stop
        try:
            if stop is not None:
                stop.set()
                timeout_s = await asks.waits_s(self._timeout)
                await callers.to_thread(partial(self._thread.join, timeout_s), timeout_s)
        finally:
            self._leave(stop)
        if error is None:
            self._raise()

    def __await__(self) -> NoReturn:
        raise TypeError("keepalive() is entered, not awaited: async with keepalive(payload, ttl)")

    def _begin(self, stop: threading.Event) -> None:
        if self._stop is not None:
            raise RuntimeError("this keepalive is renewing already: call keepalive() again for another")
        self._error, self._failure, self._stop = None, None, stop

    def _start(self, stop: threading.Event) -> None:
        connection = payloads.client().connection
        for address in self._addresses:
            asks.renew(address, self._ttl, self._timeout, lengthens=True)
        thread = threading.Thread(target=self._renew, args=(stop, connection), name="safe_refs-keepalive", daemon=True)
        if self._stop is stop:  # else nobody waits for the entry any more
            self._thread = thread
            thread.start()

    def _leave(self, stop: threading.Event | None) -> None:
        if stop is not None:
            stop.set()
            if self._stop is stop:
                self._stop = None

    def _raise(self) -> None:
        # What is raised gets a traceback, whose frames may know this object, so it is not kept here: that would be a cycle.
        failure, self._failure = copy(self._error) or self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure

    def _renew(self, stop: threading.Event, connection: workers.Connection) -> None:
        alive = list(self._addresses)
        at = time.monotonic() + self._ttl / 3
        while alive and not stop.wait(min(max(at - time.monotonic(), 0.0), _LOOKS_S)):
            if not workers.is_connected_by(connection):
                logger.warning(
                    "this process has left its Ray cluster, and no longer renews %d lease(s) that a keepalive() is for: %s",
                    len(alive),
                    ", ".join(each.short_id for each in alive[:_MOST_NAMED]) + ", …" * (len(alive) > _MOST_NAMED),
                )
                return
            if time.monotonic() < at:
                continue
            begun, failure = time.monotonic(), None
            for address in list(alive):
                if not workers.is_connected_by(connection):
                    break
                try:
                    asks.renew(address, self._ttl, min(_settings.timeout_s(self._timeout), self._ttl), lengthens=True)
                except LeaseError as error:
                    alive.remove(address)
                    self._error = self._error or error.with_traceback(None)  # which would keep what its frames know
                except RegistryUnavailableError:
                    if workers.is_connected_by(connection):
                        logger.warning("lease %s could not be renewed now; trying again", address.short_id)
                # Whatever it is, the other leases are to be renewed, and the block gets it at its end.
                except BaseException as error:
                    logger.warning("lease %s could not be renewed; trying again", address.short_id, exc_info=True)
                    failure = error.with_traceback(None)
            self._failure = failure
            at = begun + self._ttl / 3

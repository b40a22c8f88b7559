"""Group commit: requests that several threads make at the same time go to the registry in one call.

A thread that finds no call under way *leads*: it sends its own request at once, so that a single thread pays nothing. Threads that
come meanwhile queue. When the leader has its answer, the first in the queue leads, and sends all queued requests in one call.
Requests that are posted, for which nobody waits, are sent by a thread of the group, which also sends what is queued.

If a shared call does not decide a request (a shard is down, a lease counts its uses, a limit is reached), the request is sent again
by itself. That is safe, because the caller draws the ids.

What always holds: a request is answered once. A thread waits no longer than its own deadline, whoever leads. A group has at most one
shared call under way, so that a slow registry makes the calls larger, not more. If a leader fails or is interrupted, the requests
without an answer are queued again. A thread never waits for a request that is in a frame of its own (see `Batched`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ..config import Deadline
from ..errors import RegistryUnavailableError, SafeRefsError
from ..registry import verbs
from ..registry.calls import NoRegistryError, Registry
from ..registry.records import Identity, Origin
from ..registry.requests import Plan, Wanted
from ..threads import Background
from .queues import AT_ONCE, OPEN, A, GroupQueue, Request, W, logger

if TYPE_CHECKING:
    import ray

    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

_MOST_GROUPS = 64  # of a kind, but for those that are in use


class Group(GroupQueue[W, A]):
    """Requests of one kind to one registry; see `GroupQueue` for the arguments."""

    def ask(self, what: W, deadline: Deadline) -> A:
        """Send a request, perhaps with others, and wait for its answer.

        Raises:
            RegistryUnavailableError: no answer by the deadline; what was sent may still arrive. Or the group is closed.
            Exception: the request's error.
        """
        me = get_ident()
        if me in self._inside:
            return self._alone(what, deadline)
        self._inside.add(me)
        lead = object()
        try:
            with self._lock:
                is_first = self._leader is None and self._gone is None
                if is_first:
                    self._leader, self._leads_until = lead, deadline.at
            if is_first:
                return self._alone(what, deadline)
            request: Request[W, A] = Request(what, deadline)
            lead = request
            return self._ask_with_others(request)
        finally:
            # Whether this thread leads is looked up here, not remembered: Ctrl-C may come between any two lines above.
            if self._leader is lead:
                self._pass_on(lead)
            self._inside.discard(me)

    def _ask_with_others(self, request: Request[W, A]) -> A:
        waiter: threading.Lock | None = None
        with self._lock:
            if self._gone is not None:
                raise self._gone()
            if self._is_free():
                self._take_lead(request)
            else:
                request.waiter = waiter = threading.Lock()
                waiter.acquire()
                self._waiting.append(request)
        if waiter is not None:
            self._follow(request, waiter)
        if self._leader is request:
            try:
                self._lead(request)
            finally:
                self._pass_on(request)
        if request.error is not None:
            try:
                raise request.error
            finally:
                # This frame is in the error's traceback: a request that led back to the error would keep all that the frames know.
                request.error = None
                request.forget()
        if request.answer is OPEN:
            return self._alone(request.what, request.deadline)
        answer: A = request.answer
        return answer

    def _follow(self, request: Request[W, A], waiter: threading.Lock) -> None:
        """Wait in the queue until there is an answer, this thread is to lead, or the deadline is over."""
        came = False
        try:
            came = waiter.acquire(timeout=min(max(0.0, request.deadline.at - time.monotonic()), threading.TIMEOUT_MAX))
        finally:
            if not came:
                with self._lock:
                    # It may have been answered, or given the lead, in the last moment.
                    if not request.is_over and self._leader is not request:
                        request.is_over, request.error = True, self._no_answer(request.deadline)
                        if request in self._waiting:
                            self._waiting.remove(request)

    def _lead(self, mine: Request[W, A]) -> None:
        """Send a request with all others that wait. The call takes no longer than this thread may wait."""
        with self._lock:
            # What is posted waits for the group's thread: what its callbacks do may take long.
            batch = self._under_way = [mine]
            self._gather(self._waiting)
        if len(batch) == 1:
            mine.answer = self._alone(mine.what, mine.deadline)
            return
        answers: Sequence[A | Exception | None] = [None] * len(batch)
        try:
            answers = self._together([each.what for each in batch], mine.deadline)
        except RegistryUnavailableError as error:
            mine.error = error.with_traceback(None)
            if mine.deadline.is_over():
                return  # the others have time left: they are queued again
        except Exception as error:
            # Whatever it was: each sends its request again, by itself, and gets its own error.
            logger.debug("a call for several requests has failed: %r", error)
        self._answer(mine, batch, answers)


class Batched:
    """The `Sender` of a session (see `registry.protocols`) that sends together what is asked at the same time.

    A destructor or a signal handler may ask for something while its thread is in the middle of another request. If it queued, it
    could wait for that other request, which cannot go on meanwhile. So this keeps which threads are in a group; a request of such a
    thread goes out by itself.

    Errors lose their traceback: its frames refer to the error as the answer, and that cycle would keep the call's references alive
    until the next garbage collection.

    Args:
        session: whose registries it asks.

    Attributes:
        background: threads for what may take long.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.background = Background()
        self._inside: set[int] = set()  # the threads, by their idents, that are in a group now, and the groups' own
        # By registry: at most _MOST_GROUPS of each kind, but for those in use. No lock: each change is one step for the interpreter.
        self._pins: dict[str, Group[Plan, Identity]] = {}
        self._resolves: dict[str, Group[Wanted, list[Ref]]] = {}
        self._releases: dict[str, Group[tuple[Sequence[bytes], Origin], int]] = {}
        self._is_closed = False

    def pin(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """See `Sender`, as for all below."""
        group = self._pins.get(registry) or self._pin_group(registry)
        try:
            return group.ask(plan, deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def post(
        self, registry: str, plan: Plan, deadline: Deadline, then: Callable[[Identity | None, Exception | None], None]
    ) -> None:
        """The callback is called in another thread, and should not take long."""
        (self._pins.get(registry) or self._pin_group(registry)).post(plan, deadline, then)

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """In calls of a thousand; what such a call does not decide, by itself."""
        asked = self.session.registry(registry)
        try:
            # Not here: the frame that knows an answer which is an error must be none of those in its traceback.
            return _pin_many(asked, plans, deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """Perhaps with others."""
        group = self._resolves.get(row.address.registry) or self._resolve_group(row.address.registry)
        try:
            return group.ask(row, deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def post_resolve(
        self, row: Wanted, deadline: Deadline, then: Callable[[list[Ref] | None, Exception | None], None]
    ) -> None:
        """Resolve without waiting: `then` gets what the lease holds, or the error, in another thread."""
        name = row.address.registry
        (self._resolves.get(name) or self._resolve_group(name)).post(row, deadline, then)

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref]]:
        """In calls of a thousand; what such a call does not decide, by itself."""
        found: dict[int, list[Ref]] = {}
        try:
            for name in dict.fromkeys(row.address.registry for row in rows):
                registry = self.session.registry(name)
                places = [place for place, row in enumerate(rows) if row.address.registry == name]
                for start in range(0, len(places), AT_ONCE):
                    some = places[start : start + AT_ONCE]
                    answers = _resolve_together(registry, [rows[place] for place in some], deadline)
                    for place, refs in zip(some, answers, strict=True):
                        found[place] = verbs.resolve(registry, rows[place], deadline) if refs is None else refs
        except SafeRefsError as error:
            raise error.with_traceback(None) from None
        return [found[place] for place in range(len(rows))]

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """Perhaps with others. However long it waits for its turn, its deadline stays the same."""
        group = self._releases.get(registry) or self._release_group(registry)
        try:
            return group.ask((leases, self.session.origin()), deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def close(self) -> None:
        """See `Sender`. In a forked child it does nothing: a thread that the child doesn't have may hold a lock for ever."""
        self._is_closed = True
        if self.session.pid != os.getpid():
            return
        if get_ident() in self._inside:  # see above: this thread may hold a group's lock
            self.background.run(self._close_groups)
        else:
            self._close_groups()

    def _close_groups(self) -> None:
        kinds: tuple[dict[str, Group[Any, Any]], ...] = (self._pins, self._resolves, self._releases)
        for groups in kinds:
            for registry, group in list(groups.items()):
                group.close(partial(_gone, registry))

    def _pin_group(self, name: str) -> Group[Plan, Identity]:
        registry = self.session.registry(name)
        return self._begin(self._pins, registry, partial(_pin, registry), partial(_pin_together, registry))

    def _resolve_group(self, name: str) -> Group[Wanted, list[Ref]]:
        registry = self.session.registry(name)
        alone, together = partial(verbs.resolve, registry), partial(_resolve_together, registry)
        return self._begin(self._resolves, registry, alone, together)

    def _release_group(self, name: str) -> Group[tuple[Sequence[bytes], Origin], int]:
        registry = self.session.registry(name)
        alone, together = partial(_release, registry), partial(_release_together, registry)
        return self._begin(self._releases, registry, alone, together)

    def _begin(
        self,
        groups: dict[str, Group[W, A]],
        registry: Registry,
        alone: Callable[[W, Deadline], A],
        together: Callable[[Sequence[W], Deadline], Sequence[A | Exception | None]],
    ) -> Group[W, A]:
        if self._is_closed:
            raise _gone(registry.name)
        if len(groups) >= _MOST_GROUPS:
            for name, group in list(groups.items()):
                if group.is_idle:
                    groups.pop(name, None)
        made = Group(alone, together, registry.no_answer, self.background, self._inside)
        return groups.setdefault(registry.name, made)


def _gone(registry: str) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"the connection to Ray by which registry {registry!r} was asked has ended: call ray.init(address=...) for the cluster, and "
        "try again"
    )


def _pin_many(registry: Registry, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
    done: list[Identity] = []
    for start in range(0, len(plans), AT_ONCE):
        some = plans[start : start + AT_ONCE]
        for plan, answer in zip(some, _pin_together(registry, some, deadline), strict=True):
            if isinstance(answer, Exception):
                raise answer
            done.append(verbs.pin(registry, plan, deadline) if answer is None else answer)
    return done


def _pin(registry: Registry, plan: Plan, deadline: Deadline) -> Identity:
    # Nearly always the first call decides; `verbs.pin` asks until one does.
    answer = registry.verbs(start=True).pin_once([plan], deadline)[0]
    if isinstance(answer, SafeRefsError):
        raise answer
    return verbs.pin(registry, plan, deadline) if answer is None else answer


def _pin_together(
    registry: Registry, plans: Sequence[Plan], deadline: Deadline
) -> Sequence[Identity | SafeRefsError | None]:
    return registry.verbs(start=True).pin_once(plans, deadline)


def _resolve_together(registry: Registry, rows: Sequence[Wanted], deadline: Deadline) -> Sequence[list[Ref] | None]:
    try:
        return registry.verbs(start=False).resolve_once(rows, deadline)
    except NoRegistryError:
        return [None] * len(rows)  # by itself, each finds out what became of its lease


def _release(registry: Registry, row: tuple[Sequence[bytes], Origin], deadline: Deadline) -> int:
    return len(verbs.release(registry, [row], deadline))


def _release_together(
    registry: Registry, rows: Sequence[tuple[Sequence[bytes], Origin]], deadline: Deadline
) -> Sequence[int]:
    ended = verbs.release(registry, rows, deadline)
    counts: list[int] = []
    for leases, _ in rows:
        counts.append(len(ended.intersection(leases)))
        ended.difference_update(leases)  # a lease that two threads release at once counts once
    return counts

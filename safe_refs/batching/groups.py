"""Group commit: requests that several threads make at the same time go to the registry in one call.

A thread that finds no call under way sends its own request at once, so that a single thread pays nothing. Threads that come
meanwhile leave their requests to the group's thread, and wait for their answers. That thread sends all requests that it finds in one
call, and all that have come meanwhile in the next. It also sends requests that are posted, for which nobody waits.

If a shared call does not decide a request (a shard is down, a lease counts its uses, a limit is reached), the request is sent again
by itself. That is safe, because the caller draws the ids.

What always holds: a request is answered once. A thread waits no longer than its own deadline. A thread never waits for a frame of
its own, nor for a lock that it could leave behind: it waits for the group's thread, which needs no thread of the user's. The only
thing that a thread could leave behind is the mark that its call is under way (`GroupQueue._caller`). For that the group's thread
waits 5 ms at most, and nobody else does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ..config import Deadline
from ..errors import RegistryUnavailableError, SafeRefsError
from ..registry import verbs
from ..registry.calls import NoRegistryError, Registry
from ..registry.records import Identity, Origin
from ..registry.requests import Plan, Wanted
from ..threads import Background, mark
from .queues import AT_ONCE, A, GroupQueue, Then, W

if TYPE_CHECKING:
    import ray

    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

_RESOLVED_AT_ONCE = 500  # a registry that is behind with anchoring lets readers in call by call
_MOST_GROUPS = 64  # for each kind of request; those in use may be more


class Group(GroupQueue[W, A]):
    """Requests of one kind to one registry; see `GroupQueue` for the arguments."""

    def ask(self, what: W, deadline: Deadline) -> A:
        """Send a request, perhaps with others, and wait for its answer.

        Raises:
            RegistryUnavailableError: no answer by the deadline; what was sent may still arrive. Or the group is closed.
            Exception: the request's error.
        """
        me, caller = get_ident(), self._caller
        if self._gone is not None:
            raise self._gone()
        # A request inside a call of the same thread is sent by itself, and so is one of a thread of ours (see `threads.mark`). At
        # the end of Python no other thread runs any more.
        if caller == me or (caller is None and not self._under_way) or mark.is_ours or sys.is_finalizing():
            try:
                self._caller = me
                return self._alone(what, deadline)
            finally:
                self._caller = None
        return self._ask_with_others(what, deadline)


class Batched:
    """The `Sender` of a session (see `registry.protocols`) that sends together what is asked at the same time.

    Errors lose their traceback: its frames refer to the error, as the answer. That cycle would keep the call's references alive until
    the next garbage collection.

    Args:
        session: whose registries it asks.

    Attributes:
        background: threads for work that may take long.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.background = Background()
        # By registry. Bound: _MOST_GROUPS of each kind, or those in use. No lock: each change is one step for the interpreter.
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

    def post(self, registry: str, plan: Plan, deadline: Deadline, then: Then[Identity]) -> None:
        """The callback is called in another thread, and should not take long."""
        (self._pins.get(registry) or self._pin_group(registry)).post(plan, deadline, then)

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """In calls of a thousand. A pin that such a call does not decide is sent again by itself."""
        asked = self.session.registry(registry)
        try:
            # In a function of its own: a frame that has the error as an answer must not be in the error's traceback.
            return _pin_many(asked, plans, deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """In a call of its own, or in one that it shares."""
        group = self._resolves.get(row.address.registry) or self._resolve_group(row.address.registry)
        try:
            return group.ask(row, deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def post_resolve(self, row: Wanted, deadline: Deadline, then: Then[list[Ref]]) -> None:
        """Resolve without waiting: `then` gets what the lease holds, or the error, in another thread."""
        name = row.address.registry
        (self._resolves.get(name) or self._resolve_group(name)).post(row, deadline, then)

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline, found: dict[int, list[Ref]]) -> None:
        """In calls of some hundreds. What such a call does not decide is asked for again by itself."""
        try:
            for name in dict.fromkeys(row.address.registry for row in rows):
                registry = self.session.registry(name)
                places = [place for place, row in enumerate(rows) if row.address.registry == name]
                for start in range(0, len(places), _RESOLVED_AT_ONCE):
                    some, left = places[start : start + _RESOLVED_AT_ONCE], 0
                    while some and len(some) != left:  # what an answer has no room for goes into the next one
                        left = len(some)
                        found.update(_decided(registry, {place: rows[place] for place in some}, deadline))
                        some = [place for place in some if place not in found]
                    for place in some:
                        found[place] = verbs.resolve(registry, rows[place], deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """In a call of its own, or in one that it shares."""
        group = self._releases.get(registry) or self._release_group(registry)
        try:
            return group.ask((leases, self.session.origin()), deadline)
        except SafeRefsError as error:
            raise error.with_traceback(None) from None

    def close(self) -> None:
        """See `Sender`. In a forked child it does nothing: what waits there is its parent's."""
        self._is_closed = True
        if self.session.pid != os.getpid():
            return
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
        return self._begin(self._resolves, registry, alone, together, _come_late)

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
        late: Callable[[W, A], None] | None = None,
    ) -> Group[W, A]:
        if self._is_closed:
            raise _gone(registry.name)
        if len(groups) >= _MOST_GROUPS:
            for name, group in list(groups.items()):
                if group.is_idle:
                    groups.pop(name, None)
        made = Group(alone, together, registry.no_answer, self.background, late)
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
    # Nearly always this call decides. `verbs.pin` repeats it until one does.
    answer = registry.verbs(start=True, deadline=deadline).pin_once([plan], deadline)[0]
    if isinstance(answer, SafeRefsError):
        raise answer
    return verbs.pin(registry, plan, deadline) if answer is None else answer


def _pin_together(
    registry: Registry, plans: Sequence[Plan], deadline: Deadline
) -> Sequence[Identity | SafeRefsError | None]:
    return registry.verbs(start=True, deadline=deadline).pin_once(plans, deadline)


def _resolve_together(registry: Registry, rows: Sequence[Wanted], deadline: Deadline) -> Sequence[list[Ref] | None]:
    try:
        return registry.verbs(start=False, deadline=deadline).resolve_once(rows, deadline)
    except NoRegistryError:
        return [None] * len(rows)  # each is sent again by itself, which finds out what became of its lease


def _decided(registry: Registry, rows: Mapping[int, Wanted], deadline: Deadline) -> dict[int, list[Ref]]:
    """What a call for all of them has given, by the keys of the rows."""
    answers = _resolve_together(registry, list(rows.values()), deadline)
    return {place: refs for place, refs in zip(rows, answers, strict=True) if refs is not None}


def _come_late(row: Wanted, refs: list[Ref]) -> None:
    if row.late is not None:
        row.late(row, refs)


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

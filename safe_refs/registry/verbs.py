"""What a process wants of a registry: begin leases, resolve them, end them, renew them.

The functions (`pin`, `resolve`, `give_back`, `release`, `renew`, `expires_in_s`) ask until there is an answer, by what asks once:
`asking.Verbs`.

What always holds: a function returns a result, or raises an error that says what became of the lease, by its deadline.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .. import threads
from .._ray.objects import UnopenedActorError
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import LeaseError, LeaseLostError, OwnerGoneError, RegistryUnavailableError, SafeRefsError
from . import behind
from .calls import Call, NoRegistryError, Registry
from .here import Here
from .protocols import Asks
from .records import Identity, Origin, Renewal
from .requests import Plan, Question, Unspent, Wanted, identity
from .shard import Shard
from .wire import ExpiresCall, RenewCall, ResolveCall

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")

COMES_S = 5.0  # how long a reader waits for a pin that its maker didn't wait for
_COMES_PAUSE_S = 0.01
_SAYS_SO_S = 0.1  # before the deadline: whoever waits for this in another thread has the same one


def wanted(
    address: LeaseAddress,
    here: Here,
    *,
    slot: int | None,
    take: bool,
    use: bytes = b"",
    late: Callable[[Wanted, list[Ref]], None] | None = None,
) -> Wanted:
    """What is wanted of a lease, as one use of it: the one of that id, or a new one. `late` is as in `Wanted`.

    Raises:
        WrongClusterError: it is another cluster's.
    """
    if address.cluster != here.connection.cluster:
        here.check_cluster(address)
    # It is worth the time to look up which line ends a lease, not which lines only read it.
    asker = here.origin() if take else Origin(here.connection.job, here.node, here.pid, "by loading")
    spends = take or bool(use)
    return Wanted(address, slot, take, asker, use or os.urandom(8), spends, late if spends else None)


def lost(address: LeaseAddress) -> LeaseLostError:
    """The error for a lease whose registry is gone."""
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


def pin(registry: Registry, plan: Plan, deadline: Deadline) -> Identity:
    """Begin a lease, and wait until the registry holds it.

    Returns:
        The identity of the registry that holds it.

    Raises:
        RegistryFullError: a limit would be passed.
        OwnerGoneError: the job that made an actor has ended.
        RegistryUnavailableError: no answer in time. As with every error, the caller has to release the lease.
    """
    return _until(registry, lambda verbs: verbs.pin_once([plan], deadline)[0], deadline, start=True)


def resolve(registry: Registry, row: Wanted, deadline: Deadline) -> list[Ref]:
    """What a lease holds.

    Raises:
        LeaseError: it has ended, was lost, or was never there; `OwnerGoneError` if the job that made an actor in it has ended.
        RegistryUnavailableError: no answer in time.
    """
    tries = itertools.count()
    seen: list[list[Ref]] = []  # what shards have answered, of a use that may have to be given back

    def call(version: int, counts: bool, _: object) -> Call[Any]:
        insists = next(tries) > 0 and behind.insists(deadline)
        asked = Call(Shard.resolve, ResolveCall(version, [row.row(counts=counts)], False, insists))
        asked.late = late if row.late else None
        return asked

    def opened(answer: Any) -> Any:
        found = (answer[1] if type(answer[0][0]) is int else answer[0][0]) if isinstance(answer, tuple) else answer
        if row.late is not None and isinstance(found, list):
            seen.append(found)
        return found

    def late(answer: Any) -> None:
        found = opened(answer)
        if row.late is not None and isinstance(found, list):
            row.late(row, found)

    question: Question[list[Ref]] = Question(row.address, call, opened, in_turn=row.take)
    try:
        refs = _live(registry, question, deadline)
        for part in registry.here.parts:
            part.resolved(row.address, refs)
        return refs
    except UnopenedActorError:
        raise OwnerGoneError.of(row.address.short_id, registry.name) from None
    except BaseException as error:
        if seen and row.late is not None and not isinstance(error, Exception):
            threads.later(partial(row.late, row, seen[-1]))
        raise
    finally:
        seen.clear()  # an error keeps this frame


def give_back(registry: Registry, uses: Sequence[Unspent], lives: set[bytes], deadline: Deadline) -> None:
    """Give uses back, as their reader can't open what it got; the leases that live again by that are added to `lives`.

    Raises:
        NoRegistryError: there is none.
    """
    _until(registry, lambda verbs: verbs.give_back_once(uses, lives, deadline), deadline, start=False)


def release(registry: Registry, rows: Sequence[tuple[Sequence[bytes], Origin]], deadline: Deadline) -> set[bytes]:
    """End leases by their ids, each row by whom it says; which of them that ended."""
    ended: set[bytes] = set()
    try:
        _until(registry, lambda verbs: verbs.release_once(rows, ended, deadline), deadline, start=False)
    except NoRegistryError:
        registry.forget()
    for part in registry.here.parts:
        for leases, _ in rows:
            part.released(registry.name, leases)
    return ended


def renew(
    registry: Registry, address: LeaseAddress, ttl: float | None, deadline: Deadline, *, lengthens: bool = False
) -> None:
    """Let a lease live `ttl` seconds from now, or without a limit; errors as for `resolve`, `lengthens` as for `LeaseTable.renew`."""

    def call(version: int, _: bool, decided: Renewal | None) -> Call[Any]:
        return Call(Shard.renew, RenewCall(version, address.lease, identity(address), ttl, lengthens, decided))

    # The first holder decides, and the others go by that: two renewals at once can't be taken in different orders.
    question: Question[Renewal] = Question(address, call, _as_it_is, in_turn=True)
    _live(registry, question, deadline)


def expires_in_s(registry: Registry, address: LeaseAddress, deadline: Deadline) -> float | None:
    """Seconds until a lease's ttl runs out; None without one; errors as for `resolve`."""

    def call(version: int, _: bool, __: object) -> Call[Any]:
        return Call(Shard.expires_in_s, ExpiresCall(version, address.lease, identity(address)))

    question: Question[tuple[float | None]] = Question(address, call, _as_it_is, in_turn=False)
    return _live(registry, question, deadline)[0]


def _as_it_is(answer: Any) -> Any:
    return answer


def _until(
    registry: Registry, once: Callable[[Asks], A | SafeRefsError | None], deadline: Deadline, *, start: bool
) -> A:
    """Ask until there is an answer, by the verbs for the layout that the registry has by then.

    Raises:
        SafeRefsError: the answer is an error.
        NoRegistryError: there is no registry, and it is not to be started.
        RegistryUnavailableError: no answer in time.
    """
    while True:
        answer = once(registry.verbs(start=start, deadline=deadline))
        if isinstance(answer, SafeRefsError):
            try:
                raise answer
            finally:
                del answer  # it would keep this frame, which keeps it
        if answer is not None:
            return answer
        if registry.knows_layout:  # if the layout has changed, the next attempt may be made at once
            registry.pause(deadline)
        elif deadline.is_over():
            raise registry.no_answer(deadline)


def _live(registry: Registry, question: Question[A], deadline: Deadline) -> A:
    """Ask about a lease. If its maker did not wait for the pin and it isn't there, wait for it, a little.

    A registry that has said that it isn't there has answered: if it has no time to say so again, that is the answer.
    """
    comes_by = min(deadline.at - min(_SAYS_SO_S, deadline.timeout_s / 10), time.monotonic() + COMES_S)
    error: SafeRefsError | None = None
    while True:
        try:
            return _until(registry, lambda verbs: verbs.ask_once(question, deadline), deadline, start=False)
        except NoRegistryError:
            registry.forget()
            error = lost(question.address)
        except LeaseError as refusal:
            error = refusal
        except RegistryUnavailableError:
            if error is None:
                raise
            comes_by = -math.inf
        if not question.awaits(error) or time.monotonic() >= comes_by:
            try:
                raise error.with_traceback(None) from None
            finally:
                del error
        question.memory = None
        time.sleep(_COMES_PAUSE_S)

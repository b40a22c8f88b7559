"""Somebody waits until some leases of a registry are durable.

    maker                                   shards                    copy owners
      │── copy request (its own objects) ──────────────────────────────────>│      (`Copies.before_pin`)
      │── pin ──────────────────────────────>│                              │
      │<─ completion: the shard has them, or does not ──────────────────────│
      │── DurableCall, to the others ───────>│── copy request, if need be ─>│
      │<─ durable, or not yet, or why not; a completion to listen to ───────│

If a completion comes with the identity that the lease was pinned under, that shard holds the copies. In every other case (the copy
owner failed or died, the registry has restarted, the copies take long) ask the shard. It answers that it holds the copies, or why it
can't; or it sends the copy request to its copy owner, if need be again, and returns the completion. A lease is done when all shards
that may hold it hold copies.

What always holds: every wait ends by the deadline; each shard learns at least every few seconds that somebody still waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .._ray import environments, objects
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import (
    LeaseLostError,
    LeaseNotFoundError,
    OwnerGoneError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
)
from ..registry.calls import Call, NoRegistryError, Registry, Silence
from ..registry.records import Identity
from ..registry.requests import identity
from ..registry.verbs import COMES_S, lost
from ..registry.wire import NotNow
from .part import Durability
from .wire import DurableCall, DurableReply, DurableRow, NotCopyable, Why

logger = logging.getLogger("safe_refs")

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05
_LONGEST_PAUSE_FAILED_S = 1.0
_READS_S = 5.0
_ASKS_S = 3.0  # how often a shard hears that somebody still waits

# Completions: what becomes ready when a copy owner is done; of which shard, and with which lease.
Completions: TypeAlias = "dict[Any, tuple[int, bytes]]"
Reply: TypeAlias = "DurableReply | NotNow | Silence"


class Waiting:
    """One wait.

    Args:
        registry: that holds the leases.
        asked: the leases, and the ttl that each gets when it is durable; None for the ttl that it has.
        begun: completions of copy requests that were sent already; those of other leases are left alone.
        deadline: when to stop.
        check: called before each wait; raises if it is no longer worth while.
        failed: called with the registry's name and a shard whose copy owner has not delivered.
    """

    def __init__(
        self,
        registry: Registry,
        asked: Mapping[LeaseAddress, float | None],
        begun: Completions,
        deadline: Deadline,
        check: Callable[[], None],
        failed: Callable[[str, int], None],
    ) -> None:
        self._registry = registry
        self._ttls = {address.lease: ttl for address, ttl in asked.items()}
        self._deadline = deadline
        self._check = check
        self._tell_failed = failed
        # All that follows is at most as long as the number of leases times that of the shards.
        self._left = {address.lease: address for address in asked}
        self._completions = {each: (shard, lease) for each, (shard, lease) in begun.items() if lease in self._left}
        self._done: dict[bytes, set[int]] = {lease: set() for lease in self._left}  # shards that hold copies
        self._failed: set[tuple[int, bytes]] = set()  # shards whose copy owners got a request and did not deliver
        self._heard = {shard for shard, _ in begun.values()}  # shards that have answered
        self._comes_by = time.monotonic() + COMES_S

    def wait(self) -> None:
        """Return when all are durable.

        Raises:
            SafeRefsError: as `Copies.make_durable`.
        """
        pause_s, env = _FIRST_PAUSE_S, ""
        while True:
            self._check()
            try:
                where = self._where()
                self._listen(where)
                if not self._left:
                    return
                env = env or environments.surroundings()
                failed = bool(self._failed)
                replies = self._ask(where, env)
            except NoRegistryError:
                raise lost(next(iter(self._left.values()))) from None
            if not self._left:
                return
            if self._deadline.is_over():
                raise self._not_in_time(replies)
            if NotNow.STALE in replies.values():
                self._registry.forget_layout()
            if failed or not self._completions:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_FAILED_S if failed else _LONGEST_PAUSE_S)

    def _where(self) -> dict[bytes, set[int]]:
        """For each lease that isn't durable yet, the shards that may hold it.

        Raises:
            NoRegistryError: there is no registry.
        """
        where: dict[bytes, set[int]] = {lease: set() for lease in self._left}
        for shard, leases in self._registry.verbs(start=False, deadline=self._deadline).by_shard(self._left).items():
            for lease in leases:
                where[lease].add(shard)
        return where

    def _listen(self, where: Mapping[bytes, set[int]]) -> None:
        """Take the completions that come in the next seconds."""
        for completion, taken_as in _completed(self._completions, min(self._deadline.left_s(), _ASKS_S)).items():
            shard, lease = self._completions.pop(completion)
            address = self._left.get(lease)
            if address is None:
                continue
            if taken_as and Identity.from_bytes(taken_as).epoch == address.epoch:
                self._done[lease].add(shard)
                if self._done[lease].issuperset(where[lease]):
                    del self._left[lease]
            else:
                self._failed.add((shard, lease))
                self._tell_failed(self._registry.name, shard)

    def _ask(self, where: Mapping[bytes, set[int]], env: str) -> dict[int, Reply]:
        """Ask the shards that are not known to hold copies yet; what they reply.

        Raises:
            NoRegistryError: there is no registry.
        """
        theirs: dict[int, list[LeaseAddress]] = {}
        for lease, address in self._left.items():
            for shard in where[lease] - self._done[lease]:
                theirs.setdefault(shard, []).append(address)
        version = self._registry.layout(start=False, deadline=self._deadline).version
        calls = {
            shard: Call(Durability.make_durable, DurableCall(version, [self._row(shard, each) for each in asked], env))
            for shard, asked in theirs.items()
        }
        replies = self._registry.ask(calls, self._deadline, patience_s=_ASKS_S)
        self._heard.update(shard for shard, reply in replies.items() if not isinstance(reply, Silence))
        if NotNow.STALE in replies.values():
            return replies
        answers: dict[bytes, list[Any]] = {lease: [True] * len(self._done[lease]) for lease in self._left}
        for shard, asked in theirs.items():
            self._take(shard, asked, replies[shard], answers)
        for lease, found in answers.items():
            address = self._left[lease]
            if _is_durable(address, found, comes=address.soon and time.monotonic() < self._comes_by):
                del self._left[lease]
        return replies

    def _row(self, shard: int, address: LeaseAddress) -> DurableRow:
        failed = (shard, address.lease) in self._failed
        return DurableRow(address.lease, identity(address), self._ttls[address.lease], failed)

    def _take(
        self, shard: int, asked: Sequence[LeaseAddress], reply: Reply, answers: Mapping[bytes, list[Any]]
    ) -> None:
        """Add a shard's reply to what the shards answer of each lease."""
        if not isinstance(reply, tuple):
            for address in asked:
                answers[address.lease].append(reply)
            return
        for address, answer, completion in zip(asked, *reply, strict=True):
            answers[address.lease].append(answer)
            self._failed.discard((shard, address.lease))
            if answer is True:
                self._done[address.lease].add(shard)
            elif completion is not None:
                self._completions[completion] = (shard, address.lease)

    def _not_in_time(self, replies: Mapping[int, Reply]) -> RegistryUnavailableError:
        # The last call has next to no time for an answer.
        late = {shard for shard, reply in replies.items() if reply is Silence.LATE and shard in self._heard}
        silent = sorted({shard for shard, reply in replies.items() if isinstance(reply, Silence)} - late)
        why = f"shard(s) {silent} don't answer" if silent else "the objects don't exist yet, or copying takes longer"
        return RegistryUnavailableError(
            f"{len(self._left)} lease(s) of registry {self._registry.name!r} are not durable after "
            f"{self._deadline.timeout_s:g} s: {why}; allow a longer time (timeout=... of the call, or init(durable_timeout=...))"
        )


def _completed(completions: Iterable[Any], timeout_s: float) -> dict[Any, bytes]:
    """Wait until all of these are complete, or the time is over.

    Returns:
        For each that is, the identity of the shard that holds the copies; nothing if no shard does, or if the copy owner has died.
    """
    found: dict[Any, bytes] = {}
    waiting = list(completions)
    for completion in objects.wait(waiting, len(waiting), timeout_s) if waiting else ():
        try:
            found[completion] = objects.get(completion, _READS_S) or b""
        except Exception:  # whatever it is, the shard knows better
            logger.debug("a copy owner has died; its shard is asked", exc_info=True)
            found[completion] = b""
    return found


def _is_durable(address: LeaseAddress, answers: Sequence[Any], *, comes: bool) -> bool:
    """Whether a lease is durable, by what the shards say that may hold it; False if it is not yet, or if its pin may still come.

    Raises:
        SafeRefsError: it can't become durable.
    """
    for answer in answers:
        if isinstance(answer, NotCopyable):
            raise _error(address, answer)
        if isinstance(answer, SafeRefsError) and not isinstance(answer, (LeaseNotFoundError, LeaseLostError)):
            raise answer
    if False in answers or Silence.LATE in answers:
        return False
    if True in answers:
        if not all(answer is True for answer in answers):
            # They get the lease from the others when they are back, and copy then.
            logger.warning("lease %s is durable at some of its replicas only; the others are down", address.short_id)
        return True
    refusals = [answer for answer in answers if isinstance(answer, SafeRefsError)]
    if comes:
        return False
    if refusals and NotNow.RECOVERING not in answers:
        raise refusals[0]
    if all(answer is Silence.ABSENT for answer in answers):
        raise lost(address)
    return False


def _error(address: LeaseAddress, problem: NotCopyable) -> SafeRefsError:
    if problem.why is Why.GONE:
        return OwnerGoneError.before_copied(address.short_id, address.registry, time.time())
    if problem.why is Why.COPIES_GONE:
        return OwnerGoneError.of(address.short_id, address.registry, time.time(), durable=True)
    if problem.why is Why.UNSUPPORTED:
        return UnsupportedReferenceError(
            f"lease {address.short_id} can't be made durable: {problem.reason}", kind="durable"
        )
    return RegistryUnavailableError(
        f"lease {address.short_id} could not be made durable, as its objects could not be copied: {problem.reason}"
    )

"""The shard's part for durable leases: has its copy owner make copies, and holds them in place of what the leases held.

What always holds: what is kept here of a lease goes when the lease ends; no call is made under the shard's lock; the thread for
copies holds `shard.using` as long as it has references in its hands.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._ray import actors, objects, packages, workers
from ..bounds import LeaseId
from ..errors import RegistryUnavailableError, SafeRefsError
from ..registry.hooks import Began, Loop, ShardPart, remote
from ..registry.received import examine
from ..registry.shard import Shard
from ..registry.wire import Granted, NotNow, Overdue, ResolveRow
from .copying import mortal_actor
from .requests import CopyRequests
from .wire import (
    WING,
    CopyCall,
    CopyMaker,
    CopyRequest,
    Durable,
    DurableCall,
    DurableReply,
    DurableRow,
    NotCopyable,
    Why,
)

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_OWNER_S = 5.0  # then the copy owner is looked up anew: it may have been that of a registry of before, and have ended
_LOOKS_S = 1.0  # how often to look, while there are requests, whether one is due
_LONGEST_PAUSE_S = 3600.0


class Durability(ShardPart):
    """What makes the leases of a shard durable.

    Args:
        shard: whose.
        start_owner: `owner.start`; for tests, another one.
    """

    def __init__(self, shard: Shard, start_owner: Callable[[str, int], CopyMaker]) -> None:
        self._shard = shard
        self._start_owner = start_owner
        # The shard's lock guards these two. Both hold only live leases of the shard.
        self._requests = CopyRequests(time.monotonic)
        self._own: set[bytes] = set()  # those that hold copies of this shard's own copy owner
        # When the copy owner was looked up, and it. Replaced whole, so that both threads may read it at any time.
        self._owner: tuple[float, CopyMaker | None] = (-_OWNER_S, None)
        self._wake = threading.Event()

    # What happens to leases.

    def pinned(self, lease: bytes, began: Began) -> None:
        """Begin to copy if the maker asks for it; or if the lease came from another shard, with copies of that shard's copy owner."""
        held = self._shard.table.live.get(lease)
        if held is None:
            return
        wanted = began.extras.get(WING)
        if held.terms.durable is not None:
            if began.again and self._shard.table.alone:
                self._own.add(lease)  # the reader has handed back what it got here
            elif (began.from_shard or began.again) and lease not in self._own:
                self._requests.want(lease, held.terms.durable)
                self._wake.set()
        elif wanted is not None:
            request = CopyRequest(*wanted)
            is_sent = self._shard.number in request.sent_to
            self._requests.note(lease, sys.intern(request.env), request.ttl, is_sent=is_sent)  # many have the same env
            self._wake.set()

    def examine(self, extras: Mapping[str, Any]) -> None:
        """The maker's request, if it has one; it has travelled as a tuple."""
        if (wanted := extras.get(WING)) is not None:
            examine(WING, Sequence[Any], wanted)
            examine(WING, CopyRequest, CopyRequest(*wanted))  # raises TypeError if these are too many, or too few

    def ended(self, lease: bytes, items: Sequence[Ref]) -> None:
        """Keep nothing of it."""
        self._requests.forget(lease)
        self._own.discard(lease)

    def doubts(self, row: ResolveRow) -> NotNow | None:
        """A lease whose copies' owner is dead is not resolved here: another replica has copies of its own. The next sweep ends it."""
        shard = self._shard
        if shard.table.alone or not self._has_lost_copies(row.lease):
            return None
        return NotNow.DOUBTFUL

    def owner_died(self, owner: bytes) -> None:
        """If other shards have copies of their own, a lease whose copies have all died with their owner is lost here, not ended."""
        shard = self._shard
        with shard.lock:
            if shard.table.alone:
                return
            leases = [lease for lease in shard.table.owners.leases(owner) if self._are_only_copies(lease, owner)]
            shard.lose(
                leases, "the process that owned its copies is dead, and so are the copies; make the payload anew"
            )

    def _are_only_copies(self, lease: bytes, owner: bytes) -> bool:
        held = self._shard.table.live[lease]
        return held.terms.durable is not None and set(filter(None, held.owners)) == {owner}

    def _has_lost_copies(self, lease: bytes) -> bool:
        with self._shard.lock:
            held = self._shard.table.find(lease)
            owners = set(filter(None, held.owners)) if held is not None and held.terms.durable is not None else set()
        return any(workers.is_surely_dead(owner) for owner in owners)

    # Calls from makers, and from all who want a lease to be durable.

    @remote
    def make_durable(self, call: DurableCall) -> DurableReply | NotNow:
        """Have leases hold copies of what they hold; for each, whether it does, or why it can't. To be repeated until then."""
        shard = self._shard
        if (not_now := shard.parts.admit(call.version)) is not None:
            return not_now
        env = sys.intern(call.env)
        answers = [self._make_durable(row, env) for row in call.rows]
        with shard.lock:
            completions = [self._requests.completion(row.lease) for row in call.rows]
        return answers, completions

    def _make_durable(self, row: DurableRow, env: str) -> Durable:
        shard = self._shard
        try:
            with shard.lock:
                is_durable = shard.table.living(row.lease, row.asked).terms.durable is not None
                if not is_durable:
                    if row.failed:
                        completion = self._requests.completion(row.lease)
                        self._requests.unsent(row.lease)
                    is_to_send = self._requests.ask(row.lease, env, row.ttl)
        except SafeRefsError as refusal:
            answer = shard.parts.excuse(row.lease, b"", refusal)
            return answer.refusal if isinstance(answer, (Granted, Overdue)) else answer
        if is_durable:
            # The copies may have died right after the shard took them, which the next sweep would see.
            if row.failed and shard.table.alone and self._has_lost_copies(row.lease):
                return NotCopyable(Why.COPIES_GONE, "the process that owned the copies has died")
            return True
        if isinstance(is_to_send, NotCopyable):
            return is_to_send
        if row.failed:
            self._look_for_owner(completion)
        if is_to_send:
            self._send(row.lease, env)
        return False

    # Calls from the copy owner.

    @remote
    def still_wanted(self, leases: Sequence[LeaseId]) -> list[bytes]:
        """The copy owner is at these leases: which of them are still wanted."""
        with self._shard.lock:
            return self._requests.still(leases)

    @remote
    def take_copies(self, lease: LeaseId, result: list[Ref] | NotCopyable) -> bytes:
        """The copy owner has made copies of what a lease holds, slot by slot, or could not.

        Returns:
            The identity of the registry, 16 bytes, if the lease holds the copies from now on; else nothing.
        """
        shard = self._shard
        if isinstance(result, NotCopyable):
            with shard.lock:
                self._requests.fail(lease, result)
            return b""
        copies = actors.interned(result)
        owners = [workers.owner_of(ref) for ref in copies]
        shard.parts.pinning(b"", copies)
        sizes = shard.weigh(copies)
        with shard.lock:
            held = shard.table.find(lease)
            if held is None or len(held.items) != len(copies) or (done := self._requests.done(lease)) is None:
                return b""
            env, ttl = done
            shard.table.usage.learn(sizes)
            former = held.items
            shard.table.replace(lease, copies, owners, held.terms._replace(durable=env))
            if ttl is not None:
                # Also if that is the ttl that it has: it counts from now.
                shard.table.set_time(lease, held.next_renewal(ttl, shard.table.clock()), ttl)
            self._own.add(lease)
            shard.parts.replaced(lease, former)
            return shard.table.identity.to_bytes()

    @remote
    def copies_lost(self, leases: Sequence[LeaseId]) -> None:
        """A node has died, and with it copies that these leases hold, or copies inside those."""
        shard = self._shard
        with shard.lock:
            durable = [
                lease
                for lease in leases
                if (held := shard.table.find(lease)) is not None and held.terms.durable is not None
            ]
            shard.lose(durable, "the node that had its copies is dead; make the payload anew")

    # The copy requests.

    def threads(self) -> Sequence[Loop]:
        """The thread for copies: sends the copy owner the requests that are due and that no caller waits for."""
        return (Loop("copies", self._keep_sending),)

    def _keep_sending(self) -> None:
        while True:
            # A request that comes meanwhile wakes it.
            self._wake.wait(_LOOKS_S if len(self._requests) else _LONGEST_PAUSE_S)
            self._wake.clear()
            self.send_due()

    def send_due(self) -> None:
        """Send the requests that are due."""
        with self._shard.lock:
            due = self._requests.due()
        for lease, env in due:
            with self._shard.using:
                self._send(lease, env)

    def _send(self, lease: bytes, env: str) -> None:
        """Send the copy owner a request for the copies of what a lease holds. A failure is noted, so that it is sent again."""
        import ray

        shard = self._shard
        with shard.lock:
            refs = list(shard.table.items_of(lease))
        mortal = mortal_actor(refs)
        if mortal is not None:
            with shard.lock:
                self._requests.fail(lease, mortal)
            return
        try:
            completion = self._copy_owner().make_copies(CopyCall(lease, env, at_home=not shard.table.alone), refs)
        except (ValueError, RegistryUnavailableError, ray.exceptions.RayError):
            missing = packages.complaint()
            if missing is None:
                logger.warning(
                    "lease %s is not durable yet: the copy owner can't be reached, and gets its request again",
                    lease[:4].hex(),
                    exc_info=True,
                )
            self._owner = (-_OWNER_S, None)
            with shard.lock:
                if missing is None:
                    self._requests.unsent(lease)
                else:
                    self._requests.fail(lease, NotCopyable(Why.FAILED, missing))
            return
        with shard.lock:
            self._requests.sent(lease, completion)

    def _look_for_owner(self, completion: Any) -> None:
        """A copy owner has not delivered what this completion is of: if it has died, look it up anew, and why it died."""
        import ray

        try:
            if completion is not None and objects.wait([completion], 1, 0):
                objects.get(completion, _OWNER_S)
        except ray.exceptions.RayActorError as error:
            packages.note_death(error)
            self._owner = (-_OWNER_S, None)
        except Exception:
            logger.debug("a completion can't be read", exc_info=True)

    def _copy_owner(self) -> CopyMaker:
        found_at, owner = self._owner
        if owner is None or time.monotonic() - found_at > _OWNER_S:
            owner = self._start_owner(self._shard.registry, self._shard.number)
            self._owner = (time.monotonic(), owner)
        return owner

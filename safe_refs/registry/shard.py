"""The Ray actor that holds leases: a `LeaseTable` behind a lock, and its parts: the clock, the owners, and what wings add.

A plain actor, one call at a time (an async one costs a fifth more per call). References come and go inside lists, so that Ray tracks
them as borrowed and never fetches a value here; the actor never deserializes users' data. Refusals are returned, not raised: an
exception that crosses a task's border is wrapped and costs ten times the call.

What always holds: every part learns of whatever happens to a lease; a thread that fails starts again.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._ray import actors, classes, workers
from ..bounds import Name
from ..config import Limits
from ..errors import SafeRefsError
from . import closing, rows, steps, taking_back
from .arriving import arrived
from .clock import Clock
from .hooks import Parts, ShardPart
from .leases import LeaseTable
from .owners import Owners
from .received import actor, checked
from .records import Identity, LeaseInfo, RegistryStats, Renewal
from .wire import (
    MOST_TOGETHER,
    CloseCall,
    ExpiresCall,
    GiveBackCall,
    ListCall,
    NotNow,
    PinCall,
    PinRow,
    Refused,
    ReleaseCall,
    ReleaseWhereCall,
    RenewCall,
    ResolveCall,
    ResolveRow,
)

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")
C = TypeVar("C")


def actor_name(registry: str, shard: int = 0) -> str:
    """Name of a shard's actor, in the namespace `safe_refs`."""
    return f"registry:{registry}:{shard}" if shard else f"registry:{registry}"


@actor
class Shard:
    """The actor's class. Other processes call the methods from `hello` to `close` (see `received`); all else is for parts.

    Args:
        registry: name of the registry that it is a part of.
        identity: of this start of the registry.
        limits: what this shard may hold at most.
        number: which shard it is, from 0.
        alone: no other shard holds the same leases.

    Attributes:
        parts: its parts, and where what happens to leases is announced.
        lock: guards the table, and what parts say that it guards.
        using: held by threads other than the one for calls while they have references in their hands. Taken before the lock.
        owners: the owners of what it holds.
        refuses_until: monotonic seconds; until then nothing new is held, as the registry may be shut down.
        is_closing: the registry is being shut down, and all leases end.
    """

    def __init__(self, registry: str, identity: Identity, limits: Limits, number: int = 0, alone: bool = True) -> None:
        self.registry, self.number, self.limits, self.refuses_until = registry, number, limits, 0.0
        self.lock, self.using, self.is_closing = threading.Lock(), threading.Lock(), False
        self.table: LeaseTable[Ref] = LeaseTable(
            registry=registry,
            identity=identity,
            clock=time.monotonic,
            wall=time.time,
            limits=limits,
            alone=alone,
            gone=lambda lease, items: self.parts.ended(lease, items),
        )
        self.owners = Owners(self.table, self.lock, self.using, lambda owner: self.parts.owner_died(owner))
        self.parts = Parts()

    def start(self, parts: Sequence[ShardPart]) -> None:
        """Begin to work, with these parts of wings; called once."""
        classes.serve()
        self.parts = Parts([Clock(self.table, self.lock), self.owners, *parts])
        for loop in self.parts.threads():
            threading.Thread(target=loop.keep_running, name=f"safe_refs-{loop.name}", daemon=True).start()

    # Calls from other processes.

    @checked
    def hello(self) -> bytes:
        """The registry's identity, 16 bytes."""
        return self.table.identity.to_bytes()

    @checked
    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return workers.node_and_process()

    @checked
    def part(self, name: Name, *args: Any) -> Any:
        """A call to a part: the name is `Class.method`, of one that is marked as remote."""
        return self.parts.remote(name)(*args)

    @checked
    def pin(self, call: PinCall, refs: list[Ref]) -> bytes | list[bytes | SafeRefsError] | NotNow:
        """Begin leases: the registry's identity, 16 bytes, if it holds them all; else of each that, or why it isn't held."""
        not_now = self.refuses() or self.parts.admit(call.version)
        if not_now is not None:
            return not_now
        for row in call.rows:
            self.parts.examine(row.extras)
        answers = [each if isinstance(each, SafeRefsError) else self._pin(*each) for each in arrived(call.rows, refs)]
        # Ray passes bytes as they are. A list it pickles, which costs a twentieth of a whole call.
        first = answers[0] if answers else None
        return first if isinstance(first, bytes) and answers.count(first) == len(answers) else answers

    def _pin(self, row: PinRow, refs: list[Ref], owners: list[bytes]) -> bytes | SafeRefsError:
        self.parts.pinning(row.borrower, refs)
        sizes = self.weigh(refs)
        with self.lock:
            self.table.usage.learn(sizes)
            return steps.pin(self.table, self.parts, row, refs, owners)

    @checked
    def resolve(self, call: ResolveCall) -> tuple[list[int | Refused], list[Ref]] | NotNow:
        """What leases hold: of each how many references, or why it has none; and all references, in order."""
        not_now = self.parts.admit(call.version) or (None if call.insists else self.parts.crowded())
        if not_now is not None:
            return not_now
        refs: list[Ref] = []
        answers: list[int | Refused] = []
        for row in call.rows:
            # If a lease holds an actor whose job has ended, the reader can't open the answer, nor any lease in it. A use or a take
            # can't be had twice, so the caller must ask for such a lease by itself.
            is_later = call.together and (self._is_too_much(row, len(refs)) or self._spoils(row))
            found = NotNow.IN_TURN if is_later else self._resolve(row)
            if isinstance(found, list):
                refs += found
            answers.append(len(found) if isinstance(found, list) else found)
        return answers, refs

    def _is_too_much(self, row: ResolveRow, references: int) -> bool:
        """Whether an answer that has so many references already is to have no more of these: other calls wait meanwhile."""
        with self.lock:
            more = len(self.table.items_of(row.lease)) if row.slot is None else 1
            return references > 0 and references + more > MOST_TOGETHER

    def _spoils(self, row: ResolveRow) -> bool:
        with self.lock:
            spends = row.take or self.table.counts_uses(row.lease)
            return spends and any(map(actors.is_actor_handle, self.table.items_of(row.lease)))

    def _resolve(self, row: ResolveRow) -> list[Ref] | Refused:
        if (not_now := self.parts.doubts(row)) is not None:
            return not_now
        with self.lock:
            return steps.resolve(self.table, self.parts, row)

    @checked
    def release(self, call: ReleaseCall) -> list[int] | NotNow:
        """End leases; for each whether that ended it."""
        return self._take(call.version, call, steps.release)

    @checked
    def release_where(self, call: ReleaseWhereCall) -> tuple[list[bytes], tuple[float, int] | None] | NotNow:
        """End a page of the leases that a query chooses: the marks of those that this ended, and where the next page begins."""
        if call.query.chooses_all:
            raise ValueError("release_where: this query leaves out no lease; `close` ends them all")
        return self._take(call.version, call, steps.release_where)

    @checked
    def give_back(self, call: GiveBackCall, refs: list[Ref]) -> list[bool | NotNow] | NotNow:
        """Uses whose readers could not open what they got: for each whether its lease lives again by that."""
        return taking_back.carry_out(self, call, refs)

    @checked
    def renew(self, call: RenewCall) -> Renewal | Refused:
        """Give a lease a new time to live: the renewal, for the other holders."""
        return self._take(call.version, call, steps.renew)

    @checked
    def expires_in_s(self, call: ExpiresCall) -> tuple[float | None] | Refused:
        """Seconds until a lease's ttl runs out; (None,) without one."""
        return self._take(call.version, call, steps.expires_in_s)

    def _take(self, version: int, call: C, step: Callable[[LeaseTable[Ref], Parts, C], A]) -> A | NotNow:
        if (not_now := self.parts.admit(version)) is not None:
            return not_now
        with self.lock:
            return step(self.table, self.parts, call)

    @checked
    def leases(self, call: ListCall) -> tuple[list[LeaseInfo], tuple[float, int] | None, float]:
        """One page of live leases, where the next page begins, and when that was, since the epoch."""
        return rows.listed(self, call)

    @checked
    def stats(self) -> RegistryStats:
        """This shard's figures since its start."""
        with self.lock:
            return dataclasses.replace(self.table.stats(), **self.parts.figures())

    @checked
    def set_limits(self, limits: Limits) -> None:
        """Take other limits from now on; what is held stays."""
        with self.lock:
            self.limits = limits
            self.table.set_limits(limits)
            self.parts.limits_changed()

    @checked
    def hold_off(self, for_s: closing.MayRefuse) -> bool:
        """Refuse new leases for so many seconds, as the registry may be shut down."""
        return closing.hold_off(self, for_s)

    @checked
    def close(self, call: CloseCall) -> int | NotNow:
        """Let go of everything; how many leases that were."""
        return closing.close(self, call)

    def refuses(self) -> NotNow | None:
        """Whether nothing new is held now. For parts, too."""
        return NotNow.CLOSING if self.is_closing or time.monotonic() < self.refuses_until else None

    def lose(self, leases: Sequence[bytes], why: str) -> None:
        """What these leases held is gone from here. For parts, under the lock."""
        self.parts.lost([lease for lease in leases if self.table.lose(lease, why)])

    def weigh(self, refs: Sequence[Ref]) -> dict[Ref, int]:
        """Sizes of objects, where there are limits in bytes. For parts, too, without the lock."""
        return self.owners.weigh(refs) if self.table.usage.limits.weighs else {}

"""The shard's part: which leases depend on a process, what has been handed out, and the remote methods that borrowers call.

What always holds: what is kept of a lease goes when the lease ends (`ended`). Without anchoring (turned off, or a Ray that lacks
the calls for it) the part notes only which leases depend on the borrowers that pinned them, so that `leases()` can say so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, counts, workers
from .._ray.counts import Touch
from ..bounds import Key, LeaseId, ObjectId
from ..registry.calls import Call
from ..registry.hooks import Began, Loop, ShardPart, remote
from ..registry.wire import NotNow, ResolveRow
from .answering import Answering
from .handed_out import HandedOut
from .let_go import LetGo
from .pace import Pace
from .parting import Parting
from .relays import LENDER, RelayNumber, Relays
from .rounds import Rounds
from .unanchored import Unanchored

if TYPE_CHECKING:
    import ray

    from ..registry.shard import Shard

    Ref = ray.ObjectRef[Any]


class GiveBack(NamedTuple):
    """Give objects back in a relay's stead: their ids, the relay's number, a key of who lent them, and leases that may hold them."""

    ids: Sequence[ObjectId]
    relay: RelayNumber
    key: Key
    leases: Sequence[LeaseId]


class Anchoring(ShardPart):
    """What anchoring adds to a shard.

    Args:
        shard: whose part it is.
        anchors: whether this registry anchors, if Ray lets it; False by `SAFE_REFS_ANCHORING=0` where the registry starts.
    """

    def __init__(self, shard: Shard, anchors: bool) -> None:
        self._table = shard.table
        self._lock = shard.lock
        self._anchors = anchors and counts.can_anchor()
        self._relays = Relays()
        # All four are guarded by the shard's lock; their bounds stand in their files.
        self._unanchored = Unanchored(shard.table.clock)
        self._pace = Pace(shard.table.clock)
        self._handed_out = HandedOut(self._held_ids, self._held_references)
        self._let_go = LetGo(shard.table.clock)
        self._is_back = False  # whether this shard had let go of something that is being pinned a moment before
        self._unsure = b""  # the lease that was pinned last, if that was so
        self._me: Any = None  # the shard's own handle, once it is needed; only the rounds' thread touches it
        answering = Answering(shard.using)
        self._parting = Parting(
            shard.lock, shard.using, answering, self._note_let_go, shard.owners.wait_until_forgotten
        )
        self._rounds = Rounds(
            shard.table, self._unanchored, self._pace, shard.lock, shard.using, self._relays, self._call,
            answering, self._parting,
        )  # fmt: skip

    # Events, under the shard's lock.

    def pinned(self, lease: bytes, began: Began) -> None:
        """A lease that a borrower pinned depends on it; and so does one that came from another shard, until it is anchored here."""
        if self._anchors and len(self._table.live) == 1:
            self._rounds.wake()
        self._unsure = lease if self._is_back and not began.from_shard else b""
        if began.borrower and (self._anchors or not began.from_shard):
            size = len(self._table.items_of(lease))
            self._unanchored.note(lease, began.borrower, size=size, from_shard=began.from_shard)
            self._rounds.nudge()

    def resolved(self, lease: bytes, items: Sequence[Ref], *, soon: bool) -> None:
        """Another process has got references, which its owner must come to know."""
        if self._anchors:
            self._handed_out.note(map(actors.id_of, items))
            if lease in self._table.live:
                self._pass_on(lease, items, soon=soon)
            else:  # a take, or the last use, has ended it already
                self._see_off(items)

    def replaced(self, lease: bytes, former: Sequence[Ref]) -> None:
        """The copies' owner itself has brought them: nothing depends on the maker any more."""
        self._unanchored.forget(lease)
        self._let_go_of(former)

    def ended(self, lease: bytes, items: Sequence[Ref]) -> None:
        """Nothing is kept of a lease that isn't held here any more, but for a moment what was handed out just before."""
        self._unanchored.forget(lease)
        self._let_go_of(items)

    def is_unsure(self, lease: bytes) -> bool:
        """Whether this shard had let go of something in it just before."""
        return lease == self._unsure

    def depends_on(self, lease: bytes) -> bytes:
        """The process that a lease depends on."""
        return self._unanchored.depends_on(lease)

    def figures(self) -> Mapping[str, float]:
        """How many leases are unanchored; and a shard counts as recovering while leases depend on another shard."""
        figures = self._unanchored
        return {
            "unanchored": len(figures),
            "anchoring_behind_s": figures.behind_s(),
            "recovering": int(figures.from_shards() > 0),
        }

    def _note_let_go(self, items: Sequence[Ref]) -> None:
        self._let_go.note(actors.id_of(item) for item in items if item not in self._table.usage)
        if self._handed_out and not self._table.live and not len(self._parting):
            self._handed_out.drop_unheld()

    def _let_go_of(self, items: Sequence[Ref]) -> None:
        if self._anchors and any(actors.id_of(item) in self._handed_out for item in items):
            self._see_off(items)
        else:
            self._note_let_go(items)

    def _see_off(self, items: Sequence[Ref]) -> None:
        self._parting.add(items)
        self._rounds.nudge()

    def _pass_on(self, lease: bytes, items: Collection[Ref], *, soon: bool) -> None:
        size = len(self._table.items_of(lease))
        parts = None if len(items) >= size else map(actors.id_of, items)
        self._unanchored.note(lease, size=size, parts=parts, soon=soon)
        self._rounds.nudge()

    # Events, without the lock.

    def pinning(self, borrower: bytes, refs: Sequence[Ref]) -> None:
        """A borrower pins objects that were handed out: report to the owners who has got them, before the call is answered.

        The answer to this call would send what Ray knows here about their readers to the borrower; and, to whoever calls, what Ray
        knows about the relays.
        """
        with self._lock:
            self._is_back = self._let_go.are_recent(map(actors.id_of, refs))
        if not self._anchors:
            return
        self._note_reported(*self._rounds.finish(map(actors.id_of, refs)))
        if not borrower:
            return
        with self._lock:
            found = [ref for ref in refs if actors.id_of(ref) in self._handed_out] if self._handed_out else []
        waiting = counts.touchable({actors.id_of(ref): ref for ref in found}.values())
        if waiting:
            self._note_reported(waiting, self._rounds.anchor(waiting))

    def doubts(self, row: ResolveRow) -> NotNow | None:
        """A lease that depends on a dead process may hold nothing: that shows in a moment."""
        if not self._anchors:
            return None
        with self._lock:
            process = self._unanchored.depends_on(row.lease)
        return NotNow.DOUBTFUL if process and workers.is_surely_dead(process) else None

    def crowded(self) -> NotNow | None:
        """So many references wait to be anchored that those which are resolved now would not be within a second."""
        if not self._anchors:
            return None
        with self._lock:
            is_behind = self._pace.is_behind(self._unanchored.waiting, self._unanchored.behind_s())
        return NotNow.BEHIND if is_behind else None

    def threads(self) -> Sequence[Loop]:
        """The rounds, and what takes back the loans."""
        if not self._anchors:
            return ()
        return (Loop("anchoring", self._rounds.run), Loop("returning", self._rounds.returner.run))

    def closing(self, patience_s: float) -> None:
        """Drop what a round has in its hands, and what stays a little longer."""
        if self._anchors:
            until = time.monotonic() + patience_s
            self._rounds.close(patience_s)
            self._parting.close(max(until - time.monotonic(), 0.0))

    # Calls from other processes, and from the rounds' thread.

    @remote
    def anchors(self) -> bool:
        """Whether this registry anchors."""
        return self._anchors

    @remote
    def anchor_now(self, leases: Sequence[LeaseId]) -> list[bytes]:
        """Anchor these leases soon; which of them are unanchored still."""
        with self._lock:
            waiting = [lease for lease in leases if self._unanchored.hasten(lease)]
            self._rounds.nudge()
        return waiting

    @remote
    def give_back(self, call: GiveBack) -> list[Ref]:
        """Objects that these leases hold, for a process whose relay didn't give them back; no use of the leases.

        The relay gets them, too, so that their owners ask it: what it still knows of them comes to its end.
        """
        wanted = set(call.ids)
        found: dict[bytes, Ref] = {}
        with self._lock:
            for lease in call.leases:
                theirs = {actors.id_of(ref): ref for ref in actors.only_objects(self._table.items_of(lease))}
                mine = {id_: ref for id_, ref in theirs.items() if id_ in wanted and id_ not in found}
                if mine:
                    found.update(mine)
                    self._pass_on(lease, mine.values(), soon=True)
        refs = list(found.values())
        key = call.key[:LENDER] + os.urandom(LENDER)
        self._relays.hold(call.relay, key, refs, [])
        self._relays.give(call.relay, [key])
        return refs

    @remote
    def meet(self, refs: list[Ref]) -> None:
        """Nothing else: as they are arguments of this call, Ray has their owners learn that this shard has them, if it has."""

    @remote
    def watch(self) -> None:
        """The round is about to lend its batch."""
        self._rounds.watch()

    @remote
    def touch(self) -> None:
        """Take the counts of the round's batch to zero and up again. No other call is carried out meanwhile."""
        self._note_reported(*self._rounds.touch_batch())

    def _call(self, method: str) -> Any:
        if self._me is None:
            self._me = _own_handle()
        return _call_self(self._me, {"watch": Anchoring.watch, "touch": Anchoring.touch}[method])

    def _note_reported(self, refs: Sequence[Ref], touched: Sequence[Touch]) -> None:
        with self._lock:
            self._handed_out.reported(
                actors.id_of(ref) for ref, state in zip(refs, touched, strict=True) if state is Touch.REPORTED
            )

    def _held_references(self) -> int:
        return self._table.usage.references + self._parting.references

    def _held_ids(self) -> set[bytes]:
        held = (*self._table.items(), *self._parting.items())
        return {*map(actors.id_of, held), *self._rounds.in_hand()}


def _own_handle() -> Any:
    """The handle of the actor that this process is."""
    import ray

    return ray.get_runtime_context().current_actor


def _call_self(me: Any, method: Callable[[Any], Any]) -> Any:
    """Call a method of a part of the very shard that this process is; the reply."""
    call = Call(method)
    return getattr(me, call.method).remote(*call.args)

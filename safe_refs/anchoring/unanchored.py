"""Which leases of a shard are unanchored, and when to try next. Pure.

A lease is *unanchored* at a shard as long as the owners of its objects may not know the shard, or may not know to whom the shard
passed them. So a lease becomes unanchored if a process pinned it that only borrowed the references, if it was resolved, or if its
record came from another shard or went to one. A lease that a borrower pinned *depends on* the borrower until a round finds that the
owners know this shard. If the process dies before that, the objects are gone, whatever the shard holds, and the lease is lost.

Of a lease that holds many objects, and of which one was passed on, only that one has to be anchored.

    note ──► due (after 0.2 s) ──► take ──► [a round] ──► outcome ──┬── the owners know all: forgotten
              ▲                                                     ├── passed on again meanwhile: due again
              └────────────── due again, ever later ◄───────────────┼── an owner doesn't know this shard, or was busy
                                                                    └── … and the process is dead for 2 s: lost

What always holds: nothing here knows Ray, threads or a clock of its own. A shard uses it under its lock only. There is at most one
entry for each live lease (`forget` says that one has ended), and the heap is at most twice as long as the entries are many, and 64.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator

from .._ray.counts import Touch

GATHERS_S = 0.2  # how long a round waits for company
LONGEST_PAUSE_S = 30.0
SILENT_S = 2.0  # at most, until a lease is tried again of which an owner was silent
GRACE_S = 2.0  # what a dead process had reported may still be on its way to the owner
_SOON_TRIES = 20
_SLACK = 64


class _Entry:
    """An unanchored lease.

    Attributes:
        depends_on: address of the process that it depends on; empty for none.
        depends_since: the mark with which that was noted.
        from_shard: that process is another shard.
        died_at: when that process was found dead; None while it lives.
        due_at: when to try next; None while a round has the lease.
        tries: how often that was without success.
        silences: how often an owner was silent, since it was last noted.
        marks: the last of all marks that it has got, so that a round sees whether it was noted meanwhile.
        parts: the objects of it that were passed on, each with the mark of the last time; None for all that it holds.
        size: how many references these are.
    """

    __slots__ = (
        "depends_on",
        "depends_since",
        "died_at",
        "due_at",
        "from_shard",
        "marks",
        "parts",
        "silences",
        "size",
        "tries",
    )

    def __init__(self) -> None:
        self.parts: dict[bytes, int] | None = {}
        self.size = 0
        self.depends_on, self.depends_since = b"", 0
        self.from_shard = False
        self.died_at: float | None = None
        self.due_at: float | None = 0.0
        self.tries = self.silences = 0
        self.marks = 0

    def mark(self, mark: int, size: int, parts: Iterable[bytes] | None) -> None:
        """So many objects of it were passed on: these, or all."""
        self.marks = mark
        if parts is None or self.parts is None:
            self.parts, self.size = None, max(self.size, size)
        else:
            self.parts.update(dict.fromkeys(parts, self.marks))
            self.size = len(self.parts)

    def anchored(self, marks: int) -> None:
        """What was passed on up to this mark is known to the owners."""
        if self.parts is not None:
            self.parts = {id_: mark for id_, mark in self.parts.items() if mark > marks}
            self.size = len(self.parts)


class Unanchored:
    """The unanchored leases of one shard.

    Args:
        clock: monotonic seconds.

    Attributes:
        waiting: references in leases whose first round is to come, or to end.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.waiting = 0
        self._marks = itertools.count(1)  # one for each note: a lease that ends, and lives again, has none of before
        # The leases that `waiting` counts: since when, and for how many references; the oldest first.
        self._first: dict[bytes, tuple[float, int]] = {}
        self._entries: dict[bytes, _Entry] = {}  # at most one for each live lease
        # A heap of when leases are due. A lease that is put again leaves its old time in it, and so does one that is forgotten.
        # So the heap is made anew when it is longer than twice the entries, and 64.
        self._queue: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def behind_s(self) -> float:
        """For how many seconds the lease that waits longest for the end of its first round has waited; 0 if none waits."""
        return next((self._clock() - since for since, _ in self._first.values()), 0.0)

    def note(
        self,
        lease: bytes,
        depends_on: bytes = b"",
        *,
        size: int = 1,
        parts: Iterable[bytes] | None = None,
        from_shard: bool = False,
        soon: bool = False,
    ) -> None:
        """A lease was passed on, or has come from a process that doesn't own its objects.

        Args:
            lease: its id.
            depends_on: the address of that process.
            size: how many references it holds.
            parts: the objects of it that were passed on; None for all.
            from_shard: that process is another shard.
            soon: try it without waiting for company.
        """
        entry = self._entries.get(lease)
        if entry is None:
            entry = self._entries[lease] = _Entry()
        elif not depends_on and not soon and (entry.due_at is None or entry.due_at <= self._clock() + GATHERS_S):
            # It is due soon, or a round has it, and sees by the mark that it has to be tried again.
            entry.mark(next(self._marks), size, parts)
            self._wait_for_first(lease, entry)
            return
        entry.mark(next(self._marks), size, parts)
        entry.tries = entry.silences = 0
        self._wait_for_first(lease, entry)
        if depends_on:
            entry.depends_on, entry.died_at, entry.from_shard = depends_on, None, from_shard
            entry.depends_since = entry.marks
        self._put(lease, entry, 0.0 if soon else GATHERS_S)

    def hasten(self, lease: bytes) -> bool:
        """Have a lease tried at once; whether it is unanchored.

        It gets no mark, because it is not passed on by that. Callers ask every few milliseconds until it is anchored, and a round
        that has it meanwhile would never be the last.
        """
        entry = self._entries.get(lease)
        if entry is None:
            return False
        if entry.due_at is not None and entry.due_at > self._clock():
            entry.tries = 0
            self._put(lease, entry, 0.0)
        return True

    def depends_on(self, lease: bytes) -> bytes:
        """The address of the process that a lease depends on; empty if it depends on none."""
        entry = self._entries.get(lease)
        return b"" if entry is None else entry.depends_on

    def is_from_shard(self, lease: bytes) -> bool:
        """Whether that process is another shard."""
        entry = self._entries.get(lease)
        return entry is not None and entry.from_shard

    def from_shards(self) -> int:
        """How many leases came from other shards, and depend on those still."""
        return sum(entry.from_shard for entry in self._entries.values())

    def tries(self, lease: bytes) -> int:
        """How often it was tried without success to anchor a lease."""
        entry = self._entries.get(lease)
        return 0 if entry is None else entry.tries

    def __contains__(self, lease: bytes) -> bool:
        return lease in self._entries

    def forget(self, lease: bytes) -> None:
        """A lease isn't held any more, or holds copies now, which the shard got from their owner itself."""
        self._had_first(lease)
        if self._entries.pop(lease, None) is not None:
            self._trim()

    def take(self) -> Iterator[tuple[bytes, int]]:
        """The leases that are due, soonest first, each with its marks, for `outcome`; those not taken stay due."""
        now = self._clock()
        while self._queue and self._queue[0][0] <= now:
            due_at, lease = heapq.heappop(self._queue)
            entry = self._entries.get(lease)
            if entry is not None and entry.due_at == due_at:
                entry.due_at = None
                yield lease, entry.marks

    def wanted(self, lease: bytes, marks: int) -> Collection[bytes] | None:
        """The objects of a lease that a round has to anchor which took it with these marks; None for all that it holds, if any."""
        entry = self._entries.get(lease)
        if entry is None or entry.parts is None:
            return None
        return {id_ for id_, mark in entry.parts.items() if mark <= marks}

    def next_in_s(self) -> float | None:
        """Seconds until a lease may be due; None if none is."""
        return max(0.0, self._queue[0][0] - self._clock()) if self._queue else None

    def outcome(self, lease: bytes, marks: int, known: Touch, *, confirmed: bool = True) -> bool:
        """What a round found for a lease; True if its objects are gone, because it depended on a process that is dead.

        Args:
            lease: its id.
            marks: as `take` gave them.
            known: whether the owners know this shard: the worst answer of all owners.
            confirmed: if they do, whether they will know it after the round, too. Otherwise they may know the relays only, as yet.
        """
        entry = self._entries.get(lease)
        if entry is None:
            return False
        if known is Touch.REPORTED:
            if entry.depends_since <= marks:
                entry.depends_on, entry.died_at = b"", None
            if confirmed and entry.marks == marks:
                self.forget(lease)
            else:
                entry.from_shard = entry.from_shard and not confirmed
                entry.tries = 0
                if confirmed:
                    entry.anchored(marks)
                self._had_first(lease)
                if entry.marks != marks:
                    self._wait_for_first(lease, entry)
                self._put(lease, entry, GATHERS_S)  # it was passed on again meanwhile, or is to be looked at again
        elif known is Touch.BUSY:
            self._put(lease, entry, _pause_s(entry.silences, SILENT_S))
        elif self.is_verdict_due(lease):
            self.forget(lease)
            return True
        else:
            entry.tries += 1
            self._had_first(lease)
            if entry.marks != marks:
                entry.tries = 0
                self._wait_for_first(lease, entry)
            # Another shard is anchoring the same lease by now, or a verdict is due: both soon.
            is_soon = entry.died_at is not None or (entry.from_shard and entry.tries < _SOON_TRIES)
            self._put(lease, entry, GATHERS_S if is_soon else _pause_s(entry.tries, LONGEST_PAUSE_S))
        return False

    def meets_silence(self, lease: bytes) -> None:
        """An owner doesn't answer, so that a round can't report to it. Others don't wait for that; it is tried ever more seldom."""
        self._had_first(lease)
        if lease in self._entries:
            self._entries[lease].silences += 1

    def is_verdict_due(self, lease: bytes) -> bool:
        """Whether the objects of a lease are gone if their owners don't know this shard by now."""
        entry = self._entries.get(lease)
        return entry is not None and entry.died_at is not None and self._clock() - entry.died_at > GRACE_S

    def put_off_verdict(self, lease: bytes) -> None:
        """An owner doesn't respond just now: it may not have processed yet what the dead process reported."""
        entry = self._entries.get(lease)
        if entry is not None and entry.died_at is not None:
            entry.died_at = self._clock()

    def depended_on(self) -> set[bytes]:
        """The processes, not known to be dead, that leases depend on."""
        return {entry.depends_on for entry in self._entries.values() if entry.depends_on and entry.died_at is None}

    def process_died(self, process: bytes) -> None:
        """A process is dead: leases that depend on it are lost, unless it has reported to the owners before."""
        now = self._clock()
        for lease, entry in self._entries.items():
            if entry.depends_on == process and entry.died_at is None:
                entry.died_at = now
                self._put(lease, entry, 0.0)

    def _wait_for_first(self, lease: bytes, entry: _Entry) -> None:
        since, size = self._first.get(lease, (self._clock(), 0))
        self._first[lease] = (since, entry.size)
        self.waiting += entry.size - size

    def _had_first(self, lease: bytes) -> None:
        _, size = self._first.pop(lease, (0.0, 0))
        self.waiting -= size

    def _put(self, lease: bytes, entry: _Entry, pause_s: float) -> None:
        entry.due_at = self._clock() + pause_s
        heapq.heappush(self._queue, (entry.due_at, lease))
        self._trim()

    def _trim(self) -> None:
        if len(self._queue) > 2 * len(self._entries) + _SLACK:
            self._queue = [(each.due_at, id_) for id_, each in self._entries.items() if each.due_at is not None]
            heapq.heapify(self._queue)


def _pause_s(times: int, longest_s: float) -> float:
    """Twice as long each time, also after hours: powers of two overflow."""
    return min(GATHERS_S * (1 << min(times, 20)), longest_s)

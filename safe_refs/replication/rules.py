"""What one shard owes the others, what it does when something happens to a lease, and when it knows enough to say "not found". Pure.

A lease with replicas lives on several shards, and clients talk to all of them. If a client can't reach one of them (the shard is
down, or the client dies half-way), the others pass the change on. Each change of a lease that can't be derived from a clock is
*news*: a shard owes its news to every other holder of the lease, until that holder has received them. A shard that comes back empty
asks all others for what it should hold.

```
shard 0: pin A, crashes         shard 1: A released         shard 0: comes back, empty ("recovering")
                                  `changed([A])`: owed to 0
shard 0 -> 1: what did we share?  `shared_with(0)`: [A]; from now on whatever arrives late is news for 0 (`pinned`, `received`)
shard 0: `received(records)`, `answered(1, …)`; all have answered: `recovered()`, `end_recovery(…)`, and it says "not found" again
```

`Rules` is driven by the shard's part under the shard's lock, and by the explorer of the tests. The methods named after an event say
in their answer what the part has to do about it; most of them, whether news are owed now that were not before.

What always holds: records merge in any order and any number of times (see `records`); an ended lease beats a live one, unless its
time was over and it had been renewed elsewhere, so that nothing that was released comes back; a shard that has restarted does not
answer "not found" before the others have answered it. If too few of them know what it held, its recovery is *lossy*: leases may be
gone, and the registry begins a new epoch, so that "lost" is the answer for leases of an older one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ..errors import LeaseExpiredError, LeaseLostError, LeaseNotFoundError, SafeRefsError
from ..registry.leases import LeaseTable
from ..registry.records import Identity
from ..registry.wire import Granted, NotNow, Overdue, Refused
from .records import Record, Records, end_record_of, granted, merge_end, merge_record, record_of
from .topology import Topology, completed, grown

T = TypeVar("T")

_LONGEST_CALL_S = 600.0  # after it, no call is still under way to one shard that another has carried out


class Rules(Generic[T]):
    """One shard's side of replication.

    Args:
        shard: which one it is, from 0.
        topology: of its registry.
        table: what it holds.
        restarted: whether it held leases before, which it has to get back from the others.
        clock: monotonic seconds.

    Attributes:
        topology: the newest that this shard knows.
    """

    def __init__(
        self, shard: int, topology: Topology, table: LeaseTable[T], restarted: bool, clock: Callable[[], float]
    ) -> None:
        self.shard = shard
        self.topology = topology
        self._table = table
        self._clock = clock
        # By shard. A lease stands in each at most once; those that have ended and are forgotten drop out when they are sent.
        self._news: dict[int, OrderedDict[bytes, None]] = {}
        self._is_recovering = restarted
        # All of these hold shards, so at most as many as the registry has.
        self._unheard = (
            set(self.others()) if restarted else set[int]()
        )  # others that have yet to say what this one held
        self._ignorant: set[int] = set()  # others that could not say all of it, as they had restarted themselves
        self._given_up: set[int] = set()  # others that this shard gave up waiting for, when it recovered
        self._returned: dict[int, float] = {}  # others that came back and asked what they held, and when
        self._moved: set[int] = set()  # of shard 0: those that have moved all that is others' since the registry grew

    def others(self) -> list[int]:
        """All other shards of the registry."""
        return [shard for shard in range(self.topology.shards) if shard != self.shard]

    # What happens to a lease.

    def pinned(self, lease: bytes, *, from_shard: bool = False) -> bool:
        """A lease was pinned here, by a client or `from_shard` by `received`: whether that is news.

        Clients pin at all holders themselves, so it is news only for a shard that came back; and `received` sees to that itself.
        """
        return not from_shard and self._owe_returned([lease])

    def changed(self, leases: Iterable[bytes]) -> bool:
        """These leases were used, renewed, taken or released here: all their other holders are owed it; whether there are any."""
        owed = False
        if self.topology.shards > 1:
            for lease in leases:
                for shard in self.topology.everywhere(lease):
                    if shard != self.shard:
                        self._owe(lease, shard)
                        owed = True
        return owed

    def replaced(self, lease: bytes) -> bool:
        """A lease holds this shard's own copies now: whether that is news.

        Other holders make their own. But one that came back may have got the lease from here before, with the originals; and so may
        a new holder, while the registry grows.
        """
        returned = self._owe_returned([lease])
        return (bool(self.topology.before) and self.changed([lease])) or returned

    def lost(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        """What these leases held is gone from here: which other shards to ask for which of them back (by their `missed`)."""
        asked: dict[int, list[bytes]] = {}
        for lease in leases:
            for shard in self.topology.holders(lease):
                if shard != self.shard:
                    asked.setdefault(shard, []).append(lease)
        return asked

    def missed(self, leases: Iterable[bytes], shards: Iterable[int]) -> None:
        """Those shards could not be reached when these leases were made, or have lost them: they are owed them."""
        for shard in shards:
            self.give_back(shard, leases)
            self._returned[shard] = (
                self._clock()
            )  # it has forgotten what it knew of them, which may be under way to here

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused | None:
        """The table refuses to do something with a lease, for a use of that id: what to answer instead; None for the refusal."""
        if isinstance(refusal, (LeaseNotFoundError, LeaseLostError)):
            return NotNow.RECOVERING if self.is_recovering else None
        ended = self._table.tombstones.revocable(lease)
        if isinstance(refusal, LeaseExpiredError) and ended is not None and not ended.lease.is_spent:
            return Overdue(refusal)
        return Granted(refusal) if granted(self._table, lease, use) else None

    # News.

    def owing(self) -> list[int]:
        """The shards that are owed news."""
        return [shard for shard, leases in self._news.items() if leases]

    def take_news(self, shard: int, most: int) -> list[bytes]:
        """Take the oldest news for a shard off the list; `give_back` those that it didn't get."""
        news = self._news.get(shard, OrderedDict())
        taken: list[bytes] = []
        while news and len(taken) < most:
            taken.append(news.popitem(last=False)[0])
        return taken

    def give_back(self, shard: int, leases: Iterable[bytes]) -> None:
        """News that could not be delivered are owed still."""
        for lease in leases:
            self._owe(lease, shard)

    def records(self, leases: Iterable[bytes]) -> Records:
        """What there is to say of leases as they are now."""
        found = Records([], [])
        for lease in leases:
            if (record := record_of(self._table, lease)) is not None:
                found.live.append(record)
            elif (end := end_record_of(self._table, lease)) is not None:
                found.ended.append(end)
        return found

    def received(self, records: Records, identity: Identity | None = None) -> list[bytes]:
        """Merge what another shard has sent; which leases were not held here before, and are now.

        Those depend on the sender. Of the others some may hold the sender's copies now, in place of what they held.

        Args:
            records: what it says of leases.
            identity: the registry's, as that shard knows it: if it is a newer one, it holds here, too.
        """
        named: list[bytes] = []
        if self._returned:
            named = [*(end.lease for end in records.ended), *(record.lease for record in records.live)]
        before = [self._state_of(lease) for lease in named]
        for end in records.ended:  # first, as ends beat records
            if not merge_end(self._table, end) and end.lease in self._table.live:
                self.changed(
                    [end.lease]
                )  # the use that ended it there was given back, or it was renewed: news for the sender
        new = self._merge([record for record in records.live if not self._has_moved(record.lease)])
        self._owe_returned(
            [lease for lease, state in zip(named, before, strict=True) if self._state_of(lease) != state]
        )
        if identity is not None and identity.generation > self._table.identity.generation:
            self._table.identity = identity
        return new

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        new: list[bytes] = []
        for record in records:
            held_before = record.lease in self._table.live  # not `find`: it would end a lease whose renewal this may be
            ended_before = record.lease in self._table.tombstones
            merge_record(self._table, record)
            if ended_before:
                # It has ended here, which is news for the sender; or it lives again, which is news for whoever heard of its end.
                self.changed([record.lease])
            if not held_before and record.lease in self._table.live:
                new.append(record.lease)
        return new

    # A shard comes back.

    @property
    def is_recovering(self) -> bool:
        """It doesn't know yet all that it should, and so doesn't say "not found"."""
        return self._is_recovering

    @property
    def unheard(self) -> frozenset[int]:
        """The shards that have not yet said what this one held."""
        return frozenset(self._unheard)

    def shared_with(self, shard: int) -> tuple[list[bytes], bool]:
        """Another shard has come back and asks: ids of the leases, live or ended, that it is to hold, and whether those are all."""
        self._returned[shard] = self._clock()
        complete = shard not in self._unheard and shard not in self._given_up
        ids = (*self._table.tombstones.ids(), *self._table.live)
        return [lease for lease in ids if shard in self.topology.everywhere(lease)], complete

    def shared_all(self, shard: int) -> None:
        """That shard has taken all of them; from here on both know the same."""
        self._given_up.discard(shard)

    def answered(self, shard: int, complete: bool) -> None:
        """Another shard has sent all that it shares with this one; `complete` as of its `shared_with`."""
        self._unheard.discard(shard)
        if not complete:
            self._ignorant.add(shard)

    def recovered(self) -> bool:
        """All others have answered, or are given up: whether leases may be lost. It is still recovering, until `end_recovery`."""
        self._given_up, self._unheard = self._unheard, set()
        ignorant = self._ignorant | self._given_up
        self._ignorant = set()
        # Of the R holders of a lease one is this shard. If all R - 1 others may be ignorant, nobody may know the lease.
        return len(ignorant) > self.topology.replicas - 2

    def end_recovery(self, new: Identity | None) -> int:
        """From now on the shard answers for itself; how many leases it has let go of, as they had moved.

        Args:
            new: the registry's new identity, if leases may be lost.
        """
        if new is not None:
            self._table.identity = new
        self._is_recovering = False
        return 0 if self.topology.before else self.drop_moved(list(self._table.live))

    # The topology changes.

    def is_stale(self, version: int) -> bool:
        """Whether a caller goes by another topology than this shard, also by a newer one; 0: the call doesn't depend on it."""
        return version not in (0, self.topology.version)

    def take_topology(self, found: Topology | None) -> bool:
        """The topology as the control store has it now: whether it is newer than what this shard knew."""
        if found is None or found.version <= self.topology.version:
            return False
        self.topology = found
        self._moved = set()
        return True

    def grow(self, shards: int) -> Topology | None:
        """Somebody wants so many shards, which run: the topology that is to be written; None if there is nothing to do, or not yet.

        Only shard 0 is asked: one shard, one growth at a time.
        """
        return grown(self.topology, shards)

    def has_moved(self, shard: int, version: int) -> Topology | None:
        """A shard has moved away what is others' by that version: the topology to be written, if it was the last one that had to.

        Each shard reports this to shard 0 only, again and again until the growth is over, as shard 0 forgets it in a crash.
        """
        if version != self.topology.version or not self.topology.before:
            return None
        self._moved.add(shard)
        return completed(self.topology) if self._moved.issuperset(range(self.topology.before)) else None

    def misplaced(self) -> list[bytes]:
        """Ids of leases, live or ended, that have other holders since the registry has grown."""
        return [lease for lease in (*self._table.tombstones.ids(), *self._table.live) if self.newcomers(lease)]

    def newcomers(self, lease: bytes) -> list[int]:
        """The shards that are to hold a lease and did not before the registry grew."""
        topology = self.topology
        if not topology.before:
            return []
        old = topology._replace(shards=topology.before, before=0).holders(lease)
        return [shard for shard in topology.holders(lease) if shard not in old]

    def drop_moved(self, leases: Iterable[bytes]) -> int:
        """Let go of leases that others hold from now on; how many that were."""
        dropped = 0
        for lease in leases:
            if self.shard not in self.topology.holders(lease):
                if lease in self._table.live:
                    self._table.let_go(lease)
                dropped += 1
        return dropped

    def _has_moved(self, lease: bytes) -> bool:
        """Whether a lease has moved from here to other shards since the registry grew, so that records of it are not for this one.

        The lease's holders still send its news to everybody who might hold it. Two exceptions: a shard that recovers takes back
        whatever it held, because all holders of before may be needed until the lease has moved; and a new shard takes what it is
        given, because it may not know yet the topology in which it exists.
        """
        return (
            not self.is_recovering
            and self.shard < self.topology.shards
            and self.shard not in self.topology.holders(lease)
            and not self._table.items_of(lease)
        )

    def _owe_returned(self, leases: Iterable[bytes]) -> bool:
        """This shard has learned of a change that reaches all holders anyway: news for those that came back lately, if there are any.

        Such a shard may have received the change before its crash, and have asked here before this shard knew of it: then nobody
        else would send it again.
        """
        for shard in [shard for shard, at in self._returned.items() if self._clock() > at + _LONGEST_CALL_S]:
            del self._returned[shard]
        owed = False
        if self._returned:
            for lease in leases:
                for shard in self.topology.everywhere(lease):
                    if shard in self._returned:
                        self._owe(lease, shard)
                        owed = True
        return owed

    def _owe(self, lease: bytes, shard: int) -> None:
        self._news.setdefault(shard, OrderedDict())[lease] = None

    def _state_of(self, lease: bytes) -> tuple[object, ...]:
        """What can change of a lease."""
        held = self._table.live.get(lease)
        if held is not None:
            return held.used, held.returned, held.time
        ended = self._table.tombstones.revocable(lease)
        return lease in self._table.tombstones, ended and (ended.lease.returned, ended.lease.time)

"""What one shard owes the others, and when it knows enough to say "not found". Pure, as the rules are.

A lease with replicas lives on several shards. Clients talk to all of them; what a client could not tell one of them (it was down, the
client died half-way) the others tell it: each change of a lease that cannot be derived from a clock is *news*, owed to every other
holder until it has taken it. A shard that comes back empty asks all others for what it should hold.

What always holds: news are copies and endings, which merge in any order and any number of times (see `Copy`); an ended lease beats a
live one, so nothing that was released comes back; a shard that has restarted does not answer "not found" before it has heard from the
others, and if too few of them could tell it what it held, it is *lossy*: it says "lost" from then on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from .leases import Copy, Ending, LeaseTable
from .topology import Topology

T = TypeVar("T")

_LONGEST_CALL_S = 600.0  # after it, no call is still under way to one shard that another has carried out


class Parcel(NamedTuple):
    """Copies and endings for another shard, and the address of the process that sends them, on which the copies hang at first."""

    copies: list[Copy]
    endings: list[Ending]
    sender: bytes = b""


class Replica(Generic[T]):
    """One shard's side of replication.

    Args:
        shard: which one it is, from 0.
        topology: of its registry.
        table: what it holds.
        restarted: whether it held leases before, which it has to get back from the others.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        shard: int,
        topology: Topology,
        table: LeaseTable[T],
        restarted: bool,
        clock: Callable[[], float],
    ) -> None:
        self.shard = shard
        self.topology = topology
        self._table = table
        self._news: dict[int, OrderedDict[bytes, None]] = {}
        self._to_hear = set(self.others()) if restarted else set[int]()
        self._silent: set[int] = set()  # others that could not tell what this shard held, as they restarted themselves
        self._clock = clock
        self._asked: dict[int, float] = {}  # others that came back and asked what they held, and when
        self._unheard: set[int] = set()  # others that this shard gave up waiting for, when it recovered

    def others(self) -> list[int]:
        """All other shards of the registry."""
        return [shard for shard in range(self.topology.shards) if shard != self.shard]

    @property
    def to_hear(self) -> frozenset[int]:
        """The shards that have not yet told what this one held. As long as there are any, it is recovering."""
        return frozenset(self._to_hear)

    @property
    def lossy(self) -> bool:
        """Whether leases may be gone for good with a restart, as no other shard that held them could tell."""
        return len(self._silent) > self.topology.replicas - 2

    def knows_of(self, shard: int) -> bool:
        """Whether this shard knows every lease that `shard` shares with it, so that `shard` may restart and ask for them."""
        return shard not in self._to_hear and shard not in self._unheard

    def told(self, shard: int) -> None:
        """This shard has told another that came back all that it knows; from here on they know the same."""
        self._unheard.discard(shard)

    def hear(self, shard: int, complete: bool) -> None:
        """Another shard has told all that it shares with this one; `complete` is its `knows_of`."""
        self._to_hear.discard(shard)
        if not complete:
            self._silent.add(shard)

    def settle(self) -> bool:
        """The recovery is over, for better or worse; whether it was lossy. From now on the shard answers for itself."""
        self._unheard, self._to_hear = self._to_hear, set()
        self._silent |= self._unheard
        lossy = self.lossy
        self._silent = set()
        return lossy

    def owe(self, leases: Iterable[bytes]) -> bool:
        """These leases have changed: all their other holders are to hear of it. Whether there are any."""
        owed = False
        for lease in leases:
            for shard in self.topology.everywhere(lease):
                if shard != self.shard:
                    self._news.setdefault(shard, OrderedDict())[lease] = None
                    owed = True
        return owed

    def owe_returned(self, leases: Iterable[bytes]) -> bool:
        """This shard has heard something of leases that all holders are told: whether one is to hear it from here, too.

        One that came back is. It may have heard it before its crash only, and have asked here before it was known.
        """
        for shard in [shard for shard, at in self._asked.items() if self._clock() > at + _LONGEST_CALL_S]:
            del self._asked[shard]
        owed = False
        if self._asked:
            for lease in leases:
                for shard in self.topology.everywhere(lease):
                    if shard in self._asked:
                        self.owe_one(lease, shard)
                        owed = True
        return owed

    def owe_one(self, lease: bytes, shard: int) -> None:
        """One other holder is to hear of a lease: it could not be reached when the lease was made."""
        self._news.setdefault(shard, OrderedDict())[lease] = None

    def owing(self) -> dict[int, list[bytes]]:
        """What is owed to whom, oldest first."""
        return {shard: list(leases) for shard, leases in self._news.items() if leases}

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
            self.owe_one(lease, shard)

    def parcel(self, leases: Iterable[bytes]) -> Parcel:
        """What is to be told of leases as they are now."""
        copies: list[Copy] = []
        endings: list[Ending] = []
        for lease in leases:
            if (copy := self._table.copy(lease)) is not None:
                copies.append(copy)
            elif (ending := self._table.ending(lease)) is not None:
                endings.append(ending)
        return Parcel(copies, endings)

    def receive(self, parcel: Parcel) -> list[bytes]:
        """Take what another shard tells: endings first, as they beat copies. Which leases were not held here before."""
        told: list[bytes] = []
        if self._asked:
            told = [*(ending.lease for ending in parcel.endings), *(copy.lease for copy in parcel.copies)]
        before = [self._known_of(lease) for lease in told]
        for ending in parcel.endings:
            self._table.adopt(ending)
        copies = [copy for copy in parcel.copies if not self._has_moved(copy.lease)]
        new = [copy.lease for copy in copies if not self._table.items_of(copy.lease)]
        for copy in copies:
            # One that had ended here is news for the sender, in case it hasn't heard.
            if not self._table.take_over(copy):
                self.owe([copy.lease])
        self.owe_returned([lease for lease, known in zip(told, before, strict=True) if self._known_of(lease) != known])
        return new

    def _has_moved(self, lease: bytes) -> bool:
        """Whether a lease is others' since the registry has grown, and not here any more; its holders tell everybody of it still.

        What a shard that recovers gets back is, for once, not: its holders of before may all be needed until it has moved. And a
        shard that is new may not have heard of the growth that it came with.
        """
        return (
            not self._to_hear
            and self.shard < self.topology.shards
            and self.shard not in self.topology.holders(lease)
            and not self._table.items_of(lease)
        )

    def _known_of(self, lease: bytes) -> tuple[object, ...]:
        """What can change of a lease."""
        copy = self._table.copy(lease)
        return (self._table.ending(lease) is not None,) if copy is None else (copy.used, copy.renewals, copy.terms.ttl)

    def shared_with(self, shard: int) -> list[bytes]:
        """Ids of all leases, live or ended, that `shard`, which asks as it came back, is to hold."""
        self._asked[shard] = self._clock()
        live, ended = self._table.ids()
        return [lease for lease in (*ended, *live) if shard in self.topology.everywhere(lease)]

    def misplaced(self) -> list[bytes]:
        """Ids of leases, live or ended, that have other holders since the registry has grown."""
        live, ended = self._table.ids()
        return [lease for lease in (*ended, *live) if self.newcomers(lease)]

    def newcomers(self, lease: bytes) -> list[int]:
        """The shards that are to hold a lease and did not before the registry grew."""
        topology = self.topology
        if not topology.before:
            return []
        old = topology._replace(shards=topology.before, before=0).holders(lease)
        return [shard for shard in topology.holders(lease) if shard not in old]

    def drop_strays(self) -> int:
        """After a recovery: let go of what this shard held before the registry grew, and others gave back; how many that were."""
        return 0 if self.topology.before else self.drop_moved(self._table.ids()[0])

    def drop_moved(self, leases: Iterable[bytes]) -> int:
        """Let go of leases that others hold from now on; how many that were."""
        dropped = 0
        for lease in leases:
            if self.shard not in self.topology.holders(lease):
                self._table.drop(lease)
                dropped += 1
        return dropped

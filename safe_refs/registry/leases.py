"""The rules: when a lease begins, who may resolve it, how it ends, and what is remembered of it afterwards.

`LeaseTable` is pure: no Ray, no threads, no clock of its own (both clocks are passed in), and what it holds is opaque to it, so that
a test can drive it with strings through a million steps. The shard wraps it in a lock and gives it references.

What always holds: a lease is live or it is ended, and once ended it never lives again; it ends only by release, take, ttl, uses,
or because its owners are gone; an ended lease holds nothing. Ids are made by the caller, so that every call can be repeated:
pinning a live lease again changes nothing, releasing an ended one answers 0, and a pin that comes after its own release is refused.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from ..config import Limits
from ..errors import (
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
    RegistryFullError,
)
from .records import LeaseInfo, Origin, Query, RegistryStats, Terms
from .usage import Usage

T = TypeVar("T")

_MOST_USES_REMEMBERED = 16  # of an ended lease; a hundred thousand of those are remembered


def _length(ttl: float | None) -> float:
    return math.inf if ttl is None else ttl


class _Lease(Generic[T]):
    """A live lease."""

    __slots__ = ("expires_at", "items", "number", "origin", "owners", "renewals", "since", "terms", "used")

    def __init__(
        self, number: int, items: tuple[T, ...], owners: tuple[bytes, ...], terms: Terms, origin: Origin, since: float
    ) -> None:
        self.number = number
        self.items = items
        self.owners = owners
        self.terms = terms
        self.origin = origin
        self.since = since
        self.expires_at = None if terms.ttl is None else since + terms.ttl
        self.renewals = 0
        self.used: frozenset[bytes] = frozenset()

    @property
    def uses_left(self) -> int | None:
        return None if self.terms.uses is None else self.terms.uses - len(self.used)


class Copy(NamedTuple):
    """A live lease on its way to another shard.

    What can change of a lease only ever grows (the set of uses, the number of renewals), so that two copies of one can be merged in
    any order, and again.

    Attributes:
        lease: its id.
        items: what it holds.
        owners: for each item, what names the process that it dies with.
        terms: as of its last renewal.
        origin: who made it.
        age_s: seconds since it began.
        left_s: seconds until its ttl runs out; None without one.
        renewals: how often it was renewed.
        used: ids of the uses that it has had, where they count.
    """

    lease: bytes
    items: tuple[Any, ...]
    owners: tuple[bytes, ...]
    terms: Terms
    origin: Origin
    age_s: float
    left_s: float | None
    renewals: int
    used: frozenset[bytes]


class Ending(NamedTuple):
    """The news that a lease has ended, on its way to another shard.

    How, seconds ago, when (wall clock), by whom, on what terms, and which uses it had, where they count; see `ended_by`.
    """

    lease: bytes
    how: str
    ago_s: float
    at: float
    by: str
    terms: Terms
    uses: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a listing: the rows, of each its id, what it holds and a mark, and where the next page begins (None: nowhere)."""

    infos: list[LeaseInfo]
    leases: list[bytes]
    items: list[tuple[T, ...]]
    marks: list[bytes]
    after: tuple[float, int] | None


class _End(NamedTuple):
    """How a lease ended: which of the counters of `RegistryStats`, when (both clocks), by whom, on what terms, after which uses."""

    how: str
    since: float
    at: float
    by: str
    terms: Terms
    uses: tuple[bytes, ...] = ()
    unseen: bool = False  # a release of what this table never held


class LeaseTable(Generic[T]):
    """All leases of one shard.

    Args:
        registry: name of the registry, for messages.
        epoch: random bytes that name this start of it.
        generation: which start it is, from 1.
        clock: monotonic seconds; everything that ends by time goes by it.
        wall: seconds since the epoch; only for telling people when something was.
        limits: what may be held at most.
        alone: whether no other table holds the same leases.
    """

    def __init__(
        self,
        *,
        registry: str,
        epoch: bytes,
        generation: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        limits: Limits | None = None,
        alone: bool = True,
    ) -> None:
        self.registry = registry
        self.alone = alone
        self.epoch = epoch
        self.generation = generation
        self.usage: Usage[T] = Usage(limits or Limits())
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._live: dict[bytes, _Lease[T]] = {}
        self._ended: OrderedDict[bytes, _End] = OrderedDict()
        self._lost: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._deadlines: list[tuple[float, bytes]] = []
        self._by_owner: dict[bytes, dict[bytes, None]] = {}
        self._dead_owners: set[bytes] = set()
        self._pinned = 0
        self._resolved = 0
        self._ends: Counter[str] = Counter()

    def pin(self, lease: bytes, items: Sequence[T], owners: Sequence[bytes], terms: Terms, origin: Origin) -> None:
        """Begin a lease. The same id again, while it lives, changes nothing.

        Args:
            lease: its id, drawn by the caller.
            items: what it holds.
            owners: for each item, whatever names the process that it dies with; empty for one that dies with none.
            terms: on what it ends by itself.
            origin: who makes it.

        Raises:
            LeaseError: the lease has ended already (its release overtook it): nothing is held.
            RegistryFullError: a limit would be passed: nothing is held.
        """
        if self._if_living(lease) is not None:
            return
        if lease in self._ended:
            raise self._why(lease, self.epoch, self.generation)
        excess = self.usage.excess(items, origin.job)
        if excess is not None:
            self.usage.forget_unheld(items)
            largest = self._largest(excess.limit.removesuffix("_per_job"), origin.job if excess.of_job else None)
            raise RegistryFullError.of(excess.limit, excess.allowed, excess.used, excess.asked, largest)
        self._begin(lease, tuple(items), tuple(owners), terms, origin, self._clock())

    def resolve(
        self,
        lease: bytes,
        epoch: bytes,
        generation: int,
        *,
        slot: int | None,
        take: bool,
        origin: Origin,
        use: bytes = b"",
    ) -> tuple[T, ...]:
        """What a lease holds: all of it, or one slot. Each call is one use, but for one that names a use that was counted before.

        Args:
            lease: its id.
            epoch: the epoch that its payload names; decides between "lost" and "not found".
            generation: the generation that its payload names, for the message.
            slot: which item, from 0; None for all.
            take: end the lease, in the same step.
            origin: who asks.
            use: id of the use, the same on each replica that is asked; empty for one of its own.

        Raises:
            LeaseError: of the class that says how the lease ended, or that it was never here.
        """
        held = self._living(lease, epoch, generation)
        if slot is None:
            items = held.items
        elif 0 <= slot < len(held.items):
            items = (held.items[slot],)
        else:
            raise LeaseNotFoundError(
                f"lease {lease[:4].hex()} holds {len(held.items)} reference(s), and slot {slot} was asked for: the handle is "
                "not one that safe_refs made",
                lease=lease[:4].hex(),
                registry=self.registry,
            )
        self._resolved += 1
        if held.terms.uses is not None:
            held.used |= {use or self._resolved.to_bytes(8, "big")}
        if take:
            self._end(lease, "released", f"{origin}, who took it", use)
        elif held.uses_left == 0:
            self._end(lease, "used_up", str(origin), use)
        return items

    def release(self, lease: bytes, origin: Origin) -> int:
        """End a lease: 1 if that ended it, 0 if it had ended before or isn't here.

        An unknown id is remembered as released, so that a pin still on its way is refused when it arrives.
        """
        if self._if_living(lease) is not None:
            self._end(lease, "released", str(origin))
            return 1
        if lease not in self._ended:
            self._remember(lease, "released", str(origin), Terms(), unseen=True)
        return 0

    def renew(self, lease: bytes, epoch: bytes, generation: int, ttl: float | None, renewals: int = 0) -> int:
        """Let a lease live `ttl` seconds from now, be that longer or shorter than it had; None takes its limit away.

        Args:
            lease: its id.
            epoch: as for `resolve`.
            generation: as for `resolve`.
            ttl: seconds.
            renewals: which renewal this is, as another replica has counted it; 0 counts it here. An older one than the last changes
                nothing.

        Returns:
            Which renewal it was, from 1.

        Raises:
            LeaseError: it isn't live.
        """
        held = self._living(lease, epoch, generation)
        number = renewals or held.renewals + 1
        if number > held.renewals:
            self._set_time(lease, held, ttl, ttl, number)
        return number

    def ask_in_turn(self, lease: bytes) -> bool:
        """Whether a live lease counts its uses, so that its replicas must be asked one after the other."""
        held = self._live.get(lease)
        return held is not None and held.terms.uses is not None

    def copy(self, lease: bytes) -> Copy | None:
        """A copy of a live lease for another shard; None if it isn't live."""
        held = self._if_living(lease)
        if held is None:
            return None
        now = self._clock()
        left = None if held.expires_at is None else held.expires_at - now
        age = now - held.since
        return Copy(lease, held.items, held.owners, held.terms, held.origin, age, left, held.renewals, held.used)

    def ended_by(self, lease: bytes, use: bytes) -> bool:
        """Whether a lease that has ended was given out for this very use before.

        A shard that is asked second may have heard of the end first, and is not to refuse what the other granted. It can tell for a
        take, and for leases of up to 16 uses.
        """
        end = self._ended.get(lease)
        return end is not None and use in end.uses

    def ending(self, lease: bytes) -> Ending | None:
        """The news of an ended lease for another shard; None if it isn't ended, or forgotten."""
        end = self._ended.get(lease)
        if end is None:
            return None
        return Ending(lease, end.how, self._clock() - end.since, end.at, end.by, end.terms, end.uses)

    def take_over(self, copy: Copy) -> bool:
        """Hold a copy of another shard's lease, or learn from it of uses and renewals; False if the lease has ended here.

        Of two renewals with one number (each shard counted one while the other was down), the longer one counts.
        Limits don't count: the lease was let in where it was made.
        """
        if copy.lease in self._ended:
            return False
        self._lost.pop(copy.lease, None)
        held = self._live.get(copy.lease)
        if held is None:
            now = self._clock()
            held = self._begin(copy.lease, copy.items, copy.owners, copy.terms, copy.origin, now - copy.age_s)
            held.renewals = copy.renewals - 1
        elif copy.terms.durable is not None and held.terms.durable is None:
            # It became durable elsewhere, and this table was not asked, or had failed: it holds the other's copies at first.
            self.replace(copy.lease, copy.items, copy.owners, copy.terms.durable)
        if (copy.renewals, _length(copy.terms.ttl)) > (held.renewals, _length(held.terms.ttl)):
            self._set_time(copy.lease, held, copy.terms.ttl, copy.left_s, copy.renewals)
        held.used |= copy.used
        if held.uses_left is not None and held.uses_left <= 0:
            self._end(copy.lease, "used_up", str(copy.origin))
        return True

    def adopt(self, ending: Ending) -> bool:
        """Another shard says that a lease has ended: so it has here; whether it was live until now. Ended beats live."""
        held = self._live.get(ending.lease)
        live = held is not None
        if held is not None:
            if held.terms.uses is not None and len(held.used.union(ending.uses)) > held.terms.uses:
                # Both shards have granted uses while the other was down, in all too many: none is good for a grant here.
                ending = ending._replace(uses=())
            self._end(ending.lease, ending.how, ending.by)
        if live or ending.lease not in self._ended:
            since = self._clock() - ending.ago_s
            self._ended[ending.lease] = _End(ending.how, since, ending.at, ending.by, ending.terms, ending.uses)
            self._forget_old()
        return live

    def drop(self, lease: bytes) -> None:
        """A lease has moved to other shards: hold it no longer, without its having ended."""
        if lease in self._live:
            self._let_go(lease)

    def lose(self, lease: bytes, why: str) -> bool:
        """What a live lease held is gone, from here at least: hold it no longer, and say why; whether it was live.

        It has not ended: another shard may still hold it, and may pass it on to this one again.
        """
        held = self._if_living(lease)
        if held is None:
            return False
        self._let_go(lease)
        self._ends["lost"] += 1
        self._lost[lease] = (self._wall(), why)
        while len(self._lost) > self.usage.limits.max_tombstones:
            self._lost.popitem(last=False)
        return True

    def replace(
        self, lease: bytes, items: Sequence[T], owners: Sequence[bytes], durable: str, ttl: float | None = None
    ) -> bool:
        """A live lease holds other items from now on, in the same slots: copies of what it held; False if it isn't live.

        Args:
            lease: its id.
            items: the copies.
            owners: for each, whatever names the process that it dies with; empty for none.
            durable: see `Terms`.
            ttl: seconds to live from now; None for what it has.
        """
        held = self._if_living(lease)
        if held is None:
            return False
        if ttl is not None:
            self._set_time(lease, held, ttl, ttl, held.renewals + 1)
        self._unlist(lease, held)
        held.items, held.owners = tuple(items), tuple(owners)
        held.terms = held.terms._replace(durable=durable)
        self._enlist(lease, held)
        return True

    def durability_of(self, lease: bytes) -> str | None:
        """In which environment a live lease was made durable; None if it isn't durable, or isn't live."""
        held = self._if_living(lease)
        return None if held is None else held.terms.durable

    def check(self, lease: bytes, epoch: bytes, generation: int) -> None:
        """Whether a lease is live.

        Raises:
            LeaseError: it isn't; see `resolve` for the arguments.
        """
        self._living(lease, epoch, generation)

    def only_copies_of(self, owner: bytes) -> list[bytes]:
        """The durable leases of which all copies belong to that process."""
        theirs = self._by_owner.get(owner, {})
        return [
            lease
            for lease in theirs
            if self._live[lease].terms.durable is not None and set(filter(None, self._live[lease].owners)) == {owner}
        ]

    def items_of(self, lease: bytes) -> tuple[T, ...]:
        """What a lease holds; nothing if it isn't live."""
        held = self._if_living(lease)
        return () if held is None else held.items

    def owners_of(self, lease: bytes) -> set[bytes]:
        """What names the processes that a live lease's items die with."""
        held = self._if_living(lease)
        return set() if held is None else set(filter(None, held.owners))

    def ids(self) -> tuple[list[bytes], list[bytes]]:
        """Ids of all live leases, and of all ended ones that are remembered, in the order of their beginning and ending."""
        return list(self._live), list(self._ended)

    def owners(self) -> list[bytes]:
        """The owners, not known to be dead, that live leases depend on."""
        return [owner for owner in self._by_owner if owner not in self._dead_owners]

    def sample(self, owner: bytes) -> T | None:
        """One of an owner's items to ask it about; None if no live lease depends on it any more."""
        leases = self._by_owner.get(owner)
        if not leases:
            return None
        held = self._live[next(iter(leases))]
        return held.items[held.owners.index(owner)]

    def bury(self, owner: bytes) -> int:
        """An owner has died: end each lease that has no living owner left; how many that were.

        A lease that holds items of other owners too stays: those can still be read.
        """
        if owner not in self._by_owner:
            return 0
        self._dead_owners.add(owner)
        ended = [lease for lease in self._by_owner[owner] if self._dead_owners.issuperset(self._live[lease].owners)]
        for lease in ended:
            self._end(lease, "owner_gone", "")
        return len(ended)

    def end_all(self, origin: Origin) -> int:
        """Release every lease; how many that were."""
        leases = list(self._live)
        for lease in leases:
            self._end(lease, "released", f"{origin}, who shut the registry down")
        return len(leases)

    def expire(self, most: int | None = None) -> int:
        """End leases whose time is over, at most so many of them; how many that were. Forget tombstones that are too old."""
        now = self._clock()
        ended = 0
        while self._deadlines and self._deadlines[0][0] <= now and (most is None or ended < most):
            _, lease = heapq.heappop(self._deadlines)
            held = self._live.get(lease)
            # A renewed or released lease leaves its old deadline behind: only the one it has now counts.
            if held is not None and held.expires_at is not None and held.expires_at <= now:
                self._end(lease, "expired", "")
                ended += 1
        self._forget_old()
        return ended

    def expires_in_s(self, lease: bytes, epoch: bytes, generation: int) -> float | None:
        """Seconds until a live lease's ttl runs out; None without one.

        Raises:
            LeaseError: it isn't live.
        """
        held = self._living(lease, epoch, generation)
        return None if held.expires_at is None else held.expires_at - self._clock()

    def next_deadline_in_s(self) -> float | None:
        """Seconds until `expire` may have something to do, at least 0; None if nothing ends by time."""
        if not self._deadlines:
            return None
        return max(0.0, self._deadlines[0][0] - self._clock())

    def items(self) -> Iterator[T]:
        """Everything that live leases hold, once for each lease that holds it."""
        for held in self._live.values():
            yield from held.items

    def page(self, query: Query, sizes: Mapping[T, int] | None = None) -> Page[T]:
        """Live leases, each with its items, and where the next page begins.

        Args:
            query: which, in which order, and from where on.
            sizes: bytes of the objects, as far as they are known; needed where the query asks for them.
        """
        now = self._clock()

        def size(held: _Lease[T]) -> int:
            return sum((sizes or {}).get(item, 0) for item in set(held.items))

        def key(held: _Lease[T]) -> tuple[float, int]:
            if query.sort == "expires":
                return (math.inf if held.expires_at is None else held.expires_at, held.number)
            if query.sort == "references":
                return (-len(held.items), held.number)
            if query.sort == "bytes":
                return (-size(held), held.number)
            return (held.number, held.number)

        def wanted(held: _Lease[T]) -> bool:
            return (
                (query.label is None or held.terms.label == query.label)
                and (query.job is None or held.origin.job == query.job)
                and (query.min_age_s is None or now - held.since >= query.min_age_s)
                and (query.min_bytes is None or size(held) >= query.min_bytes)
                and (query.after is None or key(held) > query.after)
            )

        found = ((key(held), lease, held) for lease, held in self._live.items() if wanted(held))
        # Leases stand in the order in which they began, so that pages by age need no sorting.
        by_age = query.sort == "age"
        rows = list(islice(found, query.limit)) if by_age else heapq.nsmallest(query.limit, found, key=itemgetter(0))
        infos = [self._info(lease, held, now, None if sizes is None else size(held)) for _, lease, held in rows]
        leases = [lease for _, lease, _ in rows]
        marks = [blake2b(lease, digest_size=16).digest() for lease in leases]
        after = rows[-1][0] if len(rows) == query.limit else None
        return Page(infos, leases, [held.items for _, _, held in rows], marks, after)

    def set_limits(self, limits: Limits) -> None:
        """Take other limits from now on; what is held stays, even past them."""
        self.usage.set_limits(limits, [(held.items, held.origin.job) for held in self._live.values()])
        self._forget_old()

    def begin_anew(self, epoch: bytes, generation: int) -> None:
        """Leases of the epoch before may be lost: who asks for one that isn't here is told so from now on."""
        self.epoch, self.generation = epoch, generation

    def stats(self) -> RegistryStats:
        """Figures since the table began."""
        return RegistryStats(
            registry=self.registry,
            generation=self.generation,
            uptime_s=self._clock() - self._started,
            live_leases=self.usage.leases,
            live_references=self.usage.references,
            pinned=self._pinned,
            resolved=self._resolved,
            released=self._ends["released"],
            expired=self._ends["expired"],
            used_up=self._ends["used_up"],
            owner_gone=self._ends["owner_gone"],
            lost=self._ends["lost"],
            tombstones=len(self._ended),
        )

    def _info(self, lease: bytes, held: _Lease[T], now: float, size: int | None) -> LeaseInfo:
        return LeaseInfo(
            number=held.number,
            short_id=lease[:4].hex(),
            label=held.terms.label,
            age_s=now - held.since,
            expires_in_s=None if held.expires_at is None else held.expires_at - now,
            uses_left=held.uses_left,
            references=len(held.items),
            size_bytes=size,
            job=held.origin.job,
            node=held.origin.node,
            pid=held.origin.pid,
            source=held.origin.source,
            durable=held.terms.durable is not None,
        )

    def _living(self, lease: bytes, epoch: bytes, generation: int) -> _Lease[T]:
        """A lease that is live now, to the tick.

        Raises:
            LeaseError: it isn't.
        """
        held = self._if_living(lease)
        if held is None:
            raise self._why(lease, epoch, generation)
        return held

    def _if_living(self, lease: bytes) -> _Lease[T] | None:
        """A lease that is live now, to the tick, or None. One whose time is over ends here, if nobody has swept yet."""
        held = self._live.get(lease)
        if held is not None and held.expires_at is not None and held.expires_at <= self._clock():
            self._end(lease, "expired", "")
            return None
        return held

    def _begin(
        self,
        lease: bytes,
        items: tuple[T, ...],
        owners: tuple[bytes, ...],
        terms: Terms,
        origin: Origin,
        since: float,
    ) -> _Lease[T]:
        self._pinned += 1
        held = self._live[lease] = _Lease(self._pinned, items, owners, terms, origin, since)
        self._enlist(lease, held)
        self._note_deadline(lease, held)
        return held

    def _enlist(self, lease: bytes, held: _Lease[T]) -> None:
        """Note what a lease holds."""
        for owner in filter(None, held.owners):
            self._by_owner.setdefault(owner, {})[lease] = None
            self._dead_owners.discard(owner)  # it may be asked about again: a verdict is only as good as its day
        self.usage.add(held.items, held.origin.job)

    def _unlist(self, lease: bytes, held: _Lease[T]) -> None:
        """A lease doesn't hold any more what it holds."""
        for owner in set(filter(None, held.owners)):
            theirs = self._by_owner[owner]
            del theirs[lease]
            if not theirs:
                del self._by_owner[owner]
                self._dead_owners.discard(owner)
        self.usage.drop(held.items, held.origin.job)

    def _set_time(self, lease: bytes, held: _Lease[T], ttl: float | None, left_s: float | None, renewals: int) -> None:
        held.terms = held.terms._replace(ttl=ttl)
        held.expires_at = None if left_s is None else self._clock() + left_s
        held.renewals = renewals
        self._note_deadline(lease, held)

    def _note_deadline(self, lease: bytes, held: _Lease[T]) -> None:
        if held.expires_at is None:
            return
        heapq.heappush(self._deadlines, (held.expires_at, lease))
        if len(self._deadlines) > 2 * len(self._live) + 64:
            # Renewed and released leases leave their deadlines behind, which may lie far in the future.
            self._deadlines = [
                (each.expires_at, id_) for id_, each in self._live.items() if each.expires_at is not None
            ]
            heapq.heapify(self._deadlines)

    def _largest(self, what: str, job: str | None) -> tuple[tuple[str, int], ...]:
        """The three labels (or source lines, of leases without one) that hold most; of one job, or of all."""
        holders: Counter[str] = Counter()
        for held in self._live.values():
            if job is None or held.origin.job == job:
                holders[held.terms.label or held.origin.source] += {
                    "max_leases": 1,
                    "max_references": len(held.items),
                    "max_bytes": sum(self.usage.size(item) for item in set(held.items)),
                }[what]
        return tuple(holders.most_common(3))

    def _end(self, lease: bytes, how: str, by: str, use: bytes = b"") -> None:
        held = self._let_go(lease)
        self._ends[how] += 1
        last = {use} if use else set[bytes]()
        uses = tuple(held.used | last) if len(held.used) <= _MOST_USES_REMEMBERED else tuple(last)
        self._remember(lease, how, by, held.terms, uses)

    def _let_go(self, lease: bytes) -> _Lease[T]:
        """A live lease, which from now on holds nothing."""
        held = self._live.pop(lease)
        self._unlist(lease, held)
        return held

    def _remember(
        self, lease: bytes, how: str, by: str, terms: Terms, uses: tuple[bytes, ...] = (), *, unseen: bool = False
    ) -> None:
        self._ended[lease] = _End(how, self._clock(), self._wall(), by, terms, uses, unseen)
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop tombstones beyond their number and age; they stand in the order in which leases ended."""
        oldest = self._clock() - self.usage.limits.tombstone_age_s
        while self._ended:
            lease = next(iter(self._ended))
            if len(self._ended) <= self.usage.limits.max_tombstones and self._ended[lease].since >= oldest:
                return
            del self._ended[lease]

    def _why(self, lease: bytes, epoch: bytes, generation: int) -> LeaseError:
        """The error that says what became of a lease that isn't live: how it ended, if that is known, be it of an older epoch."""
        short = lease[:4].hex()
        end = self._ended.get(lease)
        # Where there are replicas a release ends what another may hold still. Where there are none, the lease was lost before it.
        known = end is not None and (not end.unseen or not self.alone)
        if (end is None or not known) and epoch != self.epoch:
            return LeaseLostError.of(short, self.registry, generation, self.generation)
        if end is None and lease in self._lost:
            at, reason = self._lost[lease]
            return LeaseLostError.because(short, self.registry, self.generation, at, reason)
        if end is None:
            return LeaseNotFoundError.of(short, self.registry)
        if end.how == "expired":
            return LeaseExpiredError.of(short, self.registry, end.at, end.terms.ttl)
        if end.how == "used_up":
            return LeaseUsedUpError.of(short, self.registry, end.at, end.terms.uses)
        if end.how == "owner_gone":
            return OwnerGoneError.of(short, self.registry, end.at)
        return LeaseReleasedError.of(short, self.registry, end.at, end.by)

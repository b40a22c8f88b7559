"""The rules: when a lease begins, who may resolve it, how it ends, and what is remembered of it afterwards.

`LeaseTable` is pure: no Ray, no threads, no clock of its own (both clocks are passed in), and what it holds is opaque to it, so that
a test can drive it with strings through a million steps. The shard wraps it in a lock and gives it references.

What always holds: a lease is live or it is ended, and once ended it never lives again; it ends only by release, take, ttl, uses,
or because its owners are gone; an ended lease holds nothing. Ids are made by the caller, so that every call can be repeated:
pinning a live lease again changes nothing, releasing an ended one answers 0, and a pin that comes after its own release is refused.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

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

T = TypeVar("T")


class Terms(NamedTuple):
    """On what a lease ends by itself, and what it is called. None is without.

    Attributes:
        ttl: seconds to live, from the moment the registry holds it.
        uses: how often it may be resolved.
        label: a name for people.
    """

    ttl: float | None = None
    uses: int | None = None
    label: str | None = None


class Origin(NamedTuple):
    """Who made a lease or ended it: job and node ids (hexadecimal), process id, and `file:line in function`."""

    job: str
    node: str
    pid: int
    source: str

    def __str__(self) -> str:
        return f"pid {self.pid} on node {self.node[:8]}, job {self.job} ({self.source})"


@dataclass(frozen=True)
class LeaseInfo:
    """One live lease, as `leases()` lists it.

    Attributes:
        short_id: first eight hexadecimal digits of its id; resolves nothing.
        label: its label, or None.
        age_s: seconds since the registry took it.
        expires_in_s: seconds until its ttl runs out; None without one.
        uses_left: how often it can still be resolved; None without a limit.
        references: how many references it holds.
        size_bytes: bytes of the objects behind them that exist by now; None where that wasn't asked for.
        job: id of the job that made it.
        node: id of the node where that was.
        pid: id of the process there.
        source: the source line, as `file:line in function`.
    """

    short_id: str
    label: str | None
    age_s: float
    expires_in_s: float | None
    uses_left: int | None
    references: int
    size_bytes: int | None
    job: str
    node: str
    pid: int
    source: str


@dataclass(frozen=True)
class RegistryStats:
    """Figures of a registry since it started, as `stats()` gives them.

    Attributes:
        registry: its name.
        generation: which start of it this is, counted from 1.
        uptime_s: seconds since it started.
        live_leases: leases held now.
        live_references: references in them.
        pinned: leases ever taken.
        resolved: times a lease was resolved.
        released: leases ended by release or take.
        expired: leases ended by their ttl.
        used_up: leases ended by their uses.
        owner_gone: leases ended because their owners died.
        tombstones: ended leases that it still remembers.
    """

    registry: str
    generation: int
    uptime_s: float
    live_leases: int
    live_references: int
    pinned: int
    resolved: int
    released: int
    expired: int
    used_up: int
    owner_gone: int
    tombstones: int


class _Lease(Generic[T]):
    """A live lease."""

    __slots__ = ("expires_at", "items", "origin", "owners", "since", "terms", "uses_left")

    def __init__(
        self, items: tuple[T, ...], owners: tuple[bytes, ...], terms: Terms, origin: Origin, since: float
    ) -> None:
        self.items = items
        self.owners = owners
        self.terms = terms
        self.origin = origin
        self.since = since
        self.expires_at = None if terms.ttl is None else since + terms.ttl
        self.uses_left = terms.uses


class _End(NamedTuple):
    """How a lease ended: which of the counters of `RegistryStats`, when (epoch seconds), by whom, on what terms."""

    how: str
    at: float
    by: str
    terms: Terms


class LeaseTable(Generic[T]):
    """All leases of one shard.

    Args:
        registry: name of the registry, for messages.
        epoch: random bytes that name this start of it.
        generation: which start it is, from 1.
        clock: monotonic seconds; everything that ends by time goes by it.
        wall: seconds since the epoch; only for telling people when something was.
        limits: what may be held at most.
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
    ) -> None:
        self.registry = registry
        self.epoch = epoch
        self.generation = generation
        self.limits = limits or Limits()
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self._live: dict[bytes, _Lease[T]] = {}
        self._ended: OrderedDict[bytes, _End] = OrderedDict()
        self._deadlines: list[tuple[float, bytes]] = []
        self._by_owner: dict[bytes, dict[bytes, None]] = {}
        self._dead_owners: set[bytes] = set()
        self._references = 0
        self._pinned = 0
        self._resolved = 0
        self._ends: Counter[str] = Counter()

    def pin(self, lease: bytes, items: Sequence[T], owners: Sequence[bytes], terms: Terms, origin: Origin) -> None:
        """Begin a lease. The same id again, while it lives, changes nothing.

        Args:
            lease: its id, drawn by the caller.
            items: what it holds.
            owners: for each item, whatever names the process that it dies with.
            terms: on what it ends by itself.
            origin: who makes it.

        Raises:
            LeaseError: the lease has ended already (its release overtook it): nothing is held.
            RegistryFullError: a limit would be passed: nothing is held.
        """
        if lease in self._live:
            return
        if lease in self._ended:
            raise self._why(lease, self.epoch, self.generation)
        self._check_room(len(items))
        held = _Lease(tuple(items), tuple(owners), terms, origin, self._clock())
        self._live[lease] = held
        for owner in held.owners:
            self._by_owner.setdefault(owner, {})[lease] = None
        self._references += len(held.items)
        self._pinned += 1
        if held.expires_at is not None:
            heapq.heappush(self._deadlines, (held.expires_at, lease))

    def resolve(
        self, lease: bytes, epoch: bytes, generation: int, *, slot: int | None, take: bool, origin: Origin
    ) -> tuple[T, ...]:
        """What a lease holds: all of it, or one slot. Each call is one use.

        Args:
            lease: its id.
            epoch: the epoch that its payload names; decides between "lost" and "not found".
            generation: the generation that its payload names, for the message.
            slot: which item, from 0; None for all.
            take: end the lease, in the same step.
            origin: who asks.

        Raises:
            LeaseError: of the class that says how the lease ended, or that it was never here.
        """
        held = self._live.get(lease)
        if held is not None and held.expires_at is not None and held.expires_at <= self._clock():
            self._end(lease, "expired", "")
            held = None
        if held is None:
            raise self._why(lease, epoch, generation)
        if slot is None:
            items = held.items
        elif slot < len(held.items):
            items = (held.items[slot],)
        else:
            raise LeaseNotFoundError(
                f"lease {lease[:4].hex()} holds {len(held.items)} reference(s), and slot {slot} was asked for: the handle is "
                "not one that safe_refs made",
                lease=lease[:4].hex(),
                registry=self.registry,
            )
        self._resolved += 1
        if held.uses_left is not None:
            held.uses_left -= 1
        if take:
            self._end(lease, "released", f"{origin}, who took it")
        elif held.uses_left == 0:
            self._end(lease, "used_up", str(origin))
        return items

    def release(self, lease: bytes, origin: Origin) -> int:
        """End a lease: 1 if that ended it, 0 if it had ended before or isn't here.

        An unknown id is remembered as released, so that a pin still on its way is refused when it arrives.
        """
        if lease in self._live:
            self._end(lease, "released", str(origin))
            return 1
        if lease not in self._ended:
            self._remember(lease, _End("released", self._wall(), str(origin), Terms()))
        return 0

    def renew(self, lease: bytes, epoch: bytes, generation: int, ttl: float) -> None:
        """Let a lease live `ttl` seconds from now, be that longer or shorter than it had.

        Raises:
            LeaseError: it isn't live.
        """
        now = self._clock()
        held = self._live.get(lease)
        if held is not None and held.expires_at is not None and held.expires_at <= now:
            self._end(lease, "expired", "")
            held = None
        if held is None:
            raise self._why(lease, epoch, generation)
        held.terms = held.terms._replace(ttl=ttl)
        held.expires_at = now + ttl
        heapq.heappush(self._deadlines, (held.expires_at, lease))

    def owners(self) -> dict[bytes, T]:
        """The owners, not known to be dead, that live leases depend on, each with one of its items to ask it about."""
        found: dict[bytes, T] = {}
        for owner, leases in self._by_owner.items():
            if owner not in self._dead_owners:
                held = self._live[next(iter(leases))]
                found[owner] = held.items[held.owners.index(owner)]
        return found

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

    def expire(self) -> int:
        """End every lease whose time is over; how many that were."""
        now = self._clock()
        ended = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease = heapq.heappop(self._deadlines)
            held = self._live.get(lease)
            # A renewed or released lease leaves its old deadline behind: only the one it has now counts.
            if held is not None and held.expires_at is not None and held.expires_at <= now:
                self._end(lease, "expired", "")
                ended += 1
        return ended

    def next_deadline_in_s(self) -> float | None:
        """Seconds until `expire` may have something to do, at least 0; None if nothing ends by time."""
        if not self._deadlines:
            return None
        return max(0.0, self._deadlines[0][0] - self._clock())

    def items(self) -> Iterator[T]:
        """Everything that live leases hold, once for each lease that holds it."""
        for held in self._live.values():
            yield from held.items

    def listing(self, label: str | None = None) -> list[tuple[LeaseInfo, tuple[T, ...]]]:
        """The live leases (those of a `label`, if given), oldest first, each with its items."""
        now = self._clock()
        return [
            (self._info(lease, held, now), held.items)
            for lease, held in self._live.items()
            if label is None or held.terms.label == label
        ]

    def stats(self) -> RegistryStats:
        """Figures since the table began."""
        return RegistryStats(
            registry=self.registry,
            generation=self.generation,
            uptime_s=self._clock() - self._started,
            live_leases=len(self._live),
            live_references=self._references,
            pinned=self._pinned,
            resolved=self._resolved,
            released=self._ends["released"],
            expired=self._ends["expired"],
            used_up=self._ends["used_up"],
            owner_gone=self._ends["owner_gone"],
            tombstones=len(self._ended),
        )

    def _info(self, lease: bytes, held: _Lease[T], now: float) -> LeaseInfo:
        return LeaseInfo(
            short_id=lease[:4].hex(),
            label=held.terms.label,
            age_s=now - held.since,
            expires_in_s=None if held.expires_at is None else held.expires_at - now,
            uses_left=held.uses_left,
            references=len(held.items),
            size_bytes=None,
            job=held.origin.job,
            node=held.origin.node,
            pid=held.origin.pid,
            source=held.origin.source,
        )

    def _check_room(self, references: int) -> None:
        limits = self.limits
        if limits.max_leases is not None and len(self._live) + 1 > limits.max_leases:
            raise RegistryFullError.of(
                "max_leases", limits.max_leases, len(self._live), 1, self._largest(by_leases=True)
            )
        if limits.max_references is not None and self._references + references > limits.max_references:
            raise RegistryFullError.of(
                "max_references", limits.max_references, self._references, references, self._largest(by_leases=False)
            )

    def _largest(self, *, by_leases: bool) -> tuple[tuple[str, int], ...]:
        """The three labels, or source lines of leases without one, that hold most."""
        holders: Counter[str] = Counter()
        for held in self._live.values():
            holders[held.terms.label or held.origin.source] += 1 if by_leases else len(held.items)
        return tuple(holders.most_common(3))

    def _end(self, lease: bytes, how: str, by: str) -> None:
        held = self._live.pop(lease)
        for owner in set(held.owners):
            theirs = self._by_owner[owner]
            del theirs[lease]
            if not theirs:
                del self._by_owner[owner]
                self._dead_owners.discard(owner)
        self._references -= len(held.items)
        self._ends[how] += 1
        self._remember(lease, _End(how, self._wall(), by, held.terms))

    def _remember(self, lease: bytes, end: _End) -> None:
        self._ended[lease] = end
        while len(self._ended) > self.limits.max_tombstones:
            self._ended.popitem(last=False)

    def _why(self, lease: bytes, epoch: bytes, generation: int) -> LeaseError:
        """The error that says what became of a lease that isn't live."""
        short = lease[:4].hex()
        end = self._ended.get(lease)
        if end is None:
            if epoch == self.epoch:
                return LeaseNotFoundError.of(short, self.registry)
            return LeaseLostError.of(short, self.registry, generation, self.generation)
        if end.how == "expired":
            return LeaseExpiredError.of(short, self.registry, end.at, end.terms.ttl)
        if end.how == "used_up":
            return LeaseUsedUpError.of(short, self.registry, end.at, end.terms.uses)
        if end.how == "owner_gone":
            return OwnerGoneError.of(short, self.registry, end.at)
        return LeaseReleasedError.of(short, self.registry, end.at, end.by)

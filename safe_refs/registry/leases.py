"""The rules: when a lease begins, who may resolve it, how it ends.

`LeaseTable` is pure: no Ray, no threads, no clock of its own (both clocks are passed in). What it holds is opaque to it, so that a
test can drive it with strings through a million steps. The shard wraps it in a lock and gives it references.

What always holds: a lease that has ended holds nothing, and never lives again, unless its end was `Revocable`. It ends by release,
take, ttl, uses, or because all owners of its items are dead. A lost lease has not ended: this table
no longer holds its items, but another shard may give them back.
Callers make the ids, so that every call can be repeated: pinning a live lease again changes nothing, releasing an ended one returns
0, and a pin that arrives after its own release is refused.

To add a way for a lease to end, see "Where to add" in docs/architecture.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ..config import Limits
from ..errors import LeaseNotFoundError, RegistryFullError
from .indexes import ByOwner, Deadlines
from .lease import Lease
from .records import Identity, Origin, RegistryStats, Renewal, Terms
from .tombstones import End, Revocable, Tombstones
from .usage import Usage

T = TypeVar("T")

MOST_USES_REMEMBERED = 16  # of an ended lease; a hundred thousand of those are remembered


class LeaseTable(Generic[T]):
    """All leases of one shard.

    Args:
        registry: name of the registry, for messages.
        identity: the epoch and the generation of the registry's present start.
        clock: monotonic seconds; everything that ends by time goes by it.
        wall: seconds since the epoch; only for telling people when something happened.
        limits: what may be held at most.
        alone: no other table holds the same leases.
        gone: called whenever a lease holds its items no longer, whether it has ended, was lost or has moved, with its id and them.
    """

    def __init__(
        self,
        *,
        registry: str,
        identity: Identity,
        clock: Callable[[], float],
        wall: Callable[[], float],
        limits: Limits | None = None,
        alone: bool = True,
        gone: Callable[[bytes, tuple[T, ...]], object] = lambda lease, items: None,
    ) -> None:
        self.registry = registry
        self.identity = identity
        self.alone = alone
        self.clock = clock
        self.usage: Usage[T] = Usage(limits or Limits())
        self.tombstones = Tombstones(registry, clock, lambda: self.usage.limits)
        self.live: dict[bytes, Lease[T]] = {}  # in the order in which they began
        self.wall = wall
        self._gone = gone
        self._started = clock()
        self._deadlines = Deadlines()
        self.owners = ByOwner()
        self._begun = self._resolved = self.revived = 0  # leases, resolves, and leases that live again
        self.ends: Counter[str] = Counter()  # by `tombstones.End.how`

    def pin(self, lease: bytes, items: Sequence[T], owners: Sequence[bytes], terms: Terms, origin: Origin) -> bool:
        """Begin a lease. The same id again, while it lives, changes nothing.

        Args:
            lease: its id, drawn by the caller.
            items: what it holds.
            owners: for each item, whatever names the process that it dies with; empty for one that dies with none.
            terms: on what it ends by itself.
            origin: who makes it.

        Returns: whether it began now.

        Raises:
            LeaseError: the lease has ended already (its release overtook it): nothing is held.
            RegistryFullError: a limit would be passed: nothing is held.
        """
        if self.find(lease) is not None or lease in self.tombstones:
            self.usage.forget_unheld(items)  # which may have been weighed for this
            if lease in self.live:
                return False
            raise self.tombstones.why(lease, self.identity, self.identity, alone=self.alone)
        excess = self.usage.excess(items, origin.job)
        if excess is not None:
            self.usage.forget_unheld(items)
            largest = self.usage.largest(self.live.values(), excess.limit, origin.job if excess.of_job else None)
            raise RegistryFullError.of(excess.limit, excess.allowed, excess.used, excess.asked, largest)
        self.begin(lease, items, owners, terms, origin)
        return True

    def resolve(
        self, lease: bytes, asked: Identity, *, slot: int | None, take: bool, origin: Origin, use: bytes = b""
    ) -> tuple[T, ...]:
        """What a lease holds: all of it, or one slot. Each call is one use; a use id that was counted before is not counted again.

        Args:
            lease: its id.
            asked: the identity that its payload names; decides between "lost" and "not found".
            slot: which item, from 0; None for all.
            take: end the lease, in the same step.
            origin: who asks.
            use: id of the use, the same on each replica that is asked; empty for one of its own.

        Raises:
            LeaseError: of the class that says how the lease ended, or that it was never here.
        """
        held = self.living(lease, asked)
        if use in held.returned:  # this call has come late
            raise LeaseNotFoundError.of(lease[:4].hex(), self.registry)
        if slot is not None and not 0 <= slot < len(held.items):
            raise LeaseNotFoundError(
                f"lease {lease[:4].hex()} holds {len(held.items)} reference(s), and slot {slot} was asked for: the handle is "
                "not one that safe_refs made",
                lease=lease[:4].hex(),
                registry=self.registry,
            )
        items = held.items if slot is None else (held.items[slot],)
        self._resolved += 1
        if held.terms.uses is not None:
            held.used |= {use or self._resolved.to_bytes(8, "big")}
        if take:
            held.takes |= {use} if use else set()
            self.end(lease, "released", f"{origin}, who took it", use)
        elif held.uses_left == 0:
            self.end(lease, "used_up", str(origin), use)
        return items

    def release(self, lease: bytes, origin: Origin, rejected: str = "") -> int:
        """End a lease: 1 if that ended it, 0 if it had ended before or isn't here. `rejected` says why its pin has failed, if it has.

        An unknown id is remembered, so that a pin still on its way is refused when it arrives.
        """
        how, by = ("rejected", rejected) if rejected else ("released", str(origin))
        if self.find(lease) is not None:
            self.end(lease, how, by)
            return 1
        self.tombstones.finish(lease)
        if lease not in self.tombstones:
            self.tombstones.add(lease, End(how, self.clock(), self.wall(), by, Terms(), unseen=not rejected))
        return 0

    def renew(
        self, lease: bytes, asked: Identity, ttl: float | None, decided: Renewal | None = None, lengthens: bool = False
    ) -> Renewal:
        """Let a lease live `ttl` seconds from now, be that longer or shorter than it had; None takes its limit away.

        Args:
            lease: its id.
            asked: as for `resolve`, like the errors.
            ttl: see above.
            decided: what another replica has made of it; None decides it here. An older renewal than the last changes nothing.
            lengthens: see `Lease.next_renewal`.
        """
        held = self.living(lease, asked)
        renewal = decided or held.next_renewal(ttl, self.clock(), lengthens=lengthens)
        if renewal.number > held.renewals:
            self.set_time(lease, renewal, renewal.given_s)
        return renewal

    def replace(self, lease: bytes, items: Sequence[T], owners: Sequence[bytes], terms: Terms) -> bool:
        """A live lease holds other items, in the same slots, on other terms (a new ttl counts from now); False if it isn't live."""
        held = self.find(lease)
        if held is None:
            return False
        if terms.ttl != held.terms.ttl:
            self.set_time(lease, held.next_renewal(terms.ttl, self.clock()), terms.ttl)
        self._unlist(lease, held)
        held.items, held.owners, held.terms = tuple(items), tuple(owners), terms
        self._enlist(lease, held)
        return True

    def find(self, lease: bytes) -> Lease[T] | None:
        """A lease that is live now, to the tick, or None. One whose time is over ends here, if nobody has swept yet."""
        held = self.live.get(lease)
        if held is not None and held.expires_at is not None and held.expires_at <= self.clock():
            self.end(lease, "expired", "")
            return None
        return held

    def living(self, lease: bytes, asked: Identity) -> Lease[T]:
        """A lease that is live now; arguments and errors as of `resolve`."""
        held = self.find(lease)
        if held is None:
            raise self.tombstones.why(lease, asked, self.identity, alone=self.alone)
        return held

    def items_of(self, lease: bytes) -> tuple[T, ...]:
        """What a lease holds; nothing if it isn't live."""
        held = self.find(lease)
        return () if held is None else held.items

    def counts_uses(self, lease: bytes) -> bool:
        """Whether a live lease counts its uses."""
        held = self.live.get(lease)
        return held is not None and held.terms.uses is not None

    def expires_in_s(self, lease: bytes, asked: Identity) -> float | None:
        """Seconds until a live lease's ttl runs out; None without one. Raises as `resolve` does."""
        held = self.living(lease, asked)
        return None if held.expires_at is None else held.expires_at - self.clock()

    def items(self) -> Iterator[T]:
        """Everything that live leases hold, once for each lease that holds it."""
        for held in self.live.values():
            yield from held.items

    def sample(self, owner: bytes) -> T | None:
        """One of an owner's items to ask it about; None if no live lease holds one."""
        leases = self.owners.leases(owner)
        return self.live[leases[0]].items[self.live[leases[0]].owners.index(owner)] if leases else None

    def bury(self, owner: bytes) -> int:
        """An owner has died: end each lease that has no living owner left; how many that were.

        A lease that holds items of other owners too stays: those can still be read.
        """
        ended = [lease for lease in self.owners.bury(owner) if self.owners.are_dead(self.live[lease].owners)]
        for lease in ended:
            self.end(lease, "owner_gone", "")
        return len(ended)

    def end_all(self, origin: Origin) -> int:
        """Release every lease; how many that were."""
        leases = list(self.live)
        for lease in leases:
            self.end(lease, "released", f"{origin}, who shut the registry down")
        return len(leases)

    def expire(self, most: int | None = None) -> int:
        """End leases whose time is over, at most so many of them; how many that were. Forget tombstones that are too old."""
        now, ended = self.clock(), 0
        while (first := self._deadlines.first()) is not None and first <= now and (most is None or ended < most):
            self.end(self._deadlines.pop(), "expired", "")
            ended += 1
        self.tombstones.forget_old()
        return ended

    def next_deadline_in_s(self) -> float | None:
        """Seconds until `expire` may have something to do, at least 0; None if nothing ends by time."""
        first = self._deadlines.first()
        return None if first is None else max(0.0, first - self.clock())

    def set_limits(self, limits: Limits) -> None:
        """Take other limits from now on; what is held stays, even past them."""
        self.usage.set_limits(limits, [(held.items, held.origin.job) for held in self.live.values()])
        self.tombstones.forget_old()

    def stats(self) -> RegistryStats:
        """Figures since the table began."""
        return RegistryStats(
            registry=self.registry,
            generation=self.identity.generation,
            uptime_s=self.clock() - self._started,
            live_leases=self.usage.leases,
            live_references=self.usage.references,
            pinned=self._begun - self.revived,
            resolved=self._resolved,
            released=self.ends["released"] + self.ends["rejected"],
            tombstones=len(self.tombstones),
            jobs=self.usage.by_job(),
            **{how: self.ends[how] for how in ("expired", "used_up", "owner_gone", "lost")},
        )

    # The methods above are made of the methods below. `unspent` and `replication.records` use these, too.
    def begin(
        self,
        lease: bytes,
        items: Sequence[T],
        owners: Sequence[bytes],
        terms: Terms,
        origin: Origin,
        age_s: float = 0.0,
    ) -> Lease[T]:
        """Begin a lease, or note one that began `age_s` seconds ago. The caller has checked that it is not live and has not ended."""
        self.tombstones.found_again(lease)
        return self.hold(lease, Lease(0, tuple(items), tuple(owners), terms, origin, self.clock() - age_s))

    def hold(self, lease: bytes, held: Lease[T]) -> Lease[T]:
        """Hold a lease from now on, as the newest."""
        self._begun += 1
        held.number = self._begun
        self.live[lease] = held
        self._enlist(lease, held)
        self._deadlines.set(lease, held.expires_at)
        return held

    def set_time(self, lease: bytes, renewal: Renewal, left_s: float | None) -> None:
        """A live lease was renewed, and has so many seconds left now."""
        expires_at = None if left_s is None else self.clock() + left_s
        self.live[lease].set_time(renewal, expires_at)
        self._deadlines.set(lease, expires_at)

    def end(self, lease: bytes, how: str, by: str, use: bytes = b"") -> None:
        """End a live lease; `how` and `by` are as in `tombstones.End`, and `use` is the use that has ended it, if it was one."""
        held = self.let_go(lease)
        self.ends[how] += 1
        last = {use} if use else set[bytes]()
        uses = tuple(held.used | last) if len(held.used) <= MOST_USES_REMEMBERED else tuple(last)
        held.expired |= how == "expired" and not self.alone  # another table may know a later renewal
        revocable = Revocable(held, len(held.items)) if held.is_over else None
        held.items = held.owners = ()
        self.tombstones.add(lease, End(how, self.clock(), self.wall(), by, held.terms, uses), revocable)

    def lose(self, lease: bytes, why: str) -> bool:
        """Stop holding a live lease whose items are gone from here, and remember why; whether it was live.

        It has not ended: another shard may still hold it, and may give it back to this one.
        """
        if self.find(lease) is None:
            return False
        self.let_go(lease)
        self.ends["lost"] += 1
        self.tombstones.add_lost(lease, self.wall(), why)
        return True

    def let_go(self, lease: bytes) -> Lease[T]:
        """Stop holding a live lease; remember nothing of it."""
        held = self.live.pop(lease)
        self._deadlines.set(lease, None)
        self._unlist(lease, held)
        self._gone(lease, held.items)
        return held

    def _enlist(self, lease: bytes, held: Lease[T]) -> None:
        self.owners.add(lease, held.owners)
        held.items = self.usage.add(held.items, held.origin.job)

    def _unlist(self, lease: bytes, held: Lease[T]) -> None:
        self.owners.drop(lease, held.owners)
        self.usage.drop(held.items, held.origin.job)

"""What live leases use of the registry's limits, all together and job by job. Pure, as the rules are.

What always holds: the figures are those of exactly the leases that were added and not yet dropped; an object counts its bytes once
for all leases together and once for each job, however many leases hold it; sizes are kept only while something holds the object, and
only where there are limits in bytes. Of each object there is one Python object, whichever leases hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from ..config import Limits
from .lease import Lease

T = TypeVar("T")


class Excess(NamedTuple):
    """A limit that would be passed: its name in `Limits`, its value, what is used, what was asked for, whether it is one job's."""

    limit: str
    allowed: int
    used: int
    asked: int
    of_job: bool


class _Use(Generic[T]):
    """What some leases use together."""

    __slots__ = ("held", "known_bytes", "leases", "references")

    def __init__(self) -> None:
        self.leases = 0
        self.references = 0
        self.known_bytes = 0
        self.held: Counter[T] = Counter()  # kept only where there are limits in bytes


class Usage(Generic[T]):
    """The account of a lease table.

    Args:
        limits: what may be held at most.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all: _Use[T] = _Use()
        self._jobs: dict[str, _Use[T]] = {}
        self._sizes: dict[T, int] = {}
        # What live leases hold, each object once; and how many further leases hold it.
        self._held: dict[T, T] = {}
        self._more: Counter[T] = Counter()

    @property
    def leases(self) -> int:
        """Live leases."""
        return self._all.leases

    @property
    def references(self) -> int:
        """References in them, one in several leases counted in each."""
        return self._all.references

    @property
    def known_bytes(self) -> int:
        """Bytes of the objects whose size is known; 0 where there are no limits in bytes."""
        return self._all.known_bytes

    def by_job(self) -> dict[str, int]:
        """Live leases by the job that made them."""
        return {job: use.leases for job, use in self._jobs.items()}

    def size(self, item: T) -> int:
        """Bytes of an object, 0 where that isn't known."""
        return self._sizes.get(item, 0)

    def excess(self, items: Sequence[T], job: str) -> Excess | None:
        """The first limit that one more lease of `items` by `job` would pass; None if there is room."""
        for use, suffix in ((self._all, ""), (self._jobs.get(job) or _Use[T](), "_per_job")):
            more_bytes = 0
            if self.limits.weighs:
                more_bytes = sum(self.size(item) for item in set(items) if item not in use.held)
            for what, used, more in (
                ("max_leases", use.leases, 1),
                ("max_references", use.references, len(items)),
                ("max_bytes", use.known_bytes, more_bytes),
            ):
                allowed: int | None = getattr(self.limits, what + suffix)
                if allowed is not None and more and used + more > allowed:
                    return Excess(what + suffix, allowed, used, more, bool(suffix))
        return None

    def largest(self, leases: Iterable[Lease[T]], limit: str, job: str | None) -> tuple[tuple[str, int], ...]:
        """The three labels (or source lines, of leases without one) that use most of a limit; of one job, or of all."""
        holders: Counter[str] = Counter()
        for held in leases:
            if job is None or held.origin.job == job:
                holders[held.terms.label or held.origin.source] += {
                    "max_leases": 1,
                    "max_references": len(held.items),
                    "max_bytes": sum(self.size(item) for item in set(held.items)),
                }[limit.removesuffix("_per_job")]
        return tuple(holders.most_common(3))

    def add(self, items: Sequence[T], job: str) -> tuple[T, ...]:
        """A lease begins; what it is to hold, in place of these items: what others hold already, where it is the same."""
        held = tuple(map(self._hold, items))
        for use in (self._all, self._jobs.setdefault(job, _Use())):
            use.leases += 1
            use.references += len(items)
            if self.limits.weighs:
                self._add_weight(use, held)
        return held

    def drop(self, items: Sequence[T], job: str) -> None:
        """A lease ends."""
        for item in items:
            if self._more.get(item):
                self._more[item] -= 1
                if not self._more[item]:
                    del self._more[item]
            else:
                self._held.pop(item, None)
        mine = self._jobs[job]
        for use in (self._all, mine):
            use.leases -= 1
            use.references -= len(items)
            if self.limits.weighs:
                for item in items:
                    use.held[item] -= 1
                    if not use.held[item]:
                        del use.held[item]
                        use.known_bytes -= self.size(item)
        if not mine.leases:
            del self._jobs[job]
        if self.limits.weighs:
            self.forget_unheld(items)

    def __contains__(self, item: T) -> bool:
        """Whether a lease holds it."""
        return item in self._held

    def learn(self, sizes: Mapping[T, int]) -> None:
        """Take note of objects' sizes; of one that is known already, the first stands."""
        new = {item: size for item, size in sizes.items() if item not in self._sizes}
        for use in (self._all, *self._jobs.values()):
            use.known_bytes += sum(size for item, size in new.items() if item in use.held)
        self._sizes.update(new)

    def forget_unheld(self, items: Sequence[T]) -> None:
        """Forget the sizes of those that no lease holds; also for those that were weighed for a lease that was then refused."""
        for item in items:
            if item not in self._all.held:
                self._sizes.pop(item, None)

    def unweighed(self) -> list[T]:
        """What is held and of unknown size, where there are limits in bytes."""
        return [item for item in self._all.held if item not in self._sizes]

    def set_limits(self, limits: Limits, held: Sequence[tuple[Sequence[T], str]]) -> None:
        """Take other limits.

        Args:
            limits: the new ones.
            held: items and job of each live lease, for when bytes begin to count.
        """
        if self.limits.weighs and not limits.weighs:
            self._sizes.clear()
            for use in (self._all, *self._jobs.values()):
                use.held.clear()
                use.known_bytes = 0
        elif limits.weighs and not self.limits.weighs:
            for items, job in held:
                for use in (self._all, self._jobs[job]):
                    self._add_weight(use, items)
        self.limits = limits

    def _hold(self, item: T) -> T:
        mine = self._held.get(item)
        if mine is None:
            self._held[item] = mine = item
        else:
            self._more[mine] += 1
        return mine

    def _add_weight(self, use: _Use[T], items: Sequence[T]) -> None:
        for item in items:
            if item not in use.held:
                use.known_bytes += self.size(item)
            use.held[item] += 1

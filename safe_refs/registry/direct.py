"""Requests that go out one by one: the core's own way to the verbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config import Deadline
from . import verbs
from .calls import Registry
from .records import Identity, Origin
from .requests import Plan, Wanted

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]


class Direct:
    """A `Sender` (see `protocols`) without any batching: each request goes out by itself, and its caller waits.

    Args:
        registry: gives a registry by its name.
        origin: says who is calling.
    """

    def __init__(self, registry: Callable[[str], Registry], origin: Callable[[], Origin]) -> None:
        self._registry = registry
        self._origin = origin

    def pin(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """See `Sender`, as for all below."""
        return verbs.pin(self._registry(registry), plan, deadline)

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """One after the other."""
        return [self.pin(registry, plan, deadline) for plan in plans]

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """At once."""
        return verbs.resolve(self._registry(row.address.registry), row, deadline)

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline, found: dict[int, list[Ref]]) -> None:
        """One after the other."""
        for place, row in enumerate(rows):
            found[place] = self.resolve(row, deadline)

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """At once."""
        return len(verbs.release(self._registry(registry), [(leases, self._origin())], deadline))

    def post(
        self, registry: str, plan: Plan, deadline: Deadline, then: Callable[[Identity | None, Exception | None], None]
    ) -> None:
        """At once, too."""
        then(self.pin(registry, plan, deadline), None)

    def close(self) -> None:
        """It keeps nothing."""

"""What a wing may add to the core: parts of a shard, parts of a client. Both are classes whose methods do nothing until overridden.

A shard announces to its parts everything that happens to a lease, whether a call did it, the clock, or another part. So a wing
never calls another wing, and what a part keeps about a lease goes when `ended` says so. `assembly` decides which parts there are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..checks import shown
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import SafeRefsError
from .received import checked
from .records import Identity
from .requests import Plan
from .wire import NotNow, Refused, ResolveRow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")
_AGAIN_S = 1.0  # before a thread that has failed starts again

A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])


class Began(NamedTuple):
    """How a lease came to this shard.

    Attributes:
        borrower: address of the process that gave the references, and that the lease depends on as long as the objects' owners don't
            know this shard; empty where that process owns them.
        from_shard: that process is another shard of the registry.
        extras: see `PinRow`.
        again: it lives again, as a use was given back that had ended it; the borrower is the reader.
    """

    borrower: bytes = b""
    from_shard: bool = False
    extras: Mapping[str, Any] = {}
    again: bool = False


class Loop(NamedTuple):
    """What one thread of a shard does. `run` returns when there is nothing more to do; when it raises, it is run again."""

    name: str
    run: Callable[[], None]

    def keep_running(self) -> None:
        """Run it; one that fails, whatever the error, must not end all that it has to do."""
        while True:
            try:
                self.run()
                return
            except BaseException:
                logger.warning(f"safe_refs-{self.name} failed; it starts again", exc_info=True)
                time.sleep(_AGAIN_S)


def remote(method: F) -> F:
    """A method of a `ShardPart` that other processes call, as `Call(ThePart.the_method, …)`; its arguments are `checked`."""
    found = checked(method)
    found.is_remote = True  # type: ignore[attr-defined] # a function may have any attribute
    return found


class ShardPart:
    """What a wing adds to a shard. The methods down to `figures` are called under the shard's lock: they must not wait.

    All that a part knows of the shard is what `shard.Shard` offers publicly: its table, its locks, and how to announce events.
    """

    def pinned(self, lease: bytes, began: Began) -> None:
        """A lease has begun, or was pinned once more."""

    def is_unsure(self, lease: bytes) -> bool:
        """Whether who has just pinned a lease has to make sure that the owners know this shard."""
        return False

    def resolved(self, lease: bytes, items: Sequence[Ref], *, soon: bool) -> None:
        """Another process has got these items of a lease, which may have ended by that. `soon`: it waits until the owners know it."""

    def changed(self, leases: Sequence[bytes]) -> None:
        """Something has changed of these leases that their other holders must learn: a use, a renewal, an end, other items."""

    def replaced(self, lease: bytes, former: Sequence[Ref]) -> None:
        """The lease holds copies now, of this shard's own, in place of these items."""

    def ended(self, lease: bytes, items: Sequence[Ref]) -> None:
        """This shard no longer holds the lease: it has ended, was lost, or moved to other shards. If it was lost, `lost` follows."""

    def lost(self, leases: Sequence[bytes]) -> None:
        """What these leases held is gone from here; other holders may still have it."""

    def limits_changed(self) -> None:
        """The shard's limits are others now."""

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused | None:
        """The table refuses to do something with a lease: what to answer instead, if this part knows better."""
        return None

    def depends_on(self, lease: bytes) -> bytes:
        """Address of the process that a lease depends on; empty if there is none."""
        return b""

    def figures(self) -> Mapping[str, float]:
        """Figures for `stats`, by the names of `RegistryStats`. Of one that several parts give, the largest counts."""
        return {}

    # From here on, without the lock.

    def admit(self, version: int) -> NotNow | None:
        """Whether a call may be carried out that goes by that version of the topology; if not, the answer."""
        return None

    def examine(self, extras: Mapping[str, Any]) -> None:
        """A lease is to begin with these extras (see `PinRow`). Raises `TypeError` or `ValueError` if this part's own are wrong."""

    def pinning(self, borrower: bytes, refs: Sequence[Ref]) -> None:
        """A call brings references, for a lease that begins or lives again, or holds them already.

        The borrower is who pins them without owning them; another shard counts as none.
        """

    def crowded(self) -> NotNow | None:
        """Whether no lease must be resolved just now; if so, the answer."""
        return None

    def doubts(self, row: ResolveRow) -> NotNow | None:
        """Whether a lease must not be resolved just now; if so, the answer."""
        return None

    def owner_died(self, owner: bytes) -> None:
        """A process is dead that owned what leases hold. They end in a moment, unless a part takes them away before."""

    def threads(self) -> Sequence[Loop]:
        """The threads that the part needs; they start when the shard is complete."""
        return ()

    def closing(self, patience_s: float) -> None:
        """The shard has ended all leases, and must not hold any reference any more."""


class Parts:
    """All parts of a shard: what happens to a lease is announced here, by the shard or by a part. The lock is as for `ShardPart`.

    Args:
        parts: in the order in which they are called.
    """

    def __init__(self, parts: Sequence[ShardPart] = ()) -> None:
        self._parts = parts

    def named(self, name: str) -> ShardPart:
        """The part of the class of that name."""
        return next(part for part in self._parts if type(part).__name__ == name)

    def remote(self, name: str) -> Callable[..., Any]:
        """A part's method that other processes call, by its name: `Class.method`.

        Raises:
            ValueError: no part has it, or it is not marked as `remote`.
        """
        class_name, _, method = name.partition(".")
        for part in self._parts:
            if type(part).__name__ == class_name and getattr(getattr(type(part), method, None), "is_remote", False):
                found: Callable[..., Any] = getattr(part, method)
                return found
        raise ValueError(f"part: no part of this shard has a method {shown(name)!r} for other processes")

    def pinned(self, lease: bytes, began: Began) -> None:
        """See `ShardPart`, as for all below."""
        for part in self._parts:
            part.pinned(lease, began)

    def is_unsure(self, lease: bytes) -> bool:
        """Whether who has just pinned a lease has something to make sure."""
        return any(part.is_unsure(lease) for part in self._parts)

    def resolved(self, lease: bytes, items: Sequence[Ref], *, soon: bool = False) -> None:
        """A lease was resolved."""
        for part in self._parts:
            part.resolved(lease, items, soon=soon)

    def changed(self, leases: Sequence[bytes]) -> None:
        """Leases have changed."""
        for part in self._parts:
            part.changed(leases)

    def replaced(self, lease: bytes, former: Sequence[Ref]) -> None:
        """A lease holds copies now."""
        for part in self._parts:
            part.replaced(lease, former)

    def ended(self, lease: bytes, items: Sequence[Ref]) -> None:
        """A lease isn't held here any more."""
        for part in self._parts:
            part.ended(lease, items)

    def lost(self, leases: Sequence[bytes]) -> None:
        """What leases held is gone."""
        for part in self._parts:
            part.lost(leases)

    def limits_changed(self) -> None:
        """The limits are others now."""
        for part in self._parts:
            part.limits_changed()

    def depends_on(self, lease: bytes) -> bytes:
        """The process that a lease depends on."""
        return next((process for part in self._parts if (process := part.depends_on(lease))), b"")

    def figures(self) -> dict[str, Any]:
        """All their figures."""
        found: dict[str, float] = {}
        for part in self._parts:
            for name, value in part.figures().items():
                found[name] = max(value, found.get(name, value))
        return found

    def admit(self, version: int) -> NotNow | None:
        """Whether a call may be carried out."""
        return next((answer for part in self._parts if (answer := part.admit(version)) is not None), None)

    def examine(self, extras: Mapping[str, Any]) -> None:
        """A lease is to begin with these extras."""
        for part in self._parts if extras else ():
            part.examine(extras)

    def pinning(self, borrower: bytes, refs: Sequence[Ref]) -> None:
        """A lease is about to begin."""
        for part in self._parts:
            part.pinning(borrower, refs)

    def crowded(self) -> NotNow | None:
        """Whether nothing must be resolved just now."""
        return next((answer for part in self._parts if (answer := part.crowded()) is not None), None)

    def doubts(self, row: ResolveRow) -> NotNow | None:
        """Whether a lease must not be resolved just now."""
        return next((answer for part in self._parts if (answer := part.doubts(row)) is not None), None)

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused:
        """What to answer where the table refuses."""
        # An error's traceback would keep the references of this call, until the next garbage collection.
        refusal = refusal.with_traceback(None)
        answers = (part.excuse(lease, use, refusal) for part in self._parts)
        return next((answer for answer in answers if answer is not None), refusal)

    def owner_died(self, owner: bytes) -> None:
        """An owner is dead."""
        for part in self._parts:
            part.owner_died(owner)

    def threads(self) -> list[Loop]:
        """All threads that they need."""
        return [loop for part in self._parts for loop in part.threads()]

    def closing(self, patience_s: float) -> None:
        """The shard has ended all leases."""
        for part in self._parts:
            part.closing(patience_s)


class ClientPart:
    """What a wing adds to a process that uses a registry. All methods may be called by several threads at once."""

    def before_pin(self, registry: str, plan: Plan) -> None:
        """A lease is about to be pinned, by a caller that waits. May refuse it by raising, or begin something in `plan.notes`."""

    def after_pin(self, registry: str, plan: Plan, held: Identity | None, deadline: Deadline) -> None:
        """The registry holds the lease, or (None) the pin has failed, or was given up. Only the former may raise."""

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """Several leases are about to be pinned in one call; as `before_pin`."""
        for plan in plans:
            self.before_pin(registry, plan)

    def after_pins(self, registry: str, pins: Sequence[tuple[Plan, Identity | None]], deadline: Deadline) -> None:
        """Several leases were to be pinned in one call; as `after_pin`."""
        for plan, held in pins:
            self.after_pin(registry, plan, held, deadline)

    def resolved(self, address: LeaseAddress, refs: Sequence[Ref]) -> None:
        """This process has got references from a registry."""

    def await_anchored(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> None:
        """Wait until what this process has resolved of these leases no longer depends on the registry. Raises if that can't be."""

    def released(self, registry: str, leases: Sequence[bytes]) -> None:
        """This process has ended leases."""

    def shut_down(self, registry: str, shards: int) -> None:
        """This process has shut a registry down, which had that many shards: none of their actors lives any more."""

    def close(self) -> None:
        """The connection is gone, or this is a forked child: keep nothing, end threads. Must not wait, nor call Ray."""

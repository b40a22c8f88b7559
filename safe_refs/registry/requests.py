"""What a process asks of a registry, before it is a call to a shard. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import LeaseLostError, LeaseNotFoundError, SafeRefsError
from .records import Identity, Origin, Renewal, Terms
from .wire import GiveBackRow, Refused, ResolveRow, is_unsure

A = TypeVar("A")


@dataclass(slots=True)
class Plan:
    """A lease that a process is about to make.

    Attributes:
        lease: its id.
        refs: what it is to hold: objects' references and actors' handles.
        terms: its terms.
        maker: who makes it.
        borrowed: those of `refs` that other processes own.
        borrower: address of this process, if it doesn't own all of them or, as a Ray Client, doesn't know; else empty.
        durable: whether it is to hold copies.
        deadline: until when the caller waits for all of it, copies included, if it has said so.
        extras: see `PinRow`.
        notes: what a part of the client keeps between `before_pin` and `after_pin`, by its name.
        is_unsure: a shard that holds it may be unknown to the owners (`wire.UNSURE`).
    """

    lease: bytes
    refs: Sequence[Any]
    terms: Terms
    maker: Origin
    borrowed: Sequence[Any] = ()
    borrower: bytes = b""
    durable: bool = False
    deadline: Deadline | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    is_unsure: bool = False

    @property
    def may_take_long(self) -> bool:
        """Whether wings have something to do for it when it is held, and may wait for that. For an unsure one they don't."""
        return bool(self.borrowed or self.durable)

    def note_unsure(self, answer: object) -> None:
        """Note what a shard has answered to its pin."""
        self.is_unsure = self.is_unsure or is_unsure(answer)


class Wanted(NamedTuple):
    """A lease that is to be resolved.

    Attributes:
        address: where it lives.
        slot: which of its references; None for all.
        take: end it in the same step.
        asker: who asks.
        use: id of this use, the same whichever shard is asked, and however often.
        spends: the lease may count it (a take; or its uses are limited, as far as is known), so that it may have to be given back.
        late: gets it and its references, in another thread, if a signal handler's exception has ended the wait for them.
    """

    address: LeaseAddress
    slot: int | None
    take: bool
    asker: Origin
    use: bytes
    spends: bool = False
    late: Callable[[Wanted, list[Any]], None] | None = None

    def row(self, *, counts: bool) -> ResolveRow:
        """It, for a call to a shard: as a use that counts, or only to look whether it does."""
        lease, asked = self.address.lease, Identity(self.address.epoch, self.address.generation)
        return ResolveRow(lease, asked, self.slot, self.take, self.asker, self.use if counts else b"")


class Unspent(NamedTuple):
    """A use that is to be given back.

    Attributes:
        plan: its lease, as if it were to begin with what the reader has got.
        use: its id.
        take: whether it has taken the lease.
    """

    plan: Plan
    use: bytes
    take: bool

    def row(self) -> GiveBackRow:
        """It, for a call to a shard."""
        plan = self.plan
        return GiveBackRow(plan.lease, self.use, self.take, len(plan.refs), plan.maker, plan.borrower)


class Question(Generic[A]):
    """What is asked about one lease, of one shard or of several.

    Args:
        address: the lease.
        call: makes the `Call`, from the version of the layout, whether the shards are asked one after the other (so that what they do
            counts), and the renewal that one of them has answered, if one has.
        opened: what an answer says.
        in_turn: the shards are to be asked one after the other from the start; otherwise only if one of them says so.

    Attributes:
        memory: what the verbs keep between two attempts.
    """

    def __init__(
        self,
        address: LeaseAddress,
        call: Callable[[int, bool, Renewal | None], Any],
        opened: Callable[[Any], A | Refused],
        *,
        in_turn: bool,
    ) -> None:
        self.address = address
        self.call = call
        self.opened = opened
        self.in_turn = in_turn
        self.memory: Any = None

    def awaits(self, refusal: SafeRefsError) -> bool:
        """Whether the lease may still arrive: its maker did not wait for the pin, and no shard says that it has ended."""
        return self.address.soon and isinstance(refusal, (LeaseNotFoundError, LeaseLostError))


def identity(address: LeaseAddress) -> Identity:
    """The identity of the registry that an address names."""
    return Identity(address.epoch, address.generation)

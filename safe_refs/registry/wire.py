"""What travels between a process and a shard: a NamedTuple for each call, an enum for answers that are none.

A caller names the shard's method itself (`Call(Shard.pin, PinCall(…), refs)`, see `calls`), so that mypy checks both ends. Calls on
the hot path travel as msgpack bytes: a tuple of eight small values costs Ray's pickler a tenth of a whole call. The shard checks each
field by its type here (see `received`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from ..bounds import Address, AnySpan, LeaseId, Name, Span, UseId, Whole
from ..errors import SafeRefsError
from .records import Identity, Origin, Query, Renewal, Terms

NOT_TEXT = "surrogatepass"  # names of files may hold bytes that are no text


UNSURE = (
    b"?"  # behind the identity in the answer to a pin: a part of the shard is not sure that owners will know the shard
)
IDENTITY_BYTES = 16
# References in an answer about several leases: some ten milliseconds of the shard's time. And so many of one lease are anchored in
# less than a second; whoever resolves more waits.
MOST_TOGETHER = 1_000


class NotNow(enum.Enum):
    """Why a shard has not done what it was asked, in place of a result.

    STALE: the caller goes by an old topology; look it up again. CLOSING: the registry is being shut down. RECOVERING: the shard does
    not know yet all that it should; ask again, or ask others. IN_TURN: the lease counts its uses, so ask its replicas one after the
    other, in a call of its own; or the answer is full. DOUBTFUL: the lease depended on a process that is dead, and what it held may
    be gone; ask again.
    BEHIND: too many references were resolved of late, of whose readers the owners don't know yet; ask again a little later.
    """

    STALE = 1
    CLOSING = 2
    RECOVERING = 3
    IN_TURN = 4
    DOUBTFUL = 5
    BEHIND = 6


class Silence(enum.Enum):
    """Why a shard has not answered: there is no such actor, it is dead just now, or the time was over."""

    ABSENT = 1
    DEAD = 2
    LATE = 3


class Granted(NamedTuple):
    """The lease has ended by the very use that is asked for: another replica granted it, and has reported that to this one already.

    Attributes:
        refusal: what anybody else would get.
    """

    refusal: SafeRefsError


class Overdue(NamedTuple):
    """By what this shard knows the lease's time was over; but another replica may have renewed it in time.

    Attributes:
        refusal: what anybody gets if none has.
    """

    refusal: SafeRefsError


Refused = SafeRefsError | Granted | Overdue | NotNow  # why a shard doesn't do what it was asked


class PinRow(NamedTuple):
    """A lease that is to begin.

    Attributes:
        lease: its id.
        size: how many of the call's references it holds: the next ones, in order.
        terms: its terms.
        maker: who makes it.
        borrower: address of the process that makes it, if that doesn't own all of the objects; else empty.
        extras: what a wing of the caller says to the same wing of the shard, by the wing's name.
    """

    lease: LeaseId
    size: Whole
    terms: Terms
    maker: Origin
    borrower: Address
    extras: Mapping[Name, Any]


class PinCall(NamedTuple):
    """Begin leases. `version` is that of the topology that the caller goes by, here and below; 0 where there is only one shard."""

    version: int
    rows: Sequence[PinRow]

    @classmethod
    def unpack(cls, data: bytes) -> PinCall:
        """The call that travelled as bytes."""
        version, rows = msgpack.unpackb(data, unicode_errors=NOT_TEXT, use_list=False)
        return cls(version, [PinRow(a, b, Terms(*c), Origin(*d), e, f) for a, b, c, d, e, f in rows])


class ResolveRow(NamedTuple):
    """A lease that is to be resolved.

    Attributes:
        lease: its id.
        asked: the identity that its payload names.
        slot: which of its references; None for all.
        take: end it in the same step.
        asker: who asks.
        use: id of this use, the same whichever shard is asked, and however often; empty while several shards are asked at once.
    """

    lease: LeaseId
    asked: Identity
    slot: Whole | None
    take: bool
    asker: Origin
    use: UseId


class ResolveCall(NamedTuple):
    """Resolve leases: one by itself, or `together` what is asked again by itself if this does not decide.

    Who `insists` has waited for long, and gets an answer also if the shard is behind.
    """

    version: int
    rows: Sequence[ResolveRow]
    together: bool = False
    insists: bool = False

    @classmethod
    def unpack(cls, data: bytes) -> ResolveCall:
        """The call that travelled as bytes."""
        version, rows, *how = msgpack.unpackb(data, unicode_errors=NOT_TEXT, use_list=False)
        return cls(version, [ResolveRow(a, Identity(*b), c, d, Origin(*e), f) for a, b, c, d, e, f in rows], *how)


class ReleaseCall(NamedTuple):
    """End leases: rows of ids, each row with who ends them; and the reason, if that is that their pins have failed."""

    version: int
    rows: Sequence[tuple[Sequence[LeaseId], Origin]]
    reason: str = ""


class ReleaseWhereCall(NamedTuple):
    """End leases that a query chooses, a page of them; or, in a `dry_run`, only say which these are. `origin` is who ends them."""

    version: int
    query: Query
    origin: Origin
    dry_run: bool


class GiveBackRow(NamedTuple):
    """A use that is given back, as its reader could not open what it got.

    Attributes:
        lease: of which lease.
        use: its id.
        take: whether it has taken the lease.
        size: how many of the call's references are what it got: the next ones, in order.
        reader: who has got it, and gives it back.
        borrower: as of `PinRow`, of the process that gives it back.
    """

    lease: LeaseId
    use: UseId
    take: bool
    size: Whole
    reader: Origin
    borrower: Address


class GiveBackCall(NamedTuple):
    """Give uses back."""

    version: int
    rows: Sequence[GiveBackRow]


class RenewCall(NamedTuple):
    """Give a lease another ttl, in seconds from now (None: no limit); `lengthens` and `decided` as for `LeaseTable.renew`."""

    version: int
    lease: LeaseId
    asked: Identity
    ttl: Span | None
    lengthens: bool
    decided: Renewal | None


class ExpiresCall(NamedTuple):
    """Ask when a lease's ttl runs out."""

    version: int
    lease: LeaseId
    asked: Identity


class ListCall(NamedTuple):
    """List live leases: one page, with the sizes of their objects or without."""

    query: Query
    with_sizes: bool


class CloseCall(NamedTuple):
    """Let go of everything. Who says so, and how many seconds the shard may take until Ray has seen it."""

    origin: Origin
    patience_s: AnySpan


# The calls that travel as bytes, packed by `calls.Call`.
PACKED = frozenset({PinCall, ResolveCall})


def is_unsure(answer: object) -> bool:
    """Whether a shard holds a lease, and a part of it says UNSURE."""
    return isinstance(answer, bytes) and len(answer) > IDENTITY_BYTES


def split(answers: Sequence[Any], refs: list[Any]) -> list[list[Any] | None]:
    """The references of each lease, by the answer to a `resolve`; None for one that has none."""
    found: list[list[Any] | None] = []
    at = 0
    for answer in answers:
        count = answer if type(answer) is int else 0
        found.append(refs[at : at + count] if type(answer) is int else None)
        at += count
    return found

"""What travels between the maker of a durable lease, the lease's shards and their copy owners.

The maker sends a `CopyRequest` inside its pin, and `DurableCall`s until the lease is durable. A `CopyCall` goes to a copy owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from ..bounds import Environment, LeaseId, ShardNumber, Span
from ..errors import SafeRefsError
from ..registry.records import Identity
from ..registry.wire import NotNow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

WING = "durability"  # the name of this wing in `PinRow.extras` and `Plan.notes`


class Why(Enum):
    """Why an object can't be copied.

    GONE: its owner is dead. COPIES_GONE: it was copied, and the owner of the copies is dead. UNSUPPORTED: it holds something that
    nobody can copy. FAILED: something else went wrong.
    """

    GONE = 1
    UNSUPPORTED = 2
    FAILED = 3
    COPIES_GONE = 4


class NotCopyable(NamedTuple):
    """An object can't be copied: why, and the same in words for people."""

    why: Why
    reason: str


class CopyRequest(NamedTuple):
    """A lease that is being pinned is to become durable.

    Attributes:
        env: what the tasks need that copy its objects; see `environments.surroundings`.
        ttl: seconds that the lease is to live from when it is durable; None for the ttl that it has.
        sent_to: shards whose copy owners have got the request from the maker itself.
    """

    env: Environment
    ttl: Span | None
    sent_to: Sequence[ShardNumber] = ()


class DurableRow(NamedTuple):
    """A lease that is to become durable, or be so already.

    Attributes:
        lease: its id.
        asked: the identity that its payload names.
        ttl: see `CopyRequest`.
        failed: the shard's copy owner got the request and did not deliver: the shard has to send it again.
    """

    lease: LeaseId
    asked: Identity
    ttl: Span | None
    failed: bool


class DurableCall(NamedTuple):
    """Ask a shard for durable leases. `version` is that of the topology; `env` as in `CopyRequest`."""

    version: int
    rows: Sequence[DurableRow]
    env: Environment


# Whether the lease is durable, or why it can't be.
Durable: TypeAlias = "bool | NotCopyable | SafeRefsError | NotNow"

# For each lease of a `DurableCall` the answer; and for each that is being copied the completion, once there is one.
DurableReply: TypeAlias = "tuple[list[Durable], list[Ref | None]]"


class CopyCall(NamedTuple):
    """Ask a copy owner for copies of what a lease holds.

    Attributes:
        lease: its id.
        env: as in `CopyRequest`.
        at_home: whether the copies go to the copy owner's own node, and not where the data is. That is so if several shards have
            copies: the death of a node then destroys the copies of one shard only.
        ready: whether all objects are known to exist, so that none needs to be waited for.
    """

    lease: LeaseId
    env: Environment
    at_home: bool
    ready: bool = False


class CopyMaker(Protocol):
    """A copy owner, as others call it; see `owner.CopyOwner`."""

    def make_copies(self, call: CopyCall, refs: Sequence[Any]) -> Ref:
        """Begin to copy these references of a lease, without waiting.

        Returns:
            The completion: it becomes ready when the job is over, with the identity of the shard that holds the copies, as 16 bytes;
            with none if no shard does.
        """

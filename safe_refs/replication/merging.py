"""What the answers of several shards mean together, for the process that asked them. Pure: no Ray, no threads, no clock.

Each request is a small machine whose state is a value: it says which shards to ask, takes their answers, and says what to do next.
The verbs of a process drive it with calls, the explorer of the tests with every order of answers, crashes and silences.

```
Inquiry   a question about a lease (resolve, take, renew, …)    all holders at once, or one after the other
Pinning   a lease is to begin                                   all holders at once; those that are dead get it from the others
Releasing leases are to end                                     all that may hold them at once; who is dead hears it from the others
```

A machine's verdict is a result, an error, or why there is none yet: a `NotNow` or `Silence`, as one shard would answer it, for
`asking.Verbs.not_now`. STALE: look the topology up, and ask again; CLOSING: the same, a little later; RECOVERING: ask again a little
later; LATE: the time is over; ABSENT: there is no such registry.

What always holds: an end that one holder knows of beats the lease that another still has; where what a call does counts (uses, takes,
renewals) the holders are asked one after the other, the deciding one first, and none again that has granted it; a holder that can't
answer yet is never taken for one that has not got the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import SafeRefsError
from ..registry.records import Identity
from ..registry.wire import NotNow, Silence
from .topology import Topology

R = TypeVar("R")

PATIENCE_S = (
    2.0  # how long a replica that does not respond is waited for once another has, by those that are asked all at once
)


class Ask(NamedTuple):
    """Shards to ask next, all at once, and how.

    Attributes:
        shards: which.
        counts: what they do counts, as they are asked one after the other; otherwise they only look.
        number: the largest number that a shard has answered; 0 at first. See `asking.Question`.
    """

    shards: tuple[int, ...]
    counts: bool
    number: int = 0


class Inquiry(NamedTuple):
    """A question about one lease, and what is known of its answer: what `asking.Question.memory` holds.

    Attributes:
        in_turn: the holders are asked one after the other.
        granted: what shards have answered that were asked in turn: they are not to be asked twice. By shard.
        was_growing: in the last round that gave no answer the registry was growing, so that the lease may have been on its way from
            one shard to another.
        shards: who may hold the lease, in this round.
        is_growing: the registry is growing, in this round.
        replies: of this round, by shard.
    """

    in_turn: bool
    granted: tuple[tuple[int, Any], ...] = ()
    was_growing: bool = False
    shards: tuple[int, ...] = ()
    is_growing: bool = False
    replies: tuple[tuple[int, Any], ...] = ()

    def begin(self, lease: bytes, topology: Topology) -> tuple[Inquiry, Any]:
        """Begin a round; like `take`."""
        shards, is_growing = topology.everywhere(lease), bool(topology.before)
        return self._replace(shards=shards, is_growing=is_growing, replies=())._next()

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        """Take the answers of the shards that were to be asked.

        Args:
            replies: by shard its answer, as the question's `opened` gives it: a result, or a `SafeRefsError`, `Granted`, `NotNow` or
                `Silence`.

        Returns:
            The inquiry as it goes on, and an `Ask`, or the verdict: a result, a `SafeRefsError`, a `NotNow` or `Silence`.
        """
        raise NotImplementedError

    def _next(self) -> tuple[Inquiry, Any]:
        raise NotImplementedError


class Repair(NamedTuple):
    """Holders are dead: `shards` are to pass the lease on to those that are `missing` it (`Rules.missed`); see `Pinning.repaired`."""

    shards: tuple[int, ...]
    missing: tuple[int, ...]


class Pinning(NamedTuple):
    """A lease that is to begin, and who holds it by now: kept in `hooks.Plan.notes` between two attempts.

    Attributes:
        held: the shards that hold it.
        identity: the newest identity that one of them has answered; the payload names it.
    """

    held: frozenset[int] = frozenset()
    identity: Identity | None = None

    def missing(self, holders: Sequence[int]) -> tuple[int, ...]:
        """The shards to ask."""
        return tuple(shard for shard in holders if shard not in self.held)

    def take(
        self, holders: Sequence[int], replies: Mapping[int, bytes | SafeRefsError | NotNow | Silence]
    ) -> tuple[Pinning, Identity | Repair | SafeRefsError | NotNow | Silence]:
        """Take the answers of the shards that were to be asked: each the registry's identity, or why it doesn't hold the lease.

        Returns:
            The pinning as it goes on, and the verdict: the identity if all hold it, an error (it may be held somewhere), or `Repair`.
        """
        raise NotImplementedError

    def repaired(self, replies: Mapping[int, object]) -> tuple[Pinning, Identity | NotNow]:
        """Take the answers to a `Repair`: True of a shard that will pass the lease on."""
        raise NotImplementedError


class Releasing(NamedTuple):
    """Leases that are to end, and who is yet to be told: what `asking.Release.memory` holds.

    Attributes:
        waiting: by shard the leases that it is to be told of; None for all, by the topology of the moment.
    """

    waiting: tuple[tuple[int, tuple[bytes, ...]], ...] | None = None

    def begin(self, leases: Iterable[bytes], topology: Topology) -> Releasing:
        """Whom to tell in this round."""
        raise NotImplementedError

    def take(
        self, replies: Mapping[int, Sequence[int] | NotNow | Silence]
    ) -> tuple[Releasing, set[bytes], bool | NotNow | Silence]:
        """Take the answers of the shards in `waiting`: of each for each of its leases whether that ended it.

        Returns:
            The releasing as it goes on, which leases were ended by this, and the verdict: True if all is done.
        """
        raise NotImplementedError


def rows_of(holders: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Requests that go together, one call to each shard: by shard the places of those that it is asked, given the shards of each."""
    raise NotImplementedError


def replies_of(
    rows: Mapping[int, Sequence[int]], replies: Mapping[int, Sequence[R] | NotNow | Silence]
) -> list[dict[int, R | NotNow | Silence]]:
    """The answers to such calls: for each request what each of its shards answered."""
    raise NotImplementedError


def granted_by_all(replies: Mapping[int, R | object]) -> R | None:
    """What a lease holds, if all of its holders have been asked at once, and grant it; else None: ask about it by itself."""
    raise NotImplementedError

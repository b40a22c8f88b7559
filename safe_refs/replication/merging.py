"""What the answers of several shards mean together, for the process that asked them. Pure: no Ray, no threads, no clock.

Each request is a small machine whose state is a value: it says which shards to ask, takes their answers, and says what to do next.
The verbs of a process drive it with calls, the explorer of the tests with every order of answers, crashes and silences.

```
Inquiry   a question about a lease (resolve, take, renew, …)    all holders at once, or one after the other
Pinning   a lease is to begin                                   all holders at once; those that are dead get it from the others
Releasing leases are to end                                     all that may hold them at once; the dead learn it from the others
Returning a use is given back                                   all but the deciding holder at once, and then that one
```

A machine's verdict is a result, an error, or why there is none yet: a `NotNow` or `Silence`, as one shard would answer it, for
`asking.Verbs.not_now`. STALE: look the topology up, and ask again; CLOSING: the same, a little later; RECOVERING: ask again a little
later; LATE: the time is over; ABSENT: there is no such registry.

What always holds: an end that one holder knows of beats the lease that another still has, unless its time was over there and it was
renewed elsewhere (`Overdue`); where what a call does counts (uses, takes,
renewals) the holders are asked one after the other, the deciding one first, and none again that has granted it; a holder that can't
answer yet is never taken for one that has not got the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from ..errors import LeaseLostError, LeaseNotFoundError, SafeRefsError
from ..registry.records import Identity, Renewal
from ..registry.wire import Granted, NotNow, Overdue, Refused, Silence
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
        decided: the renewal that a shard has answered; None at first. See `requests.Question`.
    """

    shards: tuple[int, ...]
    counts: bool
    decided: Renewal | None = None


class Inquiry(NamedTuple):
    """A question about one lease, and what is known of its answer: what `requests.Question.memory` holds.

    Attributes:
        in_turn: the holders are asked one after the other.
        granted: what shards have answered that were asked in turn: they are not to be asked twice. By shard.
        was_growing: in the last round that gave no answer the registry was growing, so that the lease may have been on its way from
            one shard to another.
        shards: who may hold the lease, in this round.
        is_growing: the registry is growing, in this round.
        replies: of this round, by shard.
        won: what a shard has granted in a round in which the lease was overdue at another.
        was_overdue: in a round before, the lease was overdue at a shard, and another had died or lost it.
    """

    in_turn: bool
    granted: tuple[tuple[int, Any], ...] = ()
    was_growing: bool = False
    shards: tuple[int, ...] = ()
    is_growing: bool = False
    replies: tuple[tuple[int, Any], ...] = ()
    won: Any = None
    was_overdue: bool = False

    def begin(self, lease: bytes, topology: Topology) -> tuple[Inquiry, Any]:
        """Begin a round; like `take`."""
        shards, is_growing = topology.everywhere(lease), bool(topology.before)
        return self._replace(shards=shards, is_growing=is_growing, replies=())._next()

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        """Take the answers of the shards that were to be asked.

        Args:
            replies: by shard its answer, as the question's `opened` gives it: a result, a `Refused`, or a `Silence`.

        Returns:
            The inquiry as it goes on, and an `Ask`, or the verdict: a result, a `SafeRefsError`, a `NotNow` or `Silence`.
        """
        taken = self._replace(replies=(*self.replies, *replies.items()))
        if not self.in_turn or len(self.shards) == 1:
            return taken._verdict()
        (reply,) = replies.values()
        # An old topology: whom to ask next may be wrong. No answer in time: it may have been granted, and more would be spent. An
        # end: the others have nothing to add.
        if reply in (NotNow.STALE, Silence.LATE) or _is_end(reply):
            return taken._verdict()
        if _is_result(reply):
            taken = taken._replace(granted=(*self.granted, *replies.items()))
        return taken._next()

    def _next(self) -> tuple[Inquiry, Any]:
        if len(self.shards) == 1:
            return self, Ask(self.shards, counts=True)
        if not self.in_turn:
            return self, Ask(self.shards, counts=False)
        asked = {shard for shard, _ in (*self.granted, *self.replies)}
        left = next((shard for shard in self.shards if shard not in asked), None)
        if left is None:
            return self._verdict()
        answers = (*(answer for _, answer in self.granted), self.won)
        decided = next((answer for answer in answers if isinstance(answer, Renewal)), None)
        return self, Ask((left,), counts=True, decided=decided)

    def _verdict(self) -> tuple[Inquiry, Any]:
        answers = list((dict(self.granted) | dict(self.replies)).values())
        results = [answer for answer in answers if _is_result(answer)]
        # An end that our own use brought about, as the other holders know it already, is none, if one of them has granted it to us.
        own = [answer.refusal for answer in answers if isinstance(answer, Granted)]
        if own and self.won is not None:
            results.append(self.won)
        if not results:
            answers += own
        if NotNow.STALE in answers:
            return self, NotNow.STALE
        if NotNow.IN_TURN in answers and not self.in_turn:
            return self._replace(in_turn=True, replies=())._next()
        end = next((answer for answer in answers if _is_end(answer)), None)
        if end is not None:
            return self, end  # even if the others don't know of it yet
        overdue = [answer.refusal for answer in answers if isinstance(answer, Overdue)]
        if results and overdue and self.in_turn:
            # It was renewed in time at one holder, and that is news for the other; or the time is over only just now. If the one
            # crashed before they agree, what it did would be lost: so nothing is acknowledged yet, and all are asked again.
            return self._replace(granted=(), won=results[0]), NotNow.RECOVERING
        if results:
            return self, results[0]
        if overdue and not any(isinstance(answer, NotNow) for answer in answers):
            # Who is dead by now, or has lost it, may have reported to the other meanwhile that it had renewed the lease.
            if not self.was_overdue and not all(
                answer is Silence.LATE or isinstance(answer, Overdue) for answer in answers
            ):
                return self._replace(was_overdue=True), NotNow.RECOVERING
            return self, overdue[0]
        if all(answer is Silence.ABSENT for answer in answers):
            return self, Silence.ABSENT
        if Silence.LATE in answers:
            return self, Silence.LATE
        is_sure = not any(isinstance(answer, NotNow) or answer is Silence.DEAD for answer in answers)
        if is_sure and (self.was_growing or not self.is_growing):
            refusals = [answer for answer in answers if isinstance(answer, SafeRefsError)]
            return self, next((each for each in refusals if isinstance(each, LeaseLostError)), refusals[0])
        # Somebody who may have it can't answer yet; or it is on its way from one shard to another, and is asked for once more.
        return self._replace(was_growing=self.is_growing), NotNow.RECOVERING


def _is_result(answer: object) -> bool:
    return not isinstance(answer, (SafeRefsError, Granted, Overdue, NotNow, Silence))


def _is_end(answer: object) -> bool:
    """It says that the lease has ended; others only say that it isn't known there, which needn't mean anything."""
    return isinstance(answer, SafeRefsError) and not isinstance(answer, (LeaseNotFoundError, LeaseLostError))


class Repair(NamedTuple):
    """Holders are dead: `shards` are to pass the lease on to those that are `missing` it (`Rules.missed`); see `Pinning.repaired`."""

    shards: tuple[int, ...]
    missing: tuple[int, ...]


class Pinning(NamedTuple):
    """A lease that is to begin, and who holds it by now: kept in `requests.Plan.notes` between two attempts.

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
        held, identity = set(self.held), self.identity
        for shard, reply in replies.items():
            if isinstance(reply, SafeRefsError) or reply is Silence.LATE:
                return self, reply
            if isinstance(reply, bytes):
                held.add(shard)
                found = Identity.from_bytes(reply)
                identity = found if identity is None or found.generation > identity.generation else identity
        if NotNow.CLOSING in replies.values():
            held.clear()  # whoever holds it already will be gone with the registry
        pinning = Pinning(frozenset(held), identity)
        if NotNow.STALE in replies.values():
            return pinning, NotNow.STALE
        if NotNow.CLOSING in replies.values():
            return pinning, NotNow.CLOSING
        missing = pinning.missing(holders)
        if identity is not None and held and missing:
            return pinning, Repair(tuple(shard for shard in holders if shard in held), missing)
        return pinning, NotNow.RECOVERING if identity is None or missing else identity

    def repaired(self, replies: Mapping[int, object]) -> tuple[Pinning, Identity | NotNow]:
        """Take the answers to a `Repair`: True of a shard that will pass the lease on. One will do."""
        if self.identity is not None and True in replies.values():
            return self, self.identity
        return self._replace(held=frozenset()), NotNow.RECOVERING  # those that held it are dead by now, too


class Releasing(NamedTuple):
    """Leases that are to end, and which shards are yet to end them.

    Attributes:
        waiting: by shard the leases that it is to end; None for all, by the topology of the moment.
    """

    waiting: tuple[tuple[int, tuple[bytes, ...]], ...] | None = None

    def begin(self, leases: Iterable[bytes], topology: Topology) -> Releasing:
        """Which shards to ask in this round: see `waiting`."""
        if self.waiting is not None:
            return self
        waiting: dict[int, list[bytes]] = {}
        for lease in leases:
            for shard in topology.everywhere(lease):
                waiting.setdefault(shard, []).append(lease)
        return Releasing(tuple((shard, tuple(theirs)) for shard, theirs in waiting.items()))

    def take(
        self, replies: Mapping[int, Sequence[int] | NotNow | Silence]
    ) -> tuple[Releasing, set[bytes], bool | NotNow | Silence]:
        """Take the answers of the shards in `waiting`: of each for each of its leases whether that ended it.

        Returns:
            The releasing as it goes on, which leases were ended by this, and the verdict: True if all is done.
        """
        known, ended = set[bytes](), set[bytes]()
        for shard, theirs in self.waiting or ():
            flags = replies[shard]
            if not isinstance(flags, (NotNow, Silence)):
                known.update(theirs)
                ended.update(lease for lease, flag in zip(theirs, flags, strict=True) if flag)
        if NotNow.STALE in replies.values():
            return Releasing(), ended, NotNow.STALE  # the others may have carried it out all the same
        if Silence.LATE in replies.values():
            return self, ended, Silence.LATE
        # A dead shard learns it from the others when it is back. If no other shard knows it, the dead one is asked again until then.
        left = [
            (shard, tuple(lease for lease in theirs if lease not in known))
            for shard, theirs in self.waiting or ()
            if replies[shard] is Silence.DEAD
        ]
        waiting = tuple((shard, theirs) for shard, theirs in left if theirs)
        return Releasing(waiting), ended, NotNow.RECOVERING if waiting else True


class Returning(NamedTuple):
    """A use that is given back. The deciding holder is asked last: whoever asks it next finds that the others know, too.

    Attributes:
        rounds: the shards that are yet to be asked: those of each round at once.
        is_known: one has answered. Those that can't will learn it from that one.
    """

    rounds: tuple[tuple[int, ...], ...] = ()
    is_known: bool = False

    def begin(self, lease: bytes, topology: Topology) -> tuple[Returning, Ask]:
        """Begin, or begin again; like `take`."""
        first, *others = topology.everywhere(lease)
        return Returning((tuple(others), (first,)) if others else ((first,),))._next()

    def take(self, replies: Mapping[int, bool | NotNow | Silence]) -> tuple[Returning, Ask | bool | NotNow | Silence]:
        """Take the answers of the shards that were to be asked; see `Inquiry.take`. The verdict is True if it is done."""
        is_known = self.is_known or any(isinstance(reply, bool) for reply in replies.values())
        left = Returning(self.rounds[1:], is_known)
        for why in (NotNow.STALE, NotNow.CLOSING):
            if why in replies.values():
                return left, why
        if left.rounds:
            return left._next()
        if is_known:
            return left, True
        why_not = next((why for why in (Silence.ABSENT, Silence.LATE) if why in replies.values()), NotNow.RECOVERING)
        return left, why_not

    def _next(self) -> tuple[Returning, Ask]:
        return self, Ask(self.rounds[0], counts=True)


def rows_of(holders: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Requests that go together, one call to each shard: by shard the places of those that it is asked, given the shards of each."""
    rows: dict[int, list[int]] = {}
    for place, shards in enumerate(holders):
        for shard in shards:
            rows.setdefault(shard, []).append(place)
    return rows


def replies_of(
    rows: Mapping[int, Sequence[int]], replies: Mapping[int, Sequence[R] | NotNow | Silence], count: int
) -> list[dict[int, R | NotNow | Silence]]:
    """The answers to such calls: for each of `count` requests what each of its shards answered."""
    found: list[dict[int, R | NotNow | Silence]] = [{} for _ in range(count)]
    for shard, places in rows.items():
        reply = replies[shard]
        if isinstance(reply, (NotNow, Silence)):
            for place in places:
                found[place][shard] = reply
        else:
            for place, answer in zip(places, reply, strict=True):
                found[place][shard] = answer
    return found


def granted_by_all(replies: Mapping[int, R | Refused | Silence | None]) -> R | None:
    """What a lease holds, if every holder that was asked at once gives it; else None: ask about it by itself."""
    results = [reply for reply in replies.values() if reply is not None and _is_result(reply)]
    return cast("R", results[0]) if results and len(results) == len(replies) else None

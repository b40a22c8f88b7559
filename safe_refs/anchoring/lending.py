"""A borrower's loan from the moment that the relay holds it: what to do next, and what has come of it. Pure.

What has happened goes in, what to do comes out; the thread that pins does it, and says what happened:

    begun ──► Touch ──► touched ──┬──► Anchor ──► asked ───┐    first the registry that the objects come from anchors them
                ▲                 ├──► Pause ────► paused ─┤    the owners will soon know this process
                │                 ├──► Look ─────► looked ─┤    does the owner's question show at the holders of the lease?
                ◄─────────────────┼────────────────────────┘
                                  └──► Return ──► returned ──┬──► Confirm ──► confirmed ──► Over
                                                             └──► Look … looked ──► Confirm, or Over: once more

Ray can't report to an owner that doesn't know this process. The owner will know it soon if this process anchored the same object, or
resolved it, a moment ago; and it knows it at the end of this task if the task brought the reference. So the former are waited for, a
little. If the owner's question arrives while the count is zero, Ray reports at once, and this process can't see that it did. The
holders of the lease can see it; then its objects count as reported. If a holder is unsure (see `let_go`), it is to see that it is
known before this is over.

What always holds: from each state every event leads on, to `Over` at the latest when the deadline is over and what was begun is
answered. Whatever was lent is looked after later, by `loans`.
The tests visit every state that a loan, a relay, an owner and a registry can get into, with a kill at each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._ray.counts import Touch as State
from ..envelope import LeaseAddress
from .reports import RECENT_S

BUSY_S = 0.1  # an argument of a call in flight, which may go on for long
REPORT_S = 5.0  # until an owner that will know of this process does, on a machine that is very busy
CONFIRMED_S = 5.0  # an owner may have been stopped for a while
KNOWN_S = 0.25  # a round takes some milliseconds
FIRST_PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.05
KNOWN_PAUSE_S = 0.002


class Seen(NamedTuple):
    """What the touch of an object has shown.

    Attributes:
        state: what came of it.
        at: monotonic seconds, when this process got the object, or anchored it.
        source: the lease that it was resolved from, if it was.
        matters: whether the new lease is held by a shard that doesn't hold that one. Otherwise the shards that hold it have held the
            object before, and its owner knows them, or will, by itself.
    """

    state: State
    at: float
    source: LeaseAddress | None
    matters: bool


class Touch(NamedTuple):
    """Take the counts of these objects to zero and up again."""

    ids: tuple[bytes, ...]


class Anchor(NamedTuple):
    """Have the registry anchor these leases, so that the owners know this process. Ends by itself, sooner or later."""

    sources: tuple[LeaseAddress, ...]


class Pause(NamedTuple):
    """Wait."""

    seconds: float


class Look(NamedTuple):
    """See whether the new lease is anchored at all of its holders."""


class Return(NamedTuple):
    """Have the relay give back; and see whether Ray sends these reports so that they arrive if this process is killed right after."""

    reported: tuple[bytes, ...]


class Confirm(NamedTuple):
    """See, until then, whether the owners of these objects have the report: then the relay has forgotten the objects."""

    ids: tuple[bytes, ...]
    until: float


class Over(NamedTuple):
    """What has come of the loan.

    Attributes:
        unreported: objects whose owners may not know the registry: the lease depends on this process for them.
        said: objects whose owners will have the report soon.
        confirmed: those whose owners have it.
        once_more: a holder of the lease is not known to all owners still: it is to be reported once more.
    """

    unreported: frozenset[bytes]
    said: tuple[bytes, ...]
    confirmed: frozenset[bytes]
    once_more: bool = False


Step = Touch | Anchor | Pause | Look | Return | Confirm | Over


class Lending(NamedTuple):
    """The state of one loan.

    Attributes:
        lent: the objects that the relay holds.
        mine: those of them that the new lease holds; the others were left from earlier ones.
        deadline_at: monotonic seconds, the caller's.
        is_behind: the owners may not have all earlier reports of this process.
        is_unsure: a holder of the lease is.
        begun_at, until: monotonic seconds: since when it is touched, and until when it waits.
        left: the objects that Ray has not reported, and has to.
        reported: those that it has.
        asked: the leases that a registry was asked to anchor first.
        pause_s: the next pause.
        is_returned: the loan is on its way back.
    """

    lent: tuple[bytes, ...]
    mine: frozenset[bytes]
    deadline_at: float
    is_behind: bool
    is_unsure: bool
    begun_at: float
    until: float
    left: tuple[bytes, ...]
    reported: tuple[bytes, ...] = ()
    asked: frozenset[LeaseAddress] = frozenset()
    pause_s: float = FIRST_PAUSE_S
    is_returned: bool = False


Next = tuple[Lending, Step]


def begun(
    lent: Sequence[bytes],
    mine: frozenset[bytes],
    deadline_at: float,
    now: float,
    *,
    is_behind: bool = False,
    is_unsure: bool = False,
) -> Next:
    """The relay holds these objects."""
    ids = tuple(lent)
    until = min(deadline_at, now + REPORT_S)
    return Lending(ids, mine, deadline_at, is_behind, is_unsure, now, until, ids), Touch(ids)


def touched(loan: Lending, seen: Mapping[bytes, Seen], now: float) -> Next:
    """`Touch` has shown this."""
    reported: list[bytes] = list(loan.reported)
    left: list[bytes] = []
    sources: dict[LeaseAddress, None] = {}
    is_soon = False
    for id_ in loan.left:
        state, at, source, matters = seen[id_]
        if state is State.REPORTED:
            reported.append(id_)
        elif state is State.BUSY:
            left.append(id_)
            is_soon = is_soon or now - loan.begun_at < BUSY_S
        elif source is None:
            left.append(id_)
            is_soon = is_soon or now - at < RECENT_S
        elif matters or loan.is_unsure:
            left.append(id_)
            if source in loan.asked:
                is_soon = True
            else:
                sources[source] = None
    loan = loan._replace(left=tuple(left), reported=tuple(reported))
    if sources:
        return loan, Anchor(tuple(sources))
    if not left or not is_soon or now >= loan.until:
        return loan, Return(loan.reported)
    return (loan, Look()) if loan.pause_s >= LONGEST_PAUSE_S else _pause(loan)


def asked(loan: Lending, sources: Sequence[LeaseAddress], now: float) -> Next:
    """`Anchor` has ended: the owners may know this process by now, or soon."""
    until = min(loan.deadline_at, now + REPORT_S)
    return loan._replace(asked=loan.asked.union(sources), until=until), Touch(loan.left)


def paused(loan: Lending) -> Next:
    """`Pause` is over."""
    return loan, Look() if loan.is_returned else Touch(loan.left)


def looked(loan: Lending, now: float, *, is_anchored: bool) -> Next:
    """`Look` has shown whether the lease is anchored."""
    if loan.is_returned:
        if is_anchored:
            return _confirm(loan, now)
        over = Over(frozenset(loan.left).union(loan.reported), loan.reported, frozenset(), once_more=True)
        return (loan, over) if now >= loan.until else _pause(loan)
    if not is_anchored:
        return _pause(loan)
    unseen = tuple(id_ for id_ in loan.left if id_ in loan.mine)
    left = tuple(id_ for id_ in loan.left if id_ not in loan.mine)
    loan = loan._replace(left=left, reported=loan.reported + unseen)
    return loan, Return(loan.reported)


def returned(loan: Lending, now: float, *, is_sent: bool) -> Next:
    """The loan is on its way back; whether Ray sends the reports so that they arrive whatever happens to this process."""
    if loan.reported and loan.is_unsure:
        until = min(loan.deadline_at, now + KNOWN_S)
        return loan._replace(is_returned=True, until=until, pause_s=KNOWN_PAUSE_S), Look()
    if loan.reported and (loan.is_behind or not is_sent):
        return _confirm(loan, now)
    return loan, Over(frozenset(loan.left), loan.reported, frozenset())


def confirmed(loan: Lending, missing: Sequence[bytes]) -> Next:
    """`Confirm` has ended, without success for these objects."""
    return loan, Over(frozenset(loan.left).union(missing), (), frozenset(loan.reported).difference(missing))


def _confirm(loan: Lending, now: float) -> Next:
    return loan, Confirm(loan.reported, min(loan.deadline_at, now + CONFIRMED_S))


def _pause(loan: Lending) -> Next:
    return loan._replace(pause_s=min(2 * loan.pause_s, LONGEST_PAUSE_S)), Pause(loan.pause_s)

"""The client's part: how a process that pins references which it only borrows makes their owners know the registry.

Where nothing else in the process can be using references (a plain task, an actor without concurrency, a driver without threads of
its own), the pin is anchored within `dumps`, by the method of `relays`:

    before_pin    lend the references to the clients' relay, without waiting
    [the pin]     meanwhile
    after_pin     wait until the relay holds them; touch zero: Ray reports to the owners the registry and the relay;
                  have the relay give back, from a thread; wait, if need be, until the owners have the report (`lending`)

Elsewhere the lease depends on the process, and the registry says so; when the process ends in order, it is anchored then (`exits`).
A Ray Client has no references of its own, so it does none of this: its server's leases depend on the server.

What always holds: the counts of references are as before when `after_pin` returns or raises; a pin that can't be anchored is a pin
nevertheless; one loan at a time: a `dumps` in a signal's handler, in the middle of another, begins none.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _settings
from .._ray import actors, counts, workers
from .._ray.counts import Touch
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import RegistryUnavailableError
from ..registry.hooks import ClientPart
from ..registry.records import Identity
from ..registry.requests import Plan
from . import lending
from .exits import OrderlyEnd
from .holders import Holders
from .keeping import Keeping
from .loans import Lent, Loans
from .relays import FOR_CLIENTS, LENDER, MAY_HAVE_ENDED_S, Given, Relays
from .reports import Life, Reports

if TYPE_CHECKING:
    import ray

    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

_NOTE = "anchoring"  # of a plan: the loan that is under way
_LOAN_S = 3.0  # for so long a relay keeps a client's loan
_RELAY_PATIENCE_S = 10.0  # a relay that starts takes a second or two
_RELAY_ANSWERS_S = 1.0  # then the other one is asked, as Ray may take long to see that a node is gone
_RELAY_STARTS_S = 4.0
_RELAY_FRESH_S = 2.0  # one that has not answered for longer is asked whether it is there, first
_RELAY_PAUSE_S = 0.1
_DOWN_S = 5.0  # relays that could not be had are not waited for by each and every call
_ASKS_S = 5.0
_TRIES = 2  # each of some tenths of a second


class Loan(NamedTuple):
    """References on their way to the clients' relay.

    Attributes:
        relay: its number.
        key: under which it holds them.
        refs: them, each object once.
        sent: whether they have gone out; otherwise the relay was asked whether it is there. References that are arguments of a call
            that isn't answered can't be anchored.
        reply: its answer.
    """

    relay: int
    key: bytes
    refs: list[Ref]
    sent: bool
    reply: Any


class Borrower(ClientPart):
    """What anchoring adds to a session. All waits are in the thread that pins, and end by its deadline.

    Args:
        session: whose part it is.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._relays = Relays()
        self._holders = Holders(session)
        self._reports = Reports(time.monotonic)
        self._loans = Loans(session, self._relays, self._holders)
        self._keeping = Keeping(session, self._holders)
        self._exit = OrderlyEnd(session, self._relays, self._holders)
        self._lender = os.urandom(LENDER)
        # What follows is used only while this thread is alone in the process, and needs no lock.
        self._which = 0  # of the clients' relays, the one that is used
        self._answered_at: float | None = None  # when it last did
        self._down_until = 0.0
        self._lends_until = 0.0  # while a loan is under way

    def before_pin(self, registry: str, plan: Plan) -> None:
        """Send borrowed references to a relay, without waiting, where anchoring is possible, and safe."""
        if plan.borrowed and not self._session.connection.client:
            loan = self._begin(plan.borrowed, plan.deadline)
            if loan is not None:
                plan.notes[_NOTE] = loan

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """Leases that are pinned together depend on this process: each would need a loan and a touch of its own."""

    def after_pin(self, registry: str, plan: Plan, held: Identity | None, deadline: Deadline) -> None:
        """The registry holds the references: have their owners know it, or note that the lease depends on this process."""
        loan: Loan | None = plan.notes.pop(_NOTE, None)
        try:
            if held is None:
                if loan is not None and loan.sent:
                    self._relays.give(loan.relay, [loan.key])
            elif not self._session.connection.client:
                is_known = bool(plan.borrowed) and self._finish(loan, plan, registry, deadline)
                if plan.is_unsure and not is_known:
                    self._keeping.keep(registry, plan.lease, plan.refs)
        finally:
            if loan is not None:
                self._lends_until = 0.0

    def resolved(self, address: LeaseAddress, refs: Sequence[Ref]) -> None:
        """The objects' owners know the registry, while they don't know this process yet."""
        if not self._session.connection.client:
            self._reports.note_recent((ref.binary() for ref in actors.only_objects(refs)), address)

    def await_anchored(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> None:
        """See `ClientPart`."""
        if not self._holders.anchor_now(registry, leases, deadline) or not self._holders.anchors(registry, deadline):
            raise RegistryUnavailableError(
                f"what was resolved depends on registry {registry!r}, which has not anchored it within {deadline.timeout_s:g} s, or "
                "does not anchor at all: try again, or load without anchored=True"
            )

    def released(self, registry: str, leases: Sequence[bytes]) -> None:
        """Leases that have ended depend on nobody."""
        if len(self._exit.dependents):
            self._exit.dependents.released(registry, leases)

    def close(self) -> None:
        """See `ClientPart`."""
        self._exit.close()
        self._loans.close()
        self._keeping.close()

    # Lending.

    def _begin(self, refs: Sequence[Ref], deadline: Deadline | None) -> Loan | None:
        now = time.monotonic()
        if (
            self._session.sending
            or now < self._down_until
            or now < self._lends_until
            or not _settings.current().anchoring
            or not counts.can_anchor()
            or not workers.is_alone()
        ):
            return None
        found = {ref.binary(): ref for ref in actors.only_objects(refs)}
        if not found:
            return None
        for ref in self._exit.backlog():  # what this process pinned when it was not alone, or no relay was there
            found.setdefault(ref.binary(), ref)
        try:
            self._lends_until = now + _LOAN_S
            if self._answered_at is not None and now - self._answered_at > MAY_HAVE_ENDED_S:
                self._answered_at = None
                self._relays.forget(FOR_CLIENTS[self._which])
                self._reports.take_said()  # the relay of then may be gone, and can't confirm what has long arrived
            if self._answered_at is None or now - self._answered_at > _RELAY_FRESH_S:
                return self._knock(list(found.values()))
            return self._send(list(found.values()), deadline)
        except BaseException:
            self._lends_until = 0.0  # nobody gets to know of this loan; the relay ends it by itself
            raise

    def _knock(self, refs: list[Ref]) -> Loan:
        relay = FOR_CLIENTS[self._which]
        return Loan(relay, b"", refs, False, self._relays.hello(relay))

    def _send(self, refs: list[Ref], deadline: Deadline | None) -> Loan:
        key, relay = self._lender + os.urandom(LENDER), FOR_CLIENTS[self._which]
        said = self._reports.take_said()
        again = {ref.binary() for ref in refs}
        until = time.monotonic() + min(lending.CONFIRMED_S, math.inf if deadline is None else deadline.left_s() / 2)
        for life, ids in said.items():
            if not again.isdisjoint(ids):
                # If the relay held the same object once more, its owner would ask it about this loan only, and the relay would
                # forget to whom it gave the last one back.
                said[life] = self._unconfirmed(life, ids, until)
        given = [Given(life.mark, ids) for life, ids in said.items()]
        return Loan(relay, key, refs, True, self._relays.hold(relay, key, refs, given))

    def _await_relay(self, loan: Loan, deadline: Deadline) -> tuple[Loan, Life, list[bytes]] | None:
        """Wait until the relay holds the references, or else another one does; None if none can be had.

        With the loan come the relay's life, and the objects reported before of which the owners don't have the report yet.
        """
        until = min(deadline.at, time.monotonic() + _RELAY_PATIENCE_S)
        patience = _RELAY_STARTS_S if self._answered_at is None else _RELAY_ANSWERS_S
        first = loan.relay
        while True:
            left = max(min(until - time.monotonic(), patience), 0.001)
            answer = self._relays.answer(loan.relay, loan.reply, left)
            if answer is not None:
                self._answered_at = time.monotonic()
                if loan.sent:
                    mark, behind = answer
                    return loan, Life(loan.relay, mark), behind
                loan = self._send(loan.refs, deadline)
                continue
            if time.monotonic() + _RELAY_PAUSE_S > until:
                self._down_until = time.monotonic() + _DOWN_S
                return None
            time.sleep(_RELAY_PAUSE_S)
            self._which = (self._which + 1) % len(FOR_CLIENTS)
            # The other one may have to start, for which it has most of the time, also if the first is asked again in between.
            patience = _RELAY_ANSWERS_S if FOR_CLIENTS[self._which] == first else _RELAY_STARTS_S
            loan = self._knock(loan.refs)

    # Reporting.

    def _finish(self, loan: Loan | None, plan: Plan, registry: str, deadline: Deadline) -> bool:
        """Whether the owners of all that is borrowed know the registry, or will, by what was done here."""
        unreported = {ref.binary() for ref in actors.only_objects(plan.borrowed)}
        for tries_left in reversed(range(_TRIES)):
            held = None if loan is None else self._await_relay(loan, deadline)
            if held is None:
                break
            unreported, once_more = self._anchor(*held, plan, registry, deadline)
            if not once_more or not tries_left or deadline.is_over():
                break
            # The owners have read a report of the registry's after this process's. So all of it is done once more.
            self._holders.bring(registry, {plan.lease: plan.refs}, deadline)
            loan = self._send(held[0].refs, deadline)
        left = [ref for ref in actors.only_objects(plan.borrowed) if ref.binary() in unreported]
        left += actors.only_actors(plan.borrowed)
        if left and _settings.current().anchoring and counts.can_anchor():
            self._exit.note(left, registry, plan.lease)
        return not left

    def _anchor(
        self, loan: Loan, life: Life, behind: list[bytes], plan: Plan, registry: str, deadline: Deadline
    ) -> tuple[set[bytes], bool]:
        """Steps 2 and 3: the relay holds the loan, and the registry the lease.

        Returns:
            The objects whose owners don't have the report, and whether all is to be done once more.
        """
        mine = frozenset(ref.binary() for ref in actors.only_objects(plan.borrowed))
        ids = tuple(ref.binary() for ref in loan.refs)
        sources = {self._reports.recent(id_).source for id_ in ids}
        leases = {each.lease for each in sources if each is not None and each.registry == registry}
        lent = Lent(loan.relay, life.mark, loan.key, registry, plan.lease, tuple(leases), ids)
        # Actors are not lent, so that a lease that holds a borrowed one as well can't be anchored now.
        is_unsure = plan.is_unsure and not actors.only_actors(plan.borrowed)
        begun = lending.begun(ids, mine, deadline.at, time.monotonic(), is_behind=bool(behind), is_unsure=is_unsure)
        over = self._lend(loan, life, lent, begun, deadline)
        self._reports.acquaint(workers.owner_of(ref) for ref in loan.refs if ref.binary() in over.confirmed)
        self._reports.note_said(over.said, life)
        self._exit.dependents.anchored(id_ for id_ in ids if id_ not in over.unreported)
        return set(over.unreported), over.once_more

    def _lend(self, loan: Loan, life: Life, lent: Lent, begun: lending.Next, deadline: Deadline) -> lending.Over:
        """Do what `lending` says, until it is over."""
        refs = {ref.binary(): ref for ref in loan.refs}
        state, step = begun
        try:
            while not isinstance(step, lending.Over):
                match step:
                    case lending.Touch(ids):
                        seen = self._touch([refs[id_] for id_ in ids], lent.registry, lent.lease)
                        state, step = lending.touched(state, seen, time.monotonic())
                    case lending.Anchor(sources):
                        for source in sources:
                            soonest = Deadline(min(deadline.at, time.monotonic() + _ASKS_S), deadline.timeout_s)
                            self._holders.anchor_now(source.registry, [source.lease], soonest)
                        state, step = lending.asked(state, sources, time.monotonic())
                    case lending.Pause(seconds):
                        time.sleep(seconds)
                        state, step = lending.paused(state)
                    case lending.Look():
                        soonest = Deadline(state.until, deadline.timeout_s)
                        is_anchored = self._holders.unanchored(lent.registry, [lent.lease], soonest) == set()
                        state, step = lending.looked(state, time.monotonic(), is_anchored=is_anchored)
                    case lending.Return():
                        self._loans.return_later(lent)
                        state, step = lending.returned(
                            state, time.monotonic(), is_sent=self._is_sent_at_once(loan.refs)
                        )
                    case lending.Confirm(ids, until):
                        state, step = lending.confirmed(state, self._unconfirmed(life, list(ids), until))
        except BaseException:  # Ctrl-C: the owner may have the report already
            if not (state.is_returned or isinstance(step, lending.Confirm)):
                self._loans.return_later(lent)
            raise
        return step

    def _touch(self, refs: list[Ref], registry: str, lease: bytes) -> dict[bytes, lending.Seen]:
        """Step 2 of `relays`; what it has shown of each object."""
        seen: dict[bytes, lending.Seen] = {}
        with self._keeping.still:
            touched = counts.touch_zero(refs)
        for ref, state in zip(refs, touched, strict=True):
            at, source = self._reports.recent(ref.binary())
            if state is Touch.REPORTED:
                self._reports.note_recent([ref.binary()], None)
            matters = state is Touch.UNKNOWN and source is not None and self._matters(source, registry, lease)
            seen[ref.binary()] = lending.Seen(state, at, source, matters)
        return seen

    def _is_sent_at_once(self, refs: Sequence[Ref]) -> bool:
        """Whether Ray sends the report of `refs` at once, so that it arrives even if this process is killed right after.

        An owner asks for a report; Ray sends one, and sends the next only when the owner has asked again. So this is so for a single
        object, of an owner that has got all earlier reports. Another thing to be reported may be that this process has dropped others
        of the owner's objects.
        """
        if len(refs) > 1 or not self._reports.is_acquainted(workers.owner_of(refs[0])):
            return False
        lately = self._reports.lately()
        return len(counts.still_counted(lately)) == len(lately)

    def _unconfirmed(self, life: Life, ids: list[bytes], until: float) -> list[bytes]:
        """Wait until the owners of these objects have the report; those objects whose owners have not got it in time.

        Ray sends an owner one report at once, and further ones when it has asked for more; until then they would be lost with this
        process. A single report for an owner that has got all earlier ones needs no waiting.
        """
        pause_s = lending.FIRST_PAUSE_S
        while True:
            left_s = max(until - time.monotonic(), 0.001)
            ids = self._relays.unconfirmed(life.relay, Given(life.mark, ids), left_s)
            if not ids or time.monotonic() + pause_s > until:
                return ids
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, lending.LONGEST_PAUSE_S)

    def _matters(self, source: LeaseAddress, registry: str, lease: bytes) -> bool:
        """Whether the new lease is held by a shard that doesn't hold the one that the objects were resolved from."""
        if source.registry != registry:
            return True
        return not self._holders.of(registry, lease) <= self._holders.of(registry, source.lease)

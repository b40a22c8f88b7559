"""The client's part: how a process that pins references which it only borrows makes their owners know the registry.

Where nothing else in the process can be using references (a plain task, an actor without concurrency, a driver without threads of
its own), the pin is anchored within `dumps`, by the method of `relays`:

    before_pin    lend the references to the clients' relay, without waiting
    [the pin]     meanwhile
    after_pin     wait until the relay holds them; touch zero: Ray reports to the owners the registry and the relay;
                  have the relay give back, from a thread; wait, if need be, until the owners have the report

Elsewhere the lease depends on the process, and the registry says so; when the process ends in order, it is anchored then (`exits`).
A Ray Client has no references of its own, so it does none of this: its server's leases depend on the server.

What always holds: the counts of references are as before when `after_pin` returns or raises; a pin that can't be anchored is a pin
nevertheless; one loan at a time: a `dumps` in a signal's handler, in the middle of another, begins none.
"""

from __future__ import annotations

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
from .exits import OrderlyEnd
from .holders import Holders
from .loans import Lent, Loans
from .relays import FOR_CLIENTS, MAY_HAVE_ENDED_S, Given, Relays
from .reports import RECENT_S, Life, Reports

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
_REPORT_S = 5.0  # until an owner that will know of this process does, on a machine that is very busy
_BUSY_S = 0.1  # an argument of a call in flight, which may go on for long
_LONGEST_PAUSE_S = 0.05
_FIRST_PAUSE_S = 0.0005
_ASKS_S = 5.0
_CONFIRMED_S = 5.0  # an owner may have been stopped for a while


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
        self._exit = OrderlyEnd(session, self._relays, self._holders)
        # What follows is used only while this thread is alone in the process, and needs no lock.
        self._which = 0  # of the clients' relays, the one that is used
        self._answered_at: float | None = None  # when it last did
        self._down_until = 0.0
        self._lends_until = 0.0  # while a loan is under way

    def before_pin(self, registry: str, plan: Plan) -> None:
        """Send borrowed references to a relay, without waiting, where anchoring is possible, and safe."""
        if plan.borrowed and not self._session.connection.client:
            loan = self._begin(plan.borrowed)
            if loan is not None:
                plan.notes[_NOTE] = loan

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """Leases that are pinned together depend on this process: each would need a loan and a touch of its own."""

    def after_pin(self, registry: str, plan: Plan, held: Identity | None, deadline: Deadline) -> None:
        """The registry holds the references: have their owners know it, or note that the lease depends on this process."""
        loan: Loan | None = plan.notes.pop(_NOTE, None)
        if loan is not None:
            self._lends_until = 0.0
        if not plan.borrowed or self._session.connection.client:
            return
        if held is not None:
            self._finish(loan, plan.borrowed, registry, plan.lease, deadline)
        elif loan is not None and loan.sent:
            self._relays.give(loan.relay, [loan.key])

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

    # Lending.

    def _begin(self, refs: Sequence[Ref]) -> Loan | None:
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
            return self._send(list(found.values()))
        except BaseException:
            self._lends_until = 0.0  # nobody gets to know of this loan; the relay ends it by itself
            raise

    def _knock(self, refs: list[Ref]) -> Loan:
        relay = FOR_CLIENTS[self._which]
        return Loan(relay, b"", refs, False, self._relays.hello(relay))

    def _send(self, refs: list[Ref]) -> Loan:
        key, relay = os.urandom(8), FOR_CLIENTS[self._which]
        said = self._reports.take_said()
        again = {ref.binary() for ref in refs}
        for life, ids in said.items():
            if not again.isdisjoint(ids):
                # If the relay held the same object once more, its owner would ask it about this loan only, and the relay would
                # forget to whom it gave the last one back.
                said[life] = self._unconfirmed(life, ids, time.monotonic() + _CONFIRMED_S)
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
                loan = self._send(loan.refs)
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

    def _finish(self, loan: Loan | None, refs: Sequence[Ref], registry: str, lease: bytes, deadline: Deadline) -> None:
        held = None if loan is None else self._await_relay(loan, deadline)
        left = list(refs)
        if held is not None:
            unreported = self._anchor(*held, refs, registry, lease, deadline)
            left = [ref for ref in actors.only_objects(refs) if ref.binary() in unreported] + actors.only_actors(refs)
        if left and _settings.current().anchoring and counts.can_anchor():
            self._exit.note(left, registry, lease)

    def _anchor(
        self,
        loan: Loan,
        life: Life,
        behind: list[bytes],
        refs: Sequence[Ref],
        registry: str,
        lease: bytes,
        deadline: Deadline,
    ) -> set[bytes]:
        """Steps 2 and 3: the relay holds the loan, and the registry the lease; the objects whose owners don't have the report."""
        mine = {ref.binary() for ref in actors.only_objects(refs)}
        lent = Lent(loan.relay, loan.key, registry, lease, tuple(ref.binary() for ref in loan.refs))
        try:
            reported, unreported = self._report(loan.refs, mine, registry, lease, deadline)
        finally:
            self._loans.return_later(lent)  # also after Ctrl-C: the owner may have the report already
        if reported and (behind or not self._is_sent_at_once(loan.refs)):
            missing = self._unconfirmed(life, reported, min(deadline.at, time.monotonic() + _CONFIRMED_S))
            if missing:
                self._loans.ask_back(lent._replace(ids=tuple(missing)))
            unreported.update(missing)
            confirmed = set(reported).difference(missing)
            self._reports.acquaint(workers.owner_of(ref) for ref in loan.refs if ref.binary() in confirmed)
        else:
            self._reports.note_said(reported, life)
        if left := set(lent.ids).difference(reported):
            self._loans.look_later(lent._replace(ids=tuple(left)), life.mark)
        self._exit.dependents.anchored(id_ for id_ in lent.ids if id_ not in unreported)
        return unreported

    def _report(
        self, refs: list[Ref], mine: set[bytes], registry: str, lease: bytes, deadline: Deadline
    ) -> tuple[list[bytes], set[bytes]]:
        """Step 2 of `relays`: the objects of which Ray reports to the owners, and those of which it had to, and could not.

        It can't report to an owner that doesn't know this process. The owner will know it soon if this process anchored the same
        object, or resolved it, a moment ago; and it knows it at the end of this task if the task brought the reference. So the
        former are waited for, a little. If the owner's question arrives while the count is zero, Ray reports at once, and this
        process can't see that it did. The holders of `lease` (over the objects `mine`) can see it; then these objects count as
        reported.
        """
        pause_s = _FIRST_PAUSE_S
        asked: set[LeaseAddress] = set()
        reported: list[bytes] = []
        begun = time.monotonic()
        until = min(deadline.at, begun + _REPORT_S)
        while True:
            touched = counts.touch_zero(refs)
            now = time.monotonic()
            left: list[Ref] = []
            sources: dict[LeaseAddress, None] = {}
            soon = False
            for ref, state in zip(refs, touched, strict=True):
                at, source = self._reports.recent(ref.binary())
                if state is Touch.REPORTED:
                    reported.append(ref.binary())
                    self._reports.note_recent([ref.binary()], None)
                elif state is Touch.UNKNOWN and source is not None and not self._matters(source, registry, lease):
                    pass  # the shards that hold it now have held it before, and the owner knows them, or will, by itself
                else:
                    left.append(ref)
                    if state is Touch.UNKNOWN and source is not None and source not in asked:
                        sources[source] = None
                    if state is Touch.BUSY:
                        soon = soon or now - begun < _BUSY_S
                    else:
                        soon = soon or source in asked or (source is None and now - at < RECENT_S)
            refs = left
            if not left or not (sources or (soon and now < until)):
                break
            for source in sources:
                soonest = Deadline(min(deadline.at, now + _ASKS_S), deadline.timeout_s)
                self._holders.anchor_now(source.registry, [source.lease], soonest)
            if sources:
                asked.update(sources)
                until = min(deadline.at, time.monotonic() + _REPORT_S)
            elif pause_s < _LONGEST_PAUSE_S:
                time.sleep(pause_s)
                pause_s *= 2
            elif self._holders.unanchored(registry, [lease], Deadline(until, deadline.timeout_s)) == set():
                unseen = {ref.binary() for ref in refs}
                return [*reported, *(unseen & mine)], unseen - mine
            else:
                time.sleep(pause_s)
        return reported, {ref.binary() for ref in refs}

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
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = max(until - time.monotonic(), 0.001)
            ids = self._relays.unconfirmed(life.relay, Given(life.mark, ids), left_s)
            if not ids or time.monotonic() + pause_s > until:
                return ids
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _matters(self, source: LeaseAddress, registry: str, lease: bytes) -> bool:
        """Whether the new lease is held by a shard that doesn't hold the one that the objects were resolved from."""
        if source.registry != registry:
            return True
        return not self._holders.of(registry, lease) <= self._holders.of(registry, source.lease)

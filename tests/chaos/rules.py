"""What each failure may cost: the table of docs/lifetimes.md as rules over the ledger. Pure.

A verdict is one of the five figures, or none. What always holds: an answer is blamed only if nothing in the ledger can explain it;
what is excused because this release doesn't promise it yet is counted as such.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from .ledger import NEVER, Ledger, Payload, Process, Span

Figure = Literal["lost", "early", "leaked", "hung", "wrong"]
FIGURES: tuple[Figure, ...] = ("lost", "early", "leaked", "hung", "wrong")

HANG_MARGIN_S = 10.0  # calls may take so much longer than their timeout: a paused process, a busy machine
LATE_S = 3.0  # a lease may be there so long after its ttl: it is swept, and looked at, from time to time
MOURNED_S = (
    30.0  # a lease may outlive its owner so long: Ray has to notice the death of a node, and the registry to ask
)
HANDED_OVER_S = 5.0  # without anchoring: after so long without it, a borrower's hold has surely been handed over

_ENDS = ("LeaseReleasedError", "LeaseExpiredError", "LeaseUsedUpError", "OwnerGoneError")
_OWNER_DIED = ("OwnerDiedError", "OwnerGoneError")
_DATA_GONE = (
    "ObjectLostError",
    "ObjectFetchTimedOutError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectReconstructionFailedLineageEvictedError",
)
_GONE = (*_DATA_GONE, "OwnerDiedError", "ReferenceCountingAssertionError", "GetTimeoutError", "ObjectFreedError")


class Verdict(NamedTuple):
    """What is wrong with an answer.

    Attributes:
        figure: which of the five it counts for; None if it is in order.
        why: in words.
        excused: whether it would count, but for what this release doesn't promise.
    """

    figure: Figure | None = None
    why: str = ""
    excused: bool = False


FINE = Verdict()


class Answer(NamedTuple):
    """An answer to a call, as far as it is judged.

    Attributes:
        span: from the order to the answer.
        step: what was being done: `dumps`, `loads`, `get`, `release`, `renew`.
        error: class of the error, or empty.
        message: of it.
        slot: which object was being read.
        call_s: how long the longest call to safe_refs took.
        released: leases that a release ended.
    """

    span: Span
    step: str
    error: str = ""
    message: str = ""
    slot: int = 0
    call_s: float = 0.0
    released: int = 0


class Rules:
    """Judges answers by what the ledger knows.

    Args:
        ledger: what has happened.
        replicas: of each lease.
        anchored: owners know of all who hold, so that no hold depends on a process that may die, unless it was made while shards or
            relays were down. Without that, a hold may go with its borrower, and what a shard got from another with that one.
        timeout_s: that calls to safe_refs are given.
    """

    def __init__(self, ledger: Ledger, *, replicas: int = 2, anchored: bool = True, timeout_s: float = 30.0) -> None:
        self._ledger = ledger
        self._replicas = replicas
        self._anchored = anchored
        self._timeout_s = timeout_s

    def judge(self, payload: Payload, answer: Answer, held_since: float | None = None) -> Verdict:
        """What an answer about a payload is worth.

        Args:
            payload: which it was about.
            answer: the answer.
            held_since: when the live reference that was read had been resolved; None where it was resolved in this call.
        """
        with self._ledger.lock:
            if answer.call_s > self._timeout_s + HANG_MARGIN_S:
                return Verdict(
                    "hung", f"{answer.step} took {answer.call_s:.1f} s with a timeout of {self._timeout_s:g} s"
                )
            if answer.error == "WrongValueError":
                return Verdict("wrong", answer.message)
            if answer.step == "get":
                return self._judge_get(payload, answer, held_since)
            if not answer.error:
                return self._judge_success(payload, answer)
            return self._judge_error(payload, answer)

    def must_have_ended(self, payload: Payload, at: float) -> str:
        """Why a lease can't be live at a time any more; empty if it can."""
        with self._ledger.lock:
            if any(each.ended < at for each in payload.releases):
                return "it was released"
            if payload.expires_by + LATE_S < at:
                return "its ttl is over"
            if payload.uses is not None and sum(each.ended < at for each in payload.loads) >= payload.uses:
                return "it is used up"
            if all(each.owner.dying_at + MOURNED_S < at for each in payload.objects):
                return "its owners are dead"
            return ""

    def may_have_ended(self, payload: Payload, at: float) -> set[str]:
        """The errors that can say how a lease ended, if it has ended by a time."""
        found = set()
        if any(each.begun <= at for each in payload.releases):
            found.add("LeaseReleasedError")
        if payload.expires_from <= at:
            found.add("LeaseExpiredError")
        if payload.uses is not None and sum(each.begun <= at for each in payload.loads) >= payload.uses:
            found.add("LeaseUsedUpError")
        if all(each.owner.dying_at <= at for each in payload.objects):
            found.add("OwnerGoneError")
        return found

    def leaked(self, live: Iterable[int], at: float) -> list[tuple[int, str]]:
        """Of the payloads whose leases are listed as live, those that can't be, each with why."""
        found = []
        for number in live:
            payload = self._ledger.payloads.get(number)
            why = "nobody ordered it" if payload is None else self.must_have_ended(payload, at)
            if why:
                found.append((number, why))
        return found

    def _judge_success(self, payload: Payload, answer: Answer) -> Verdict:
        begun, ended = answer.span.begun, answer.span.ended
        if answer.step == "dumps":
            return FINE
        over = self.must_have_ended(payload, begun)
        if answer.step == "release":
            if answer.released and over:
                return Verdict("leaked", f"a release ended a lease although {over}")
            if not answer.released and not self.may_have_ended(payload, ended) - {"LeaseReleasedError"}:
                others = [each for each in payload.releases if each.begun <= ended]
                # The release itself is one of them. A shard that ended the lease and died before it said so leaves 0 for an answer.
                if len(others) < 2 and not self._registry_failing(answer.span):
                    return self._unless_weak(payload, answer, Verdict("early", "a release found the lease ended"))
            return FINE
        return Verdict("leaked", f"{answer.step} worked although {over}") if over else FINE

    def _judge_error(self, payload: Payload, answer: Answer) -> Verdict:
        said = f"{answer.step}: {answer.error}: {answer.message}"
        if answer.error == "RegistryUnavailableError":
            # One failure at a time never takes as long as the timeout; but it may have come upon another just over.
            return FINE if self._failing_throughout(answer.span) else Verdict("wrong", said)
        if answer.step in ("loads", "renew"):
            if answer.error in self.may_have_ended(payload, answer.span.ended):
                return FINE
            if answer.error in _ENDS:
                return Verdict("early", said)
            if answer.error == "LeaseLostError":
                return self._unless_weak(payload, answer, Verdict("lost", said))
        return self._unless_weak(payload, answer, Verdict("wrong", said))

    def _judge_get(self, payload: Payload, answer: Answer, held_since: float | None) -> Verdict:
        if not answer.error:
            over = "" if held_since is not None else self.must_have_ended(payload, answer.span.begun)
            return Verdict("leaked", f"loads worked although {over}") if over else FINE
        said = f"get: {answer.error}: {answer.message}"
        read, ended = payload.objects[answer.slot], answer.span.ended
        if answer.error in (*_OWNER_DIED, *_DATA_GONE) and read.owner.dying_at <= ended:
            return FINE
        lost = [at for node, at in self._ledger.lost_nodes.items() if at >= read.made_at and read.node in ("", node)]
        if answer.error in _DATA_GONE and any(at <= ended for at in lost):
            return FINE
        verdict = Verdict("lost" if answer.error in _GONE else "wrong", said)
        if read.owner.dying_at <= ended or any(at <= ended for at in lost):
            verdict = Verdict("wrong", f"{said}, for an object that is gone")
        return self._unless_weak(payload, answer, verdict)

    def _unless_weak(self, payload: Payload, answer: Answer, verdict: Verdict) -> Verdict:
        """The verdict, unless this release doesn't promise that the hold survives what has happened."""
        failures = self._failures_since(payload.since, answer.span.ended)
        if self._replicas == 1:
            return verdict._replace(figure=None, excused=True) if failures else verdict
        if self._anchored:
            return verdict
        # What a recovered shard holds depends on the one that it got it from; so two failures, one after the other, are too many.
        weak = failures >= self._replicas
        for maker, done in payload.makers():
            weak = weak or _died_soon_after(maker, done, answer.span.ended)
        return verdict._replace(figure=None, excused=True) if weak else verdict

    def _failures_since(self, since: float, until: float) -> int:
        return sum(each.ended >= since and each.begun <= until for each in self._ledger.shard_failures)

    def _registry_failing(self, span: Span) -> bool:
        failures = [*self._ledger.shard_failures, *self._ledger.shard_pauses]
        return any(each.begun <= span.ended and each.ended >= span.begun for each in failures)

    def _failing_throughout(self, span: Span) -> bool:
        failures = [*self._ledger.shard_failures, *self._ledger.shard_pauses]
        return any(each.begun <= span.begun + 5 and each.ended >= span.ended - 5 for each in failures)


def _died_soon_after(maker: Process, done: float, until: float) -> bool:
    if done == NEVER:
        return True
    return maker.dying_at <= min(done + HANDED_OVER_S, until)

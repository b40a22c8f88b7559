"""What each failure may cost: the table of docs/lifetimes.md as rules over the ledger. Pure.

A verdict is one of the five figures, or none. What always holds: an answer is blamed only if nothing in the ledger can explain it;
what is excused because it is not promised is counted as such, by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from .ledger import DURABLE_TIMEOUT_S, NEVER, Ledger, Payload, Span
from .makers import HANDED_OVER_S, died_soon_after, owners_died

Figure = Literal["lost", "early", "leaked", "hung", "wrong"]
FIGURES: tuple[Figure, ...] = ("lost", "early", "leaked", "hung", "wrong")

HANG_MARGIN_S = 10.0  # calls may take so much longer than their timeout: a paused process, a busy machine
LATE_S = 3.0  # a lease may be there so long after its ttl: it is swept, and looked at, from time to time
MOURNED_S = (
    30.0  # a lease may outlive its owner so long: Ray has to notice the death of a node, and the registry to ask
)
UNDER_WAY_S = 2.0  # what nobody waited for may be under way for so long, on a busy machine
ANCHORED_S = 1.0  # after a load, its references survive the registry's death
NOTICED_S = 15.0  # the registry may so long believe that copies on a dead node are there

_ENDS = ("LeaseReleasedError", "LeaseExpiredError", "LeaseUsedUpError", "OwnerGoneError")
_OWNER_DIED = ("OwnerDiedError", "OwnerGoneError")
_DATA_GONE = (
    "ObjectLostError",
    "ObjectFetchTimedOutError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectReconstructionFailedLineageEvictedError",
)
_ACTOR_GONE = ("ActorDiedError", "ActorUnavailableError")
# Besides, once it is gone: a Ray Client has a task ask for the actor's methods, and that fails.
_NO_METHODS = "RayTaskError(RaySystemError)"
_GONE = (
    *_DATA_GONE,
    *_ACTOR_GONE,
    *("OwnerDiedError", "ReferenceCountingAssertionError", "GetTimeoutError", "ObjectFreedError"),
)

# What may be excused, by name. The first two without replicas only, the last two without anchoring only.
ONLY_SHARD = "a lease whose only shard crashed"
ONLY_COPY = "a durable lease whose only copies died with a node"
JUST_LOADED = "references loaded less than a second before the only shard that held their objects crashed"
UNANCHORED = "references of a borrower that was not anchored"
TWO_SHARDS = "leases after the crashes of two shards"


class Verdict(NamedTuple):
    """What is wrong with an answer.

    Attributes:
        figure: which of the five it counts for; None if it is in order.
        why: in words.
        excused: if it would count, but for something that is not promised: the name of that.
    """

    figure: Figure | None = None
    why: str = ""
    excused: str = ""


FINE = Verdict()


class Answer(NamedTuple):
    """An answer to a call, as far as it is judged.

    Attributes:
        span: from the order to the answer.
        step: what was being done: `put`, `dumps`, `flush`, `loads`, `get`, `release`, `renew`, `fork`.
        error: class of the error, or empty.
        message: of it.
        slot: which object was being read.
        call_s: how long the longest call to safe_refs took.
        released: leases that a release ended.
        leaving: whether the process that answers was leaving the cluster.
    """

    span: Span
    step: str
    error: str = ""
    message: str = ""
    slot: int = 0
    call_s: float = 0.0
    released: int = 0
    leaving: bool = False


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
        self.ledger = ledger
        self._replicas = replicas
        self._anchored = anchored
        self._timeout_s = timeout_s

    def judge(self, payload: Payload, answer: Answer, held: Span | None = None) -> Verdict:
        """What an answer about a payload is worth.

        Args:
            payload: which it was about.
            answer: the answer.
            held: when the live reference that was read had been resolved; None where it was resolved in this call.
        """
        with self.ledger.lock:
            timeout_s = DURABLE_TIMEOUT_S if payload.durable and answer.step == "dumps" else self._timeout_s
            if answer.call_s > timeout_s + HANG_MARGIN_S:
                return Verdict("hung", f"{answer.step} took {answer.call_s:.1f} s with a timeout of {timeout_s:g} s")
            if answer.error == "HungForkError":
                return Verdict("hung", answer.message)
            if answer.error in ("WrongValueError", "WrongForkError"):
                return Verdict("wrong", answer.message)
            if answer.leaving and answer.error and answer.step in ("put", "get"):
                return FINE  # plain calls of Ray, in a process that has left
            if answer.leaving and answer.error == "RegistryUnavailableError":
                return FINE
            if answer.step == "get":
                return self._judge_get(payload, answer, held)
            if not answer.error:
                return self._judge_success(payload, answer)
            return self._judge_error(payload, answer)

    def must_have_ended(self, payload: Payload, at: float) -> str:
        """Why a lease can't be live at a time any more; empty if it can."""
        with self.ledger.lock:
            if any(each.ended < at for each in payload.releases):
                return "it was released"
            if payload.expires_by + self._late_s(payload) + LATE_S < at:
                return "its ttl is over"
            if payload.uses is not None and sum(each.ended < at for each in payload.loads) >= payload.uses:
                return "it is used up"
            if all(each.owner.dead_at + MOURNED_S < at for each in payload.objects):
                return "its owners are dead"
            return ""

    def _late_s(self, payload: Payload) -> float:
        """How much later than its `dumps` returned the registry may have got a payload that its maker did not wait for."""
        if payload.waited or payload.flushed_at < NEVER:
            return 0.0
        there = payload.made.ended
        for each in sorted(self._troubles(), key=lambda span: span.begun):
            if payload.made.begun <= each.ended and each.begun <= there:
                there = max(there, each.ended)
        return there - payload.made.ended if there > payload.made.ended else 0.0

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
            payload = self.ledger.payloads.get(number)
            why = "nobody ordered it" if payload is None else self.must_have_ended(payload, at)
            if why:
                found.append((number, why))
        return found

    def _judge_success(self, payload: Payload, answer: Answer) -> Verdict:
        begun, ended = answer.span.begun, answer.span.ended
        if answer.step in ("put", "dumps", "flush", "fork"):
            return FINE
        over = self.must_have_ended(payload, begun)
        if answer.step == "release":
            if answer.released and over:
                return Verdict("leaked", f"a release ended a lease although {over}")
            if not answer.released and not self.may_have_ended(payload, ended) - {"LeaseReleasedError"}:
                others = [each for each in payload.releases if each.begun <= ended]
                # The release itself is one of them. A shard that ended the lease and died before it said so leaves 0 for an answer.
                # And one that comes before a pin that nobody waited for has nothing to end; the pin is refused then, or never came.
                is_late = not payload.waited and begun < min(payload.flushed_at, payload.made.ended + UNDER_WAY_S)
                is_late = is_late or self._may_be_unacknowledged(payload, answer.span)
                if len(others) < 2 and not is_late and not self._registry_failing(answer.span):
                    return self._unless_lost(payload, answer, Verdict("early", "a release found the lease ended"))
            return FINE
        return Verdict("leaked", f"{answer.step} worked although {over}") if over else FINE

    def _judge_error(self, payload: Payload, answer: Answer) -> Verdict:
        said = f"{answer.step}: {answer.error}: {answer.message}"
        if answer.error == "RegistryUnavailableError":
            # One failure at a time never takes as long as the timeout; but it may have come upon another just over.
            return FINE if self._failing_throughout(answer.span) else Verdict("wrong", said)
        if answer.step == "dumps" and answer.error in _OWNER_DIED and owners_died(payload, answer.span.ended):
            return FINE  # it could not be copied
        if answer.step == "dumps" and answer.error == "OwnerGoneError" and self._only_copy_gone(payload, answer):
            return Verdict(None, said, ONLY_COPY)
        if answer.step in ("loads", "renew"):
            if answer.error in self.may_have_ended(payload, answer.span.ended):
                return FINE
            # With one replica each shard has generations of its own, and a maker that doesn't wait names one that it has heard of.
            never = ("LeaseNotFoundError", "LeaseLostError") if self._replicas == 1 else ("LeaseNotFoundError",)
            if answer.error in never and self._may_be_unacknowledged(payload, answer.span):
                return FINE
            if answer.error in _ENDS:
                gone = answer.error == "OwnerGoneError" and self._only_copy_gone(payload, answer)
                return Verdict(None, said, ONLY_COPY) if gone else Verdict("early", said)
            if answer.error == "LeaseLostError":
                return self._unless_lost(payload, answer, Verdict("lost", said))
        return self._unless_lost(payload, answer, Verdict("wrong", said))

    def _judge_get(self, payload: Payload, answer: Answer, held: Span | None) -> Verdict:
        if not answer.error:
            over = "" if held is not None else self.must_have_ended(payload, answer.span.begun)
            return Verdict("leaked", f"loads worked although {over}") if over else FINE
        said = f"get: {answer.error}: {answer.message}"
        read, ended = payload.objects[answer.slot], answer.span.ended
        gone = (*_OWNER_DIED, *_DATA_GONE, *((*_ACTOR_GONE, _NO_METHODS) if read.is_actor else ()))
        if answer.error in gone and read.owner.dying_at <= ended:
            return FINE
        since = read.made_at
        if payload.durable:
            # A reference is to one replica's copy. Whoever loads again gets the other one's.
            since = (held.begun if held else answer.span.begun) - NOTICED_S
        is_node_lost = any(
            since <= lost.ended and lost.begun <= ended and read.node in ("", node)
            for node, lost in self.ledger.lost_nodes.items()
        )
        gone_with_node = gone if payload.durable else (*_DATA_GONE, *(_ACTOR_GONE if read.is_actor else ()))
        if answer.error in gone_with_node and is_node_lost:
            return FINE
        verdict = Verdict("lost" if answer.error in _GONE else "wrong", said)
        if read.owner.dying_at <= ended or is_node_lost:
            verdict = Verdict("wrong", f"{said}, for an object that is gone")
        return self._unless_lost(payload, answer, verdict, held)

    def _unless_lost(self, payload: Payload, answer: Answer, verdict: Verdict, held: Span | None = None) -> Verdict:
        """The verdict, unless the lease went with the process that it depended on, or with something that is excused by name."""
        says_lost = answer.error == "LeaseLostError" or (verdict.figure == "early" and not answer.error)
        is_gone = says_lost or (answer.step == "get" and answer.error in _GONE) or _is_copy_failed(payload, answer)
        if is_gone and any(self._went_with_its_maker(each, answer, held) for each in _read(payload, answer)):
            return FINE
        name = self._excuse(payload, answer, says_lost, held)
        return verdict._replace(figure=None, excused=name) if name else verdict

    def _excuse(self, payload: Payload, answer: Answer, says_lost: bool, held: Span | None) -> str:
        """The name of what is not promised here, and explains the answer; empty if nothing does."""
        until = answer.span.ended
        if self._replicas == 1:
            if says_lost and self._failures_since(payload.made.begun, until):
                return ONLY_SHARD
            is_copy_gone = says_lost or (answer.step == "get" and answer.error in _GONE)
            if is_copy_gone and held is None and self._only_copy_gone(payload, answer):
                return ONLY_COPY
        # Each replica of a durable lease holds copies of its own.
        is_copy_failed, read = _is_copy_failed(payload, answer), _read(payload, answer)
        is_held_once = self._replicas == 1 or any(
            each.owner is self.ledger.copy_owner for of in read for each in of.objects
        )
        is_gone = answer.step == "get" and answer.error in _GONE
        if read and is_held_once and (is_gone or is_copy_failed) and self._just_loaded(payload, answer, held):
            return JUST_LOADED
        if self._anchored:
            return ""
        # What a recovered shard holds depends on the one that it got it from; so two failures, one after the other, are too many.
        if self._failures_since(payload.since, until) >= self._replicas:
            return TWO_SHARDS
        died_soon = any(died_soon_after(each, until) for each in payload.borrowed())
        return UNANCHORED if died_soon else ""

    def _went_with_its_maker(self, payload: Payload, answer: Answer, held: Span | None) -> bool:
        """Whether a maker on the way was killed while a lease depended on it, and whoever reads did not yet hold the reference."""
        until = answer.span.ended
        for each in payload.depending():
            died = each.maker.dying_at
            if each.maker.left or died > until or (held is not None and held.begun + ANCHORED_S < died):
                continue
            had = any(
                each.maker.keeps[stamp] > 0 or each.maker.held_until.get(stamp, 0.0) + HANDED_OVER_S >= died
                for stamp in payload.stamps
            )
            if had or died_soon_after(each, until):
                return True
        return False

    def _may_be_unacknowledged(self, payload: Payload, span: Span) -> bool:
        """Whether its maker did not wait, and the registry may not have the pin: the maker died, or something slows it down."""
        if payload.waited or payload.flushed_at <= span.begun:
            return False
        if payload.maker.dying_at <= span.ended:
            return True
        return any(each.begun <= span.ended and each.ended >= payload.made.begun for each in self._troubles())

    def _troubles(self) -> list[Span]:
        """What slows pins down."""
        return [*self.ledger.shard_failures, *self.ledger.shard_pauses, *self.ledger.troubles]

    def _just_loaded(self, payload: Payload, answer: Answer, held: Span | None) -> bool:
        """Whether a shard crashed before the reference that was read, or one that it was made from, was anchored."""
        moments = [held or answer.span, *(each.made for each in payload.borrowed())]
        return any(
            moment.begun <= failure.ended and failure.begun <= moment.ended + ANCHORED_S
            for moment in moments
            for failure in self.ledger.shard_failures
        )

    def _only_copy_gone(self, payload: Payload, answer: Answer) -> bool:
        """Whether a copy that it holds, or that a durable one held which it was forwarded from, had no other."""
        if self._replicas > 1 or all(each.owner is not self.ledger.copy_owner for each in payload.objects):
            return False
        nodes = self.ledger.lost_nodes.values()
        return any(payload.made.begun <= each.ended and each.begun <= answer.span.ended for each in nodes)

    def _failures_since(self, since: float, until: float) -> int:
        return sum(each.ended >= since and each.begun <= until for each in self.ledger.shard_failures)

    def _registry_failing(self, span: Span) -> bool:
        failures = [*self.ledger.shard_failures, *self.ledger.shard_pauses]
        return any(each.begun <= span.ended and each.ended >= span.begun for each in failures)

    def _failing_throughout(self, span: Span) -> bool:
        failures = [*self.ledger.shard_failures, *self.ledger.shard_pauses]
        return any(each.begun <= span.begun + 5 and each.ended >= span.ended - 5 for each in failures)


def _is_copy_failed(payload: Payload, answer: Answer) -> bool:
    return payload.durable and answer.step == "dumps" and answer.error == "OwnerGoneError"


def _read(payload: Payload, answer: Answer) -> Sequence[Payload]:
    return payload.sources if _is_copy_failed(payload, answer) else (payload,)

"""Both shards: the real `LeaseTable`, `Rules` and steps of a call, whose behaviour is looked up, call by call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from safe_refs.config import Limits
from safe_refs.errors import (
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    SafeRefsError,
)
from safe_refs.registry import steps
from safe_refs.registry.hooks import Began, Parts, ShardPart
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Terms
from safe_refs.registry.wire import (
    GiveBackRow,
    Granted,
    NotNow,
    Overdue,
    PinRow,
    Refused,
    ReleaseCall,
    RenewCall,
    ResolveRow,
)
from safe_refs.replication.records import EndRecord, Records, end_record_of, record_of
from safe_refs.replication.rules import Rules

from .model import FIRST, LEASES, ME, NAMES, TOPOLOGY, Interned

# What shards answer, as values that can be compared: errors are only equal to themselves.
NOT_FOUND = LeaseNotFoundError.of("", "r")
LOST = LeaseLostError.of("", "r", 1, 2)
ENDED = LeaseReleasedError.of("", "r", 0.0, "somebody")
EXPIRED = LeaseExpiredError.of("", "r", 0.0, FIRST)
OWN = LeaseReleasedError.of("", "r", 0.0, "the very use that asks")


class Clock:
    """A shard's: it stands still but for the moments in which a first ttl passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _wall() -> float:
    return 0.0


class Part(ShardPart):
    """A shard's part: all that it does with an event is what `Rules` says. It also plays the anchoring.

    Attributes:
        rules: the real ones.
        depends: the leases that depend on their maker ("maker"), or that are doubtful, as it is dead: what they hold is still there
            ("safe") or not ("gone"), which the shard doesn't know yet.
        asked: whom to ask for what was lost.
    """

    def __init__(self, rules: Rules[str]) -> None:
        self.rules = rules
        self.depends: dict[bytes, str] = {}
        self.asked: dict[int, list[bytes]] = {}

    def pinned(self, lease: bytes, began: Began) -> None:
        self.rules.pinned(lease, from_shard=began.from_shard)
        if began.borrower:
            self.depends.setdefault(lease, "maker")

    def changed(self, leases: Sequence[bytes]) -> None:
        self.rules.changed(leases)

    def ended(self, lease: bytes, items: Sequence[Any]) -> None:
        self.depends.pop(lease, None)

    def lost(self, leases: Sequence[bytes]) -> None:
        self.asked = self.rules.lost(leases)

    def doubts(self, row: ResolveRow) -> NotNow | None:
        return NotNow.DOUBTFUL if self.depends.get(row.lease) in ("safe", "gone") else None

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused | None:
        return self.rules.excuse(lease, use, refusal)


class Shown(NamedTuple):
    """What can be seen of a shard: all of its state that its later behaviour depends on.

    Attributes:
        leases: for each, None, or ("live", uses so far, uses given back, renewals, ttl, seconds left), or ("ended", how, uses, what
            may make that void, whether it is `Overdue`), or ("lost",).
        epoch: of its table.
        news: owed to the other, oldest first.
        recovering: the other has not answered it yet.
        depends: see `Part`, for each lease.
        rest: what else its `Rules` remember.
    """

    leases: tuple[Any, ...]
    epoch: bytes
    news: tuple[bytes, ...]
    recovering: bool
    depends: tuple[str, ...]
    rest: tuple[Any, ...]


class Shards:
    """Both shards' behaviour, looked up: state and call give the next state and the answer.

    States are numbers, of which 0 is a shard that is down. Calls are numbers too, of tuples: what, and its arguments.

    Each shard has a clock of its own. When the first ttl passes it goes on by that much, which is so little that it takes nothing
    away from what a renewal gives: 10 s and FIRST is 10 s. So what is left to a lease is FIRST or some ten seconds, and there are few
    states; ages are left out.
    """

    def __init__(
        self,
        table: type[LeaseTable[str]],
        rules: type[Rules[str]],
        uses: tuple[int | None, ...],
        limits: Limits,
        ttl: bool = False,
    ) -> None:
        self._table_class = table
        self._rules_class = rules
        self._uses = uses
        self._limits = limits
        self._ttl = FIRST if ttl else None
        self._states: Interned[tuple[int, Shown | None]] = Interned()
        self._states((-1, None))  # DOWN
        self._frozen: list[tuple[LeaseTable[str], Part] | None] = [None]
        self._done: dict[tuple[int, int], tuple[int, Any]] = {}
        self.calls: Interned[tuple[Any, ...]] = Interned()
        self.shown: list[Shown] = [Shown((None, None), b"", (), True, ("", ""), ())]

    @property
    def count(self) -> int:
        """How many states of a single shard turned up, and how many different calls were carried out in them."""
        return len(self._done)

    def start(self, shard: int, epoch: int, restarted: bool) -> int:
        """A shard begins, empty."""
        clock = Clock()
        table = self._table_class(
            registry="r",
            identity=identity_of(epoch),
            clock=clock,
            wall=_wall,
            limits=self._limits,
            alone=False,
        )
        part = Part(self._rules_class(shard, TOPOLOGY, table, restarted, clock))
        table._gone = part.ended
        return self._freeze(table, part)

    def do(self, state: int, call: int) -> tuple[int, Any]:
        """Carry out a call: the next state, and the answer."""
        key = (state, call)
        done = self._done.get(key)
        if done is None:
            table, part = copy.deepcopy(self._frozen[state])  # type: ignore[misc] # it is up
            answer = _plain(self._carry_out(table, part, part.rules, *self.calls.values[call]))
            done = self._done[key] = self._freeze(table, part), answer
        return done

    def _freeze(self, table: LeaseTable[str], part: Part) -> int:
        rules = part.rules
        leases: list[Any] = []
        for lease in LEASES:
            if (record := record_of(table, lease)) is not None:
                live = record.used, record.returned, record.renewals, record.terms.ttl, record.left_s
                leases.append(("live", *live))
            elif (end := end_record_of(table, lease)) is not None:
                is_overdue = isinstance(rules.excuse(lease, b"", EXPIRED), Overdue) and end.how == "expired"
                leases.append(("ended", end.how, frozenset(end.uses), _ageless(end).revocable, is_overdue))
            else:
                leases.append(("lost",) if lease in table.tombstones._lost else None)
        news = tuple(rules._news.get(1 - rules.shard, ()))
        recovering = rules._is_recovering  # not what it says of itself, which is to be checked
        rest = (frozenset(rules._ignorant), frozenset(rules._given_up), frozenset(rules._returned))
        depends = tuple(part.depends.get(lease, "") for lease in LEASES)
        shown = Shown(tuple(leases), table.identity.epoch, news, recovering, depends, rest)
        number = self._states((rules.shard, shown))
        if number == len(self._frozen):
            self._frozen.append((table, part))
            self.shown.append(shown)
        return number

    def _carry_out(self, table: LeaseTable[str], part: Part, rules: Rules[str], what: str, *given: Any) -> Any:
        """One call, as the actor does it."""
        parts, other = Parts([part]), 1 - rules.shard
        if what == "pin":
            number, borrower = given
            row = PinRow(LEASES[number], 1, Terms(ttl=self._ttl, uses=self._uses[number]), ME, borrower, {})
            return steps.pin(table, parts, row, [NAMES[number]], [b"owner"])
        if what == "missed":
            rules.missed([LEASES[given[0]]], [given[1]])
            return True
        if what == "release":
            return steps.release(table, parts, ReleaseCall(1, [([LEASES[given[0]]], ME)]))
        if what == "resolve":
            number, epoch, take, use = given
            asked = ResolveRow(LEASES[number], identity_of(epoch), None, take, ME, use)
            return parts.doubts(asked) or steps.resolve(table, parts, asked)
        if what == "back":
            number, take, use = given
            returned = GiveBackRow(LEASES[number], use, take, 1, ME, b"")
            return steps.give_back(table, parts, returned, [NAMES[number]], [b"owner"])
        if what == "renew":
            number, epoch, ttl, lengthens, decided = given
            return steps.renew(table, parts, RenewCall(1, LEASES[number], identity_of(epoch), ttl, lengthens, decided))
        if what == "time passes":
            assert isinstance(table.clock, Clock)
            table.clock.now += FIRST
            return table.expire()
        if what == "send news":
            taken = rules.take_news(other, 10)
            generation = table.identity.generation
            return self.calls(("receive", _Packed(rules.records(taken)), generation)), tuple(taken)
        if what == "give back":
            return rules.give_back(other, given[0])
        if what == "receive":
            return _receive(parts, rules, given[0].records, identity_of(given[1]))
        if what == "share":
            leases, complete = rules.shared_with(other)
            records = rules.records(leases)
            rules.shared_all(other)
            return self.calls(("answered", _Packed(records), complete))
        if what == "answered":
            _receive(parts, rules, given[0].records, None)
            rules.answered(other, given[1])
            return None if rules.unheard else _recovered(rules)
        if what == "give up":
            return _recovered(rules)
        if what == "new epoch":
            return rules.end_recovery(identity_of(given[0]))
        if what == "maker dies":
            part.depends[LEASES[given[0]]] = given[1]
            return None
        if what == "owner answers":  # it knows the shard now, and what was passed on is there, or not
            part.asked = {}
            if part.depends.pop(LEASES[given[0]]) == "gone":
                table.lose(LEASES[given[0]], "its maker is dead")
                parts.lost([LEASES[given[0]]])
            return sorted(part.asked)
        raise ValueError(what)


def _receive(parts: Parts, rules: Rules[str], records: Records, identity: Identity | None) -> None:
    for lease in rules.received(records, identity):
        parts.pinned(lease, Began(from_shard=True))


def _recovered(rules: Rules[str]) -> bool:
    """All have answered, or are not waited for: whether a new epoch has to begin before the shard answers for itself."""
    lossy = rules.recovered()
    if not lossy:
        rules.end_recovery(None)
    return lossy


def _plain(answer: Any) -> Any:
    """An answer as a value that can be compared and hashed."""
    if isinstance(answer, list):
        return tuple(answer)
    if isinstance(answer, Granted):
        return Granted(OWN)
    if isinstance(answer, Overdue):
        return Overdue(EXPIRED)
    if isinstance(answer, SafeRefsError):
        known = {LeaseNotFoundError: NOT_FOUND, LeaseLostError: LOST, LeaseExpiredError: EXPIRED}
        return known.get(type(answer), ENDED)
    return answer


def _ageless(end: EndRecord) -> EndRecord:
    """An end record without what only time changes."""
    revocable = end.revocable
    if revocable is not None:
        left_s = None if revocable.left_s is None else max(revocable.left_s, 0.0)
        revocable = revocable._replace(age_s=0.0, left_s=left_s)
    return end._replace(ago_s=0.0, revocable=revocable)


class _Packed:
    """Records as a value that can be compared and hashed."""

    def __init__(self, records: Records) -> None:
        self.records = records
        ends = tuple(_ageless(end._replace(uses=tuple(sorted(end.uses)))) for end in records.ended)
        self._key = (tuple(record._replace(age_s=0.0) for record in records.live), ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Packed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        live = [NAMES[LEASES.index(record.lease)] for record in self.records.live]
        ended = [NAMES[LEASES.index(end.lease)] for end in self.records.ended]
        return f"(live: {''.join(live) or '-'}, ended: {''.join(ended) or '-'})"


def identity_of(epoch: int) -> Identity:
    return Identity(epoch.to_bytes(8, "big"), epoch)

"""What a state of the model is made of: values, each replaced as a whole."""

from __future__ import annotations

from typing import NamedTuple

from safe_refs.anchoring.lending import Lending, Step
from safe_refs.envelope import LeaseAddress

OBJECT = b"object"
SOURCE = LeaseAddress("default", b"cluster", b"epoch", 1, b"source")
OWNER, REGISTRY, RELAY = "owner", "registry", "relay"
BORROWERS = ("one", "other")


class Scope(NamedTuple):
    """What may happen.

    Attributes:
        begins: for each borrower how it got the object: "known" to the owner; "loaded" from a lease a moment ago, so that the owner
            does not know it yet; or in a "task" that goes on.
        busy: the first one has the object in a call in flight, for some time.
        kills: how many borrowers may be killed.
        relay_dies: the relay may be killed, once.
        slow: the relay may drop a loan that is not asked back for long.
        released: leases may be released while loans are under way; otherwise when those are over.
        silent: the owner may take longer than a loan waits. Otherwise what is under way has arrived by then.
        looks: a borrower looks later what the relay remembers. Not so in the old rules.
        makes_sure: a borrower makes sure that the owner knows a registry which had let go of the object just before.
        asks_back: it has the registry give back what the relay could not. Without, the search finds what that is for.
        confirms: it waits until the owners have the reports where that is needed.
    """

    begins: tuple[str, ...] = ("known",)
    busy: bool = False
    kills: int = 0
    relay_dies: bool = False
    slow: bool = False
    released: bool = False
    silent: bool = False
    looks: bool = True
    asks_back: bool = True
    confirms: bool = True
    makes_sure: bool = True


class Entry(NamedTuple):
    """What a process knows of the object: its count, to whom it passed it, and whether the owner has asked it."""

    held: int = 0
    passed: frozenset[str] = frozenset()
    is_asked: bool = False


class Message(NamedTuple):
    """Something under way. `what` is of `ray` or `world`; `names` are processes that it tells of."""

    what: str
    source: str
    target: str
    names: frozenset[str] = frozenset()


class Borrower(NamedTuple):
    """A borrower: where its `dumps` is, and what it has still to do.

    Attributes:
        stage: "lends", "lent" (the relay has answered) or "no relay", "loan" (`lending` goes on), "over", "dropped" or "dead".
        is_pinned: the registry has acknowledged the lease.
        is_unsure: and had let go of the object just before.
        tries: how often it may still do all of it once more.
        loan, step: the state of its loan, and what is to be done next.
        now: its clock.
        is_busy: a call in flight has the object.
        in_task: it is in the task that brought the object.
        depends: its `dumps` has said that the lease depends on it.
        looks: so often it will still look, later, whether the relay has forgotten.
        has_asked: it has the registry give back, after the last look.
        owes_give: the relay's answer to `give` is not there yet.
        is_missed: the relay did not give back.
        polled: the owner waits for its next report; otherwise one is under way.
        waiting: what it has to report when it is polled again.
        life: of the relay that it lent to.
    """

    stage: str = "lends"
    is_pinned: bool = False
    is_unsure: bool = False
    tries: int = 1
    loan: Lending | None = None
    step: Step | None = None
    now: float = 0.0
    is_busy: bool = False
    in_task: bool = False
    depends: bool = False
    looks: int = 0
    has_asked: bool = False
    owes_give: bool = False
    is_missed: bool = False
    polled: bool = True
    waiting: tuple[frozenset[str], ...] = ()
    life: int = 0


class World(NamedTuple):
    """A state.

    Attributes:
        entries: of the processes, by their places in `Scope.names`.
        known: whom the owner takes for holders.
        leases: what the registry holds: "source", and each borrower's name.
        messages: what is under way; between the same two in the order in which it was sent.
        borrowers: the borrowers.
        life: the relay's.
        has_let_go: the registry has had the object, and let go of it.
        loans: whose the relay holds.
        lent: who has lent it the object.
        kills, relay_dies: how many deaths are left.
        excused: something may be left at the relay: a borrower was killed before it had looked, or no lease held the object by then.
        is_freed: the object is gone.
    """

    entries: tuple[tuple[str, Entry], ...]
    known: frozenset[str]
    leases: frozenset[str]
    messages: tuple[Message, ...]
    borrowers: tuple[Borrower, ...]
    life: int
    loans: frozenset[str]
    lent: frozenset[str]
    kills: int
    relay_dies: bool
    excused: bool = False
    is_freed: bool = False
    has_let_go: bool = False

    def entry(self, name: str) -> Entry:
        """What a process knows."""
        return dict(self.entries).get(name, Entry())

    def with_entry(self, name: str, entry: Entry) -> World:
        """The same, with that entry; one that Ray deletes is not there."""
        found = dict(self.entries)
        if entry.held == 0 and not entry.passed:
            found.pop(name, None)
        else:
            found[name] = entry
        return self._replace(entries=tuple(sorted(found.items())))

    def borrower(self, name: str) -> Borrower:
        """A borrower."""
        return self.borrowers[BORROWERS.index(name)]

    def with_borrower(self, name: str, borrower: Borrower) -> World:
        """The same, with that borrower."""
        place = BORROWERS.index(name)
        return self._replace(borrowers=(*self.borrowers[:place], borrower, *self.borrowers[place + 1 :]))

    def sent(self, *messages: Message) -> World:
        """The same, with these under way."""
        return self._replace(messages=tuple(sorted((*self.messages, *messages), key=lambda each: each[1:3])))

    def first_messages(self) -> list[Message]:
        """Those that may arrive next."""
        found: dict[tuple[str, str], Message] = {}
        for each in self.messages:
            found.setdefault(each[1:3], each)
        return list(found.values())

    def without(self, message: Message) -> World:
        """The same, when that has arrived, or was lost."""
        left = list(self.messages)
        left.remove(message)
        return self._replace(messages=tuple(left))

"""What a state of the whole is made of: values, which are compared, hashed and numbered."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from safe_refs.registry.records import Origin
from safe_refs.replication.merging import Ask, Inquiry, Pinning, Releasing, Repair, Returning
from safe_refs.replication.topology import Topology

TOPOLOGY = Topology(version=1, shards=2, replicas=2)
ME = Origin("job", "node", 1, "model")
DOWN = 0
FIRST = (
    2.0**-60
)  # seconds: the ttl of a lease that wasn't renewed; beside it, what a renewal gives is for ever (see `Shards`)
T = TypeVar("T", bound=Hashable)

World = tuple[int, int, int, int, int, int, int]  # shard 0, shard 1, client 0, 1, 2, network, ledger
Status = tuple[Any, ...]  # of a client's call to one shard; see `Op`
Choice = tuple[str, int]  # what to do, with which lease


def _lease_decided_by(shard: int) -> bytes:
    return next(id_ for id_ in (bytes([n]) * 16 for n in range(256)) if TOPOLOGY.holders(id_)[0] == shard)


LEASES = (_lease_decided_by(0), _lease_decided_by(1))
NAMES = "XY"
TAKES = ("take", "early take")
READS = ("resolve", "early")  # a resolve of a lease that doesn't count its uses
USES = ("use", *TAKES)
RENEWALS = ("renew", "lengthen", "shorten")
BACKS = {"back": "use", "back take": "take"}  # a client gives back what its last step has got: a use, or a take
EARLY = ("early", "early take")  # by who may have got the payload before its pin was acknowledged


class Interned(Generic[T]):
    """Numbers for values, in the order in which they turn up."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def __call__(self, value: T) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number


class Network(NamedTuple):
    """What is under way between shards, and what nobody waits for.

    Attributes:
        news: from each shard, to the other: the call, and the leases to give back if it fails.
        shared: to each shard, the answer to its question what it held: a call.
        orphans: calls that nobody waits for: the shard, and the call.
    """

    news: tuple[tuple[int, tuple[bytes, ...]] | None, tuple[int, tuple[bytes, ...]] | None] = (None, None)
    shared: tuple[int | None, int | None] = (None, None)
    orphans: tuple[tuple[int, int], ...] = ()


class Story(NamedTuple):
    """What was promised about one lease.

    Attributes:
        stage: "" (nothing yet), "pinning", "held" (the pin returned well), "undone" (it did not, and its release went out),
            "abandoned" (its maker died meanwhile).
        epoch: that its payload names.
        crashed: which shards (a bit each) crashed, had not recovered, were in doubt or did not answer in time, while a call for it
            was open or its news were owed.
        risk: both did, so that what one of them alone knew may be gone; or both were down or recovering at the same time; or what
            it held is gone with its maker.
        enders: releases and takes that were begun, counted up to 3; without takes that were given back.
        users: uses that were begun, where they count; without those that were given back.
        released: a release has returned well.
        takes: how many takes have succeeded, without those that a client has begun to give back.
        wins: how many loads by use or take have succeeded; as `takes`.
        most: how many may.
        gave_back: somebody has begun to give a use back.
        loose: a shard was out, or had just come back, while a use was given back: until all is quiet, it may tell the end by it.
        renewed: a renewal has returned well, so that the lease lives on when its first ttl passes.
        shortened: somebody has begun to give it the first ttl again.
    """

    stage: str = ""
    epoch: int = 0
    crashed: int = 0
    risk: bool = False
    enders: int = 0
    users: int = 0
    released: bool = False
    takes: int = 0
    wins: int = 0
    most: int | None = None
    gave_back: bool = False
    loose: bool = False
    renewed: bool = False
    shortened: bool = False

    @property
    def ended(self) -> bool:
        """A release, a take or the last use has returned well."""
        return self.released or self.takes > 0 or (self.most is not None and self.wins >= self.most)


class Ledger(NamedTuple):
    """What may still happen, what the control store knows, and what was promised.

    Attributes:
        crashes, deaths, doubles, lates: how many may still come.
        epoch: in the control store.
        stories: of each lease.
    """

    crashes: int
    deaths: int
    doubles: int
    lates: int
    epoch: int = 1
    stories: tuple[Story, Story] = (Story(), Story())


Machine = Inquiry | Pinning | Releasing | Returning


class Op(NamedTuple):
    """What a client is doing.

    Attributes:
        kind: pin, release, use, take, renew, lengthen (a keepalive's renewal), shorten (a renewal that gives the first ttl again),
            resolve; early (a resolve) or early take, by who may be too early; back or back take.
        lease: its number.
        flag: of a resolve: it began after the lease had ended (and, if a shard crashed meanwhile, all had heard of it). Of who may
            be too early: in this round the pin had been acknowledged. Of a use, a take or a renewal: while it was under way the lease
            may have ended by a use that was then given back.
        turn: how many steps its program has left after it.
        in_time: when it began, a renewal had been acknowledged, or nothing ends by time.
        machine: the real client's state; None of who was too early, and waits for the pin to come.
        ask: what the machine has asked for.
        calls: the status of its call to each shard, a tuple:
            ("idle",): this shard isn't asked now;
            ("sent", crashed): under way; `crashed`: the shard crashed meanwhile, so that it may fail at any time;
            ("done", answer): carried out, the answer under way;
            ("here", answer): the answer is here, or a `Silence` in its place.
    """

    kind: str
    lease: int
    flag: bool
    turn: int = 0
    in_time: bool = True
    machine: Machine | None = None
    ask: Ask | Repair | None = None
    calls: tuple[Status, Status] = (("idle",), ("idle",))

    @property
    def only_looks(self) -> bool:
        """Whether its calls change nothing, so that it doesn't matter when they arrive, or whether twice."""
        return isinstance(self.ask, Ask) and not self.ask.counts


class Client(NamedTuple):
    """A client: what it will do (for each step, one of some choices), what it is doing, and what its last op got it, by its kind."""

    program: tuple[tuple[Choice, ...], ...]
    op: Op | None = None
    got: str = ""


def replaced(pair: tuple[Any, Any], index: int, value: Any) -> tuple[Any, Any]:
    """A pair with another value at one index."""
    return (value, pair[1]) if index == 0 else (pair[0], value)


def with_story(ledger: Ledger, lease: int, story: Story) -> Ledger:
    """A ledger with another story of one lease."""
    return ledger._replace(stories=replaced(ledger.stories, lease, story))

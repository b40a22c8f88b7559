"""A model of two replicated shards and their clients, small enough to visit every state that it can get into.

The shards are the real thing: a `LeaseTable` and a `Replica` each, driven through their own methods. What a shard does depends only
on its state and on the call, so each pair of these is carried out once, on a copy of the real objects, and looked up from then on; a
state of the whole is seven small numbers. Clients (as in `registry.pinning` and its neighbours), the network and crashes are small
step machines, written here.

A state is: both shards; each client's program and the calls that it has open; what is under way between shards, and orphans (calls of
dead clients, doubles of calls); and a book for the properties: what was promised, and how much may still go wrong. The search is
breadth first, so that the first trace that breaks a property is a shortest one.

Anything that is under way may be overtaken by anything else. What is under way to a shard dies with it, but for a call that a client
has open, which fails or reaches the successor. News may be lost at any time, and are then owed again.

The properties, by the words that a `ViolationError` begins with:

- early end: a lease that was pinned and that nobody has ended is there, for who asks for it, and each use of it is granted;
- resurrection: once a release, a take or the last use has returned, who asks from then on is refused;
- at most once: no lease is given out by more uses and takes than it allows;
- not found while recovering: a shard that came back says neither "not found" nor "lost" before it has heard from the other;
- leak: once all is quiet, what was ended, or pinned in vain, is live on no shard;
- convergence: once all is quiet, both shards know the same of a lease: whether it is live, its uses, its time;
- a wait for ever: where nothing can happen any more, no client waits, and no news are owed.

What replicas don't promise is left out: what both shards lost, as they were down or recovering at the same time or crashed both
around one call (`Story.risk`), and what is left of a lease whose maker died before it was told that it is held.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, Generic, NamedTuple, TypeVar

from safe_refs.config import Limits
from safe_refs.errors import LeaseError, LeaseLostError, LeaseNotFoundError, RegistryFullError
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Origin, Terms
from safe_refs.registry.replication import Parcel, Replica
from safe_refs.registry.topology import Topology

TOPOLOGY = Topology(version=1, shards=2, replicas=2)
ME = Origin("job", "node", 1, "model")
DOWN = 0
T = TypeVar("T", bound=Hashable)

World = tuple[int, int, int, int, int, int, int]  # shard 0, shard 1, client 0, 1, 2, network, book
Status = tuple[Any, ...]  # of a client's call to one shard; see `Clients`
Choice = tuple[str, int]  # what to do, with which lease


def _lease_decided_by(shard: int) -> bytes:
    return next(id_ for id_ in (bytes([n]) * 16 for n in range(256)) if TOPOLOGY.holders(id_)[0] == shard)


LEASES = (_lease_decided_by(0), _lease_decided_by(1))
NAMES = "XY"
IN_TURN = ("use", "take", "renew")  # what asks the deciding shard first
LOOK_UPS = ("resolve", *IN_TURN)


def _clock() -> float:
    return 0.0


class ViolationError(AssertionError):
    """A property does not hold; the message tells the shortest way there."""


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


class Shown(NamedTuple):
    """What can be seen of a shard: all of its state that its later behaviour depends on.

    Attributes:
        leases: for each, None, or ("live", uses so far, renewals, seconds left), or ("ended", how, uses).
        epoch: of its table.
        news: owed to the other, oldest first.
        recovering: it hasn't heard from the other.
        rest: what else its `Replica` remembers.
    """

    leases: tuple[Any, ...]
    epoch: bytes
    news: tuple[bytes, ...]
    recovering: bool
    rest: tuple[Any, ...]


class Shards:
    """Both shards' behaviour, looked up: state and call give the next state and the answer.

    States are numbers, of which 0 is a shard that is down. Calls are numbers too, of tuples: what, and its arguments.
    """

    def __init__(
        self, table: type[LeaseTable[str]], replica: type[Replica[str]], uses: tuple[int | None, ...], limits: Limits
    ) -> None:
        self._table_class = table
        self._replica_class = replica
        self._uses = uses
        self._limits = limits
        self._states: Interned[tuple[int, Shown | None]] = Interned()
        self._states((-1, None))  # DOWN
        self._frozen: list[bytes] = [b""]
        self._done: dict[tuple[int, int], tuple[int, Any]] = {}
        self.calls: Interned[tuple[Any, ...]] = Interned()
        self.shown: list[Shown] = [Shown((None, None), b"", (), True, ())]

    @property
    def count(self) -> int:
        """How many states of a single shard turned up, and how many different calls were carried out in them."""
        return len(self._done)

    def start(self, shard: int, epoch: int, restarted: bool) -> int:
        """A shard begins, empty."""
        table = self._table_class(
            registry="r",
            epoch=_epoch(epoch),
            generation=epoch,
            clock=_clock,
            wall=_clock,
            limits=self._limits,
            alone=False,
        )
        return self._freeze(shard, table, self._replica_class(shard, TOPOLOGY, table, restarted, _clock))

    def do(self, state: int, call: int) -> tuple[int, Any]:
        """Carry out a call: the next state, and the answer."""
        key = (state, call)
        done = self._done.get(key)
        if done is None:
            table, replica = pickle.loads(self._frozen[state])
            answer = self._carry_out(table, replica, *self.calls.values[call])
            done = self._done[key] = self._freeze(replica.shard, table, replica), answer
        return done

    def _freeze(self, shard: int, table: LeaseTable[str], replica: Replica[str]) -> int:
        leases: list[Any] = []
        for lease in LEASES:
            if (copy := table.copy(lease)) is not None:
                leases.append(("live", copy.used, copy.renewals, copy.left_s))
            elif (ending := table.ending(lease)) is not None:
                leases.append(("ended", ending.how, frozenset(ending.uses)))
            else:
                leases.append(None)
        news = tuple(replica.owing().get(1 - shard, ()))
        recovering = bool(replica._to_hear)  # not what it says of itself, which is to be checked
        rest = (frozenset(replica._silent), frozenset(replica._unheard), frozenset(replica._asked))
        shown = Shown(tuple(leases), table.epoch, news, recovering, rest)
        number = self._states((shard, shown))
        if number == len(self._frozen):
            self._frozen.append(pickle.dumps((table, replica)))
            self.shown.append(shown)
        return number

    def _carry_out(self, table: LeaseTable[str], replica: Replica[str], what: str, *arguments: Any) -> Any:
        """One call, as the actor does it."""
        other = 1 - replica.shard
        if what in ("pin", "repair"):
            (number,) = arguments
            lease = LEASES[number]
            if what == "repair":
                replica.owe_one(lease, other)
                return "ok"
            try:
                table.pin(lease, [NAMES[number]], [b"owner"], Terms(uses=self._uses[number]), ME)
            except (LeaseError, RegistryFullError):
                return "refused"
            replica.owe_returned([lease])
            return "ok"
        if what == "release":
            (number,) = arguments
            table.release(LEASES[number], ME)
            replica.owe([LEASES[number]])
            return "ok"
        if what in LOOK_UPS:
            number, epoch, use = arguments
            lease = LEASES[number]
            try:
                if what == "renew":
                    ttl, renewals = use
                    renewals = table.renew(lease, _epoch(epoch), epoch, ttl, renewals)
                    replica.owe([lease])
                    return ("renewed", renewals)
                table.resolve(lease, _epoch(epoch), epoch, slot=None, take=what == "take", origin=ME, use=use)
            except LeaseNotFoundError:
                return "recovering" if replica.to_hear else "not found"
            except LeaseLostError:
                return "recovering" if replica.to_hear else "lost"
            except LeaseError:
                return "yours" if table.ended_by(lease, use) else "ended"
            if what != "resolve":
                replica.owe([lease])
            return "items"
        if what == "send news":
            taken = replica.take_news(other, 10)
            return self.calls(("receive", _Packed(replica.parcel(taken)), table.generation)), tuple(taken)
        if what == "give back":
            replica.give_back(other, arguments[0])
            return None
        if what == "receive":
            packed, epoch = arguments
            replica.receive(packed.parcel)
            if epoch > table.generation:
                table.begin_anew(_epoch(epoch), epoch)
            return None
        if what == "tell":
            parcel, complete = replica.parcel(replica.shared_with(other)), replica.knows_of(other)
            replica.told(other)
            return self.calls(("hear", _Packed(parcel), complete))
        if what == "hear":
            packed, complete = arguments
            replica.receive(packed.parcel)
            replica.hear(other, complete)
            return None if replica.to_hear else replica.settle()
        if what == "give up":
            return replica.settle()
        if what == "new epoch":
            table.begin_anew(_epoch(arguments[0]), arguments[0])
            return None
        raise ValueError(what)


class _Packed:
    """A parcel as a value that can be compared and hashed."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        endings = tuple(ending._replace(uses=tuple(sorted(ending.uses))) for ending in parcel.endings)
        self._key = (tuple(parcel.copies), endings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Packed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        live = [NAMES[LEASES.index(copy.lease)] for copy in self.parcel.copies]
        ended = [NAMES[LEASES.index(ending.lease)] for ending in self.parcel.endings]
        return f"(live: {''.join(live) or '-'}, ended: {''.join(ended) or '-'})"


def _epoch(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Network(NamedTuple):
    """What is under way between shards, and what nobody waits for.

    Attributes:
        news: from each shard, to the other: the call, and the leases to give back if it fails.
        told: to each shard, the answer to its question what it held: a call.
        orphans: calls that nobody waits for: the shard, and the call.
    """

    news: tuple[tuple[int, tuple[bytes, ...]] | None, tuple[int, tuple[bytes, ...]] | None] = (None, None)
    told: tuple[int | None, int | None] = (None, None)
    orphans: tuple[tuple[int, int], ...] = ()


class Story(NamedTuple):
    """What was promised about one lease.

    Attributes:
        stage: "" (nothing yet), "pinning", "held" (the pin returned well), "undone" (it did not, and its release went out),
            "abandoned" (its maker died meanwhile).
        epoch: that its payload names.
        crashed: which shards (a bit each) crashed, or had not recovered, while a call for it was open or its news were owed.
        risk: both did, so that what one of them alone knew may be gone; or both were down or recovering at the same time.
        enders: releases and takes that were begun, counted up to 2.
        users: uses that were begun, where they count.
        ended: a release, a take or the last use has returned well.
        wins: how many loads by use or take have succeeded.
    """

    stage: str = ""
    epoch: int = 0
    crashed: int = 0
    risk: bool = False
    enders: int = 0
    users: int = 0
    ended: bool = False
    wins: int = 0


class Book(NamedTuple):
    """What may still happen, what the control store knows, and what was promised.

    Attributes:
        crashes, deaths, doubles: how many may still come.
        epoch: in the control store.
        stories: of each lease.
    """

    crashes: int
    deaths: int
    doubles: int
    epoch: int = 1
    stories: tuple[Story, Story] = (Story(), Story())


class Op(NamedTuple):
    """What a client is doing.

    Attributes:
        kind: pin, release, use, take, renew, resolve.
        lease: its number.
        flag: of a resolve: it began after the lease had ended (and, if a shard crashed meanwhile, all had heard of it).
        turn: how many steps its program has left after it.
        calls: the status of its call to each shard, a tuple:
            ("later",): it is this shard's turn after the other;
            ("sent", crashed): under way; `crashed`: the shard crashed meanwhile, so that it may fail at any time;
            ("done", answer): carried out, the answer under way;
            ("repairing",): it was dead, and the other is being told to pass the lease on;
            ("no",): it failed, the shard was dead;
            ("ok",), ("items",), ("renewed", which) and so on: the answer is here.
    """

    kind: str
    lease: int
    flag: bool
    calls: tuple[Status, Status]
    turn: int = 0


class Client(NamedTuple):
    """A client: what it will do (for each step, one of some choices), and what it is doing."""

    program: tuple[tuple[Choice, ...], ...]
    op: Op | None = None


SENT: Status = ("sent", False)
GRANTS = ("ok", "items", "renewed")


def as_the_client(op: Op, holders: tuple[int, ...]) -> tuple[Op, str]:
    """What the real client does with the answers so far: the op as it goes on, and how it ends ("": not yet)."""
    kinds = (op.calls[0][0], op.calls[1][0])
    if "sent" in kinds or "done" in kinds:
        return op, ""
    if op.kind in IN_TURN:
        return _in_turn(op, kinds, holders)
    if op.kind == "resolve":
        # An end beats all; items from anybody will do; as long as one is dead or recovering, both are asked again.
        for answer in ("ended", "items"):
            if answer in kinds:
                return op, answer
        if "recovering" in kinds or "no" in kinds:
            return _begin(op, holders), ""
        return op, "lost" if "lost" in kinds else "not found"
    if "ok" not in kinds:
        return _begin(op, holders), ""
    if op.kind == "pin" and "no" in kinds:
        return op._replace(calls=_pair(kinds.index("no"), ("repairing",), SENT)), ""
    return op, "well"


def _in_turn(op: Op, kinds: tuple[str, str], holders: tuple[int, ...]) -> tuple[Op, str]:
    """One holder after the other; in a further round, those that have granted it before are left out."""
    for answer in ("ended", "yours"):
        if answer in kinds and (answer == "ended" or not any(kind in GRANTS for kind in kinds)):
            return op, answer
    if "later" in kinds:
        return _with_call(op, kinds.index("later"), SENT), ""
    if any(kind in GRANTS for kind in kinds):
        return op, "well"
    if "recovering" in kinds or "no" in kinds:
        return _begin(op, holders), ""
    return op, "lost" if "lost" in kinds else "not found"


Rules = Callable[[Op, tuple[int, ...]], tuple[Op, str]]


def _with_call(op: Op, shard: int, status: Status) -> Op:
    return op._replace(calls=_pair(shard, status, op.calls[1 - shard]))


def _pair(shard: int, mine: Status, other: Status) -> tuple[Status, Status]:
    return (mine, other) if shard == 0 else (other, mine)


def _begin(op: Op, holders: tuple[int, ...]) -> Op:
    """Send the first calls: to both at once, or in turn."""
    if op.kind in IN_TURN:
        return op._replace(calls=_pair(holders[0], SENT, ("later",)))
    return op._replace(calls=(SENT, SENT))


@dataclass
class Scope:
    """What is explored.

    Attributes:
        programs: of the three clients: for each step, the choices.
        crashes: of shards, in all.
        deaths: of clients, in all.
        doubles: of calls and of news, in all.
        both: whether a shard may crash while the other is down or recovering.
        uses: of both leases.
        limits: of each shard.
        rules: how clients deal with answers.
        table: the class of the rules.
        replica: the class of the replication.
        strict: promise all the same what both shards may have lost, as they crashed around one call or were out at the same time.
        only: look for violations of that property, and pass over others.
    """

    programs: tuple[tuple[tuple[Choice, ...], ...], ...]
    crashes: int = 1
    deaths: int = 1
    doubles: int = 0
    both: bool = False
    uses: tuple[int | None, int | None] = (None, 1)
    limits: Limits = field(default_factory=Limits)
    rules: Rules = as_the_client
    table: type[LeaseTable[str]] = LeaseTable
    replica: type[Replica[str]] = Replica
    strict: bool = False
    only: str = ""


@dataclass(frozen=True)
class Explored:
    """What an exploration saw.

    Attributes:
        states: of the whole.
        steps: between them.
        calls: in different states of a shard, each carried out by the real classes once.
        quiet: states in which nothing is under way or owed.
        depth: of the search.
        left_over: how many quiet states there were, by what is left of leases whose maker died.
    """

    states: int
    steps: int
    calls: int
    quiet: int
    depth: int
    left_over: dict[str, int]


class Explorer:
    """Visits every state of a scope, and checks the properties in each of them."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.shards = Shards(scope.table, scope.replica, scope.uses, scope.limits)
        self.clients: Interned[Client] = Interned()
        self.networks: Interned[Network] = Interned()
        self.books: Interned[Book] = Interned()
        self._holders = tuple(TOPOLOGY.holders(lease) for lease in LEASES)
        self._sound: set[tuple[int, int, int]] = set()
        self._left_over: Counter[str] = Counter()
        self._quiet = 0
        self._problem = ""
        call = self.shards.calls
        self._send_news, self._tell, self._give_up = call(("send news",)), call(("tell",)), call(("give up",))

    def first(self) -> World:
        """Two empty shards, and clients that have done nothing yet."""
        book = Book(self.scope.crashes, self.scope.deaths, self.scope.doubles)
        a, b, c = (self.clients(Client(program)) for program in self.scope.programs)
        shards = (self.shards.start(0, 1, False), self.shards.start(1, 1, False))
        return (*shards, a, b, c, self.networks(Network()), self.books(book))

    def run(self) -> Explored:
        """Visit all states.

        Raises:
            ViolationError: a property does not hold, with a shortest trace.
        """
        first = self.first()
        parents: dict[World, World | None] = {first: None}
        frontier = [first]
        steps = depth = 0
        while frontier:
            depth += 1
            following: list[World] = []
            for world in frontier:
                self._check(world)
                if self._is_broken():
                    raise self._violation(world, None, parents)
                moved = False
                for _, successor in self.steps(world):
                    moved = True
                    steps += 1
                    if self._is_broken():
                        raise self._violation(successor, world, parents)
                    if successor not in parents:
                        parents[successor] = world
                        following.append(successor)
                if not moved:
                    self._check_end(world)
                    if self._is_broken():
                        raise self._violation(world, None, parents)
            frontier = following
        return Explored(len(parents), steps, self.shards.count, self._quiet, depth, dict(self._left_over))

    def _is_broken(self) -> bool:
        """Whether a property that is looked for does not hold."""
        if self._problem and not self._problem.startswith(self.scope.only):
            self._problem = ""
        return bool(self._problem)

    # ---- steps

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that can happen next."""
        book = self.books.values[world[6]]
        network = self.networks.values[world[5]]
        for number in (0, 1, 2):
            yield from self._client_steps(world, number, book, network)
        for shard in (0, 1):
            if world[shard] == DOWN:
                yield self._restart(world, shard, book)
            else:
                yield from self._shard_steps(world, shard, book, network)
        for index, (shard, call) in enumerate(network.orphans):
            if index == 0 or network.orphans[index - 1] != (shard, call):
                state, _ = self.shards.do(world[shard], call)
                rest = network.orphans[:index] + network.orphans[index + 1 :]
                yield (
                    f"shard {shard} gets a call that nobody waits for: {self._name(call)}",
                    self._moved(world, {shard: state}, network=network._replace(orphans=rest)),
                )

    def _client_steps(self, world: World, number: int, book: Book, network: Network) -> Iterator[tuple[str, World]]:
        client = self.clients.values[world[2 + number]]
        op = client.op
        who = f"client {number}"
        if op is None:
            if client.program:
                for kind, lease in client.program[0]:
                    story = book.stories[lease]
                    if story.stage != ("" if kind == "pin" else "held"):
                        continue
                    settled = self.scope.crashes <= 1 or self._settled_of(world, lease, network)
                    strict = kind == "resolve" and story.ended and (settled or not story.crashed)
                    begun = _begin(Op(kind, lease, strict, (SENT, SENT), len(client.program)), self._holders[lease])
                    if kind == "pin":
                        story = story._replace(stage="pinning", risk=not self.scope.strict and self._both_out(world))
                    elif kind in ("release", "take"):
                        story = story._replace(enders=min(2, story.enders + 1))
                    elif kind == "use" and self.scope.uses[lease] is not None:
                        story = story._replace(users=story.users + 1)
                    if self.scope.crashes > 1:
                        out = sum(1 << shard for shard in (0, 1) if self.shards.shown[world[shard]].recovering)
                        before = 0 if settled else story.crashed
                        story = story._replace(crashed=before | out)
                    yield (
                        f"{who} begins to {kind} {NAMES[lease]}",
                        self._moved(
                            world,
                            {2 + number: self.clients(Client(client.program[1:], begun))},
                            book=_told(book, lease, story),
                        ),
                    )
            return
        what = f"{who}'s {op.kind} of {NAMES[op.lease]}"
        for shard in (0, 1):
            call = op.calls[shard]
            if call[0] == "sent":
                if world[shard] == DOWN or call[1]:
                    failed = _with_call(op, shard, ("no",))
                    yield f"{what} fails at shard {shard}", self._go_on(world, number, failed, book, network)
                if world[shard] != DOWN:
                    yield from self._deliver(world, number, op, shard, book, network, what)
            elif call[0] == "done":
                yield (
                    f"{what} is answered by shard {shard}: {call[1]}",
                    self._answered(world, number, op, shard, call[1], book, network),
                )
        if book.deaths and op.kind != "resolve":
            yield from self._die(world, number, op, book, network)

    def _call_of(self, number: int, op: Op, shard: int, book: Book) -> int:
        """The call that an op makes to a shard."""
        if op.kind in LOOK_UPS:
            use: Any = b"" if op.kind == "resolve" else bytes([number, op.turn])
            if op.kind == "renew":
                told = op.calls[1 - shard]
                use = (10.0 * (number + 1), told[1] if told[0] == "renewed" else 0)
            return self.shards.calls((op.kind, op.lease, book.stories[op.lease].epoch, use))
        if op.calls[1 - shard] == ("repairing",):
            return self.shards.calls(("repair", op.lease))
        return self.shards.calls((op.kind, op.lease))

    def _deliver(
        self, world: World, number: int, op: Op, shard: int, book: Book, network: Network, what: str
    ) -> Iterator[tuple[str, World]]:
        call = self._call_of(number, op, shard, book)
        state, answer = self.shards.do(world[shard], call)
        if answer in ("not found", "lost") and self.shards.shown[world[shard]].recovering:
            self._problem = f"not found while recovering: shard {shard} says {answer} of {NAMES[op.lease]}"
        world = self._moved(world, {shard: state})
        for doubled in (False, True)[: 1 + (book.doubles > 0 and op.kind != "resolve")]:
            if doubled:
                network = network._replace(orphans=tuple(sorted((*network.orphans, (shard, call)))))
                book = book._replace(doubles=book.doubles - 1)
            label = f"{what} reaches shard {shard}{', and is doubled' * doubled}: {answer}"
            if book.crashes and op.kind != "resolve":
                # The answer is under way, and a crash may come before it.
                waiting = _with_call(op, shard, ("done", answer))
                yield (
                    label + " (the answer is under way)",
                    self._moved(world, {2 + number: self._with_op(world, number, waiting)}, network=network, book=book),
                )
            else:
                yield label, self._answered(world, number, op, shard, answer, book, network)

    def _answered(
        self, world: World, number: int, op: Op, shard: int, answer: Any, book: Book, network: Network
    ) -> World:
        """An answer is here."""
        if answer == "refused":
            # What is under way stays so, and nobody waits for it.
            other = 1 - shard
            if op.calls[other][0] == "sent" and world[other] != DOWN:
                left = (other, self._call_of(number, op, other, book))
                network = network._replace(orphans=tuple(sorted((*network.orphans, left))))
            return self._undo(world, number, op.lease, book, network)
        status = answer if isinstance(answer, tuple) else (answer,)
        return self._go_on(world, number, _with_call(op, shard, status), book, network)

    def _go_on(self, world: World, number: int, op: Op, book: Book, network: Network) -> World:
        """A client has learnt something, and acts on it."""
        op, verdict = self.scope.rules(op, self._holders[op.lease])
        if not verdict:
            return self._moved(world, {2 + number: self._with_op(world, number, op)}, network=network, book=book)
        story = self._judged(world, op, verdict, book)
        return self._moved(
            world,
            {2 + number: self._with_op(world, number, None)},
            network=network,
            book=_told(book, op.lease, story),
        )

    def _judged(self, world: World, op: Op, verdict: str, book: Book) -> Story:
        """What a call has promised, or whether it breaks what was."""
        story, name = book.stories[op.lease], NAMES[op.lease]
        what = f"a {op.kind} says {verdict}"
        if verdict in ("not found", "lost"):
            if not self._may_have_ended(op.lease, story) and not story.risk:
                self._problem = f"early end: {name} is held, and {what}"
        elif verdict == "ended":
            others = story._replace(
                enders=story.enders - (op.kind == "take"), users=max(0, story.users - (op.kind == "use"))
            )
            if not self._may_have_ended(op.lease, others):
                self._problem = f"early end: nobody else ended {name}, and {what}"
        elif verdict == "yours":
            if book.crashes == self.scope.crashes:
                self._problem = (
                    f"early end: a {op.kind} of {name} is refused for its own sake, and no shard has crashed"
                )
        elif op.kind == "resolve":
            if op.flag and not story.risk:
                self._problem = f"resurrection: {name} had ended, and a resolve that began afterwards gives items"
        elif op.kind == "pin":
            # The payload names the epoch that the deciding shard gave, or else the other.
            first, second = self._holders[op.lease]
            shard = first if op.calls[first][0] == "ok" and world[first] != DOWN else second
            epoch = int.from_bytes(self.shards.shown[world[shard]].epoch, "big") if world[shard] != DOWN else book.epoch
            return story._replace(stage="held", epoch=epoch)
        elif op.kind == "release":
            return story._replace(ended=True)
        elif op.kind in ("use", "take"):
            most, wins = self.scope.uses[op.lease] or 1, story.wins + 1
            if wins > most and not story.risk:
                self._problem = f"at most once: {name} was given out {wins} times, and may be {most}"
            return story._replace(wins=wins, ended=op.kind == "take" or wins >= most)
        return story

    def _may_have_ended(self, lease: int, story: Story) -> bool:
        """Whether enough calls were begun that a lease may have ended."""
        most = self.scope.uses[lease]
        return story.enders > 0 or (most is not None and story.users >= most)

    def _undo(self, world: World, number: int, lease: int, book: Book, network: Network) -> World:
        """A pin has not come to a good end, and its maker lives: it releases the lease."""
        call = self.shards.calls(("release", lease))
        sent = [(shard, call) for shard in (0, 1) if world[shard] != DOWN]
        network = network._replace(orphans=tuple(sorted((*network.orphans, *sent))))
        book = _told(book, lease, book.stories[lease]._replace(stage="undone"))
        return self._moved(world, {2 + number: self._with_op(world, number, None)}, network=network, book=book)

    def _die(self, world: World, number: int, op: Op, book: Book, network: Network) -> Iterator[tuple[str, World]]:
        """A client dies, and each of its calls that are under way may be lost; or its time is over."""
        who = f"client {number}"
        book = book._replace(deaths=book.deaths - 1)
        sent = [
            (shard, self._call_of(number, op, shard, book))
            for shard in (0, 1)
            if op.calls[shard][0] == "sent" and world[shard] != DOWN
        ]
        story = book.stories[op.lease]
        dead = book
        if op.kind == "pin":
            dead = _told(book, op.lease, story._replace(stage="abandoned"))
        for keep in product((False, True), repeat=len(sent)):
            kept = [message for message, is_kept in zip(sent, keep, strict=True) if is_kept]
            yield (
                f"{who} dies; {len(sent) - len(kept)} of its calls are lost, {len(kept)} go on",
                self._moved(
                    world,
                    {2 + number: self.clients(Client(()))},
                    network=network._replace(orphans=tuple(sorted((*network.orphans, *kept)))),
                    book=dead,
                ),
            )
        if op.kind == "pin":
            network = network._replace(orphans=tuple(sorted((*network.orphans, *sent))))
            yield (
                f"{who}'s time is over: it undoes its pin of {NAMES[op.lease]}",
                self._undo(world, number, op.lease, book, network),
            )

    def _restart(self, world: World, shard: int, book: Book) -> tuple[str, World]:
        state = self.shards.start(shard, book.epoch, True)
        return f"shard {shard} restarts", self._moved(world, {shard: state})

    def _shard_steps(self, world: World, shard: int, book: Book, network: Network) -> Iterator[tuple[str, World]]:
        other = 1 - shard
        up = world[other] != DOWN
        shown = self.shards.shown[world[shard]]
        if book.crashes and (self.scope.both or (up and not self.shards.shown[world[other]].recovering)):
            yield from self._crash(world, shard, book, network)
        # News.
        under_way = network.news[shard]
        if under_way is None:
            if shown.news and up:
                state, message = self.shards.do(world[shard], self._send_news)
                yield (
                    f"shard {shard} sends news",
                    self._moved(
                        world, {shard: state}, network=network._replace(news=_set(network.news, shard, message))
                    ),
                )
        else:
            call, leases = under_way
            arrived = network._replace(news=_set(network.news, shard, None))
            back, _ = self.shards.do(world[shard], self.shards.calls(("give back", leases)))
            yield f"news of shard {shard} are lost, and owed again", self._moved(world, {shard: back}, network=arrived)
            if up:
                got, _ = self.shards.do(world[other], call)
                label = f"news reach shard {other}: {self._name(call)}"
                yield label, self._moved(world, {other: got}, network=arrived)
                if book.doubles:
                    fewer = book._replace(doubles=book.doubles - 1)
                    late = arrived._replace(orphans=tuple(sorted((*network.orphans, (other, call)))))
                    yield label + ", and are doubled", self._moved(world, {other: got}, network=late, book=fewer)
                    yield (
                        label + ", and the answer is lost",
                        self._moved(world, {other: got, shard: back}, network=arrived, book=fewer),
                    )
        # Recovery.
        if not shown.recovering:
            return
        answer = network.told[shard]
        if answer is not None:
            state, lossy = self.shards.do(world[shard], answer)
            label = f"shard {shard} hears what it held: {self._name(answer)}"
            yield self._settled(world, shard, state, lossy, book, network, label)
        elif up:
            state, answer = self.shards.do(world[other], self._tell)
            yield (
                f"shard {other} tells shard {shard} what it held",
                self._moved(
                    world,
                    {other: state},
                    network=network._replace(told=_set(network.told, shard, answer)),
                ),
            )
        else:
            state, lossy = self.shards.do(world[shard], self._give_up)
            yield self._settled(world, shard, state, lossy, book, network, f"shard {shard} gives up waiting")

    def _settled(
        self, world: World, shard: int, state: int, lossy: bool | None, book: Book, network: Network, label: str
    ) -> tuple[str, World]:
        network = network._replace(told=_set(network.told, shard, None))
        if lossy:
            book = book._replace(epoch=book.epoch + 1)
            state, _ = self.shards.do(state, self.shards.calls(("new epoch", book.epoch)))
            label += "; a new epoch begins"
        return label, self._moved(world, {shard: state}, network=network, book=book)

    def _crash(self, world: World, shard: int, book: Book, network: Network) -> Iterator[tuple[str, World]]:
        """A shard is gone, and what was under way to it; what it sent may still arrive."""
        other = 1 - shard
        book = book._replace(crashes=book.crashes - 1)
        moved = {shard: DOWN}
        undelivered = network.news[other]
        if undelivered is not None:
            moved[other], _ = self.shards.do(world[other], self.shards.calls(("give back", undelivered[1])))
        for index in (2, 3, 4):
            client = self.clients.values[world[index]]
            if client.op is not None and client.op.calls[shard][0] in ("sent", "done"):
                moved[index] = self.clients(client._replace(op=_with_call(client.op, shard, ("sent", True))))
        orphans = tuple(orphan for orphan in network.orphans if orphan[0] != shard)
        news, told = network.news[shard], network.told[other]
        for keep_news, keep_told in product(
            (False, True)[: 1 + (news is not None)], (False, True)[: 1 + (told is not None)]
        ):
            kept = tuple(sorted((*orphans, (other, news[0])))) if keep_news and news is not None else orphans
            left = Network(told=_set((None, None), other, told if keep_told else None), orphans=kept)
            after = self._moved(world, moved, network=left, book=book)
            if self.scope.crashes > 1:
                stories = [self._shaken(world, after, shard, lease, network) for lease in (0, 1)]
                after = self._moved(after, {}, book=book._replace(stories=(stories[0], stories[1])))
            yield f"shard {shard} crashes", after

    def _shaken(self, before: World, after: World, shard: int, lease: int, network: Network) -> Story:
        """What is promised about a lease when a shard crashes."""
        story = self.books.values[before[6]].stories[lease]
        if not story.stage:
            return story
        crashed = story.crashed
        if not self._settled_of(before, lease, network):
            crashed |= 1 << shard
        return story._replace(
            crashed=crashed, risk=not self.scope.strict and (story.risk or crashed == 3 or self._both_out(after))
        )

    def _settled_of(self, world: World, lease: int, network: Network) -> bool:
        """Whether both shards know the same of a lease, and nothing that concerns it is under way."""
        shown = [self.shards.shown[world[shard]] for shard in (0, 1)]
        return (
            network == Network()
            and not any(shard.recovering or LEASES[lease] in shard.news for shard in shown)
            and not any(
                (op := self.clients.values[client].op) is not None and op.lease == lease and op.kind != "resolve"
                for client in world[2:5]
            )
        )

    # ---- properties

    def _check(self, world: World) -> None:
        """What holds in each state, and what holds when all is quiet."""
        key = (world[0], world[1], world[6])
        if key not in self._sound:
            self._check_promises(world)
            self._sound.add(key)
        shards = [self.shards.shown[world[shard]] for shard in (0, 1)]
        if (
            not any(shard.recovering or shard.news for shard in shards)
            and self.networks.values[world[5]] == Network()
            and all(self.clients.values[client].op is None for client in world[2:5])
        ):
            self._check_quiet(world)

    def _check_promises(self, world: World) -> None:
        """What a resolve would say that asks both shards in this very moment."""
        book = self.books.values[world[6]]
        up = [shard for shard in (0, 1) if world[shard] != DOWN]
        for lease, story in enumerate(book.stories):
            if story.stage != "held":
                continue
            name = NAMES[lease]
            kinds = []
            for shard in up:
                shown = self.shards.shown[world[shard]]
                at = shown.leases[lease]
                lost = shown.epoch != _epoch(story.epoch)
                kinds.append(at[0] if at else "recovering" if shown.recovering else "lost" if lost else "not found")
            if not self._may_have_ended(lease, story):
                if "ended" in kinds:
                    self._problem = f"early end: {name} has ended on a shard, and nobody ended it"
                elif kinds and "live" not in kinds and "recovering" not in kinds and not story.risk:
                    self._problem = f"early end: {name} is held, and the shards that are up say {kinds}"
            elif story.ended and "live" in kinds and "ended" not in kinds and not story.risk:
                self._problem = f"resurrection: {name} has ended, and is live again: {kinds}"

    def _check_quiet(self, world: World) -> None:
        self._quiet += 1
        book = self.books.values[world[6]]
        both = [self.shards.shown[world[shard]].leases for shard in (0, 1)]
        for lease, story in enumerate(book.stories):
            kinds = [leases[lease][0] if leases[lease] else "unknown" for leases in both]
            if story.stage == "abandoned":
                self._left_over[" and ".join(sorted(kinds))] += 1
            elif story.risk:
                continue
            elif "live" in kinds and (story.stage == "undone" or story.ended):
                self._problem = f"leak: all is quiet, {NAMES[lease]} was released, and is live"
            elif kinds[0] != kinds[1]:
                self._problem = f"convergence: all is quiet, and the shards disagree about {NAMES[lease]}: {kinds}"
            elif "live" in kinds and both[0][lease] != both[1][lease]:
                self._problem = (
                    f"convergence: all is quiet, and {NAMES[lease]} differs: {both[0][lease]}, {both[1][lease]}"
                )

    def _check_end(self, world: World) -> None:
        """Where nothing can happen any more, nobody waits."""
        if any(self.clients.values[client].op is not None for client in world[2:5]):
            self._problem = "a wait for ever: of a client"
        elif any(self.shards.shown[world[shard]].news for shard in (0, 1)):
            self._problem = "a wait for ever: of news that are owed"

    # ---- helpers

    def _both_out(self, world: World) -> bool:
        """Whether both shards are down or recovering."""
        shown = self.shards.shown
        return shown[world[0]].recovering and shown[world[1]].recovering

    def _with_op(self, world: World, number: int, op: Op | None) -> int:
        return self.clients(Client(self.clients.values[world[2 + number]].program, op))

    def _moved(
        self, world: World, parts: dict[int, int], *, network: Network | None = None, book: Book | None = None
    ) -> World:
        parts_of = list(world)
        for index, part in parts.items():
            parts_of[index] = part
        if network is not None:
            parts_of[5] = self.networks(network)
        if book is not None:
            parts_of[6] = self.books(book)
        return tuple(parts_of)  # type: ignore[return-value] # of the same length

    def _name(self, call: int) -> str:
        return " ".join(str(part) for part in self.shards.calls.values[call])

    def _violation(self, last: World, before: World | None, parents: dict[World, World | None]) -> ViolationError:
        """The error with the trace that leads to a state."""
        problem = self._problem
        way = [last]
        step = before if before is not None else parents[last]
        while step is not None:
            way.append(step)
            step = parents[step]
        way.reverse()
        told = []
        for here, there in pairwise(way):
            self._problem = ""
            told.append(next(label for label, world in self.steps(here) if world == there))
        lines = [f"{number:3}. {label}" for number, label in enumerate(told, 1)]
        return ViolationError(f"{problem}, after {len(told)} steps:\n" + "\n".join(lines))


def _set(pair: tuple[Any, Any], index: int, value: Any) -> tuple[Any, Any]:
    return (value, pair[1]) if index == 0 else (pair[0], value)


def _told(book: Book, lease: int, story: Story) -> Book:
    return book._replace(stories=_set(book.stories, lease, story))

"""A reader that loads, lets go and loads again, and a shard that anchors and lets go: the same rules of Ray, in every order.

The shard is that of `rounds`, `answering` and `parting`: it reports to the owner, by a round or by letting go, only when the owner
has answered since it handed the object out. What an answer is worth is assumed: what had been sent to the owner before the object
was handed out has arrived there by then. (It is sent a tenth of a second earlier at least, and an owner with a backlog is asked
twice.) And an owner that has answered goes on reading for the milliseconds of a round, also if the object is handed out again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import ray
from .model import BORROWERS, OWNER, REGISTRY, RELAY, Borrower, Entry, Message, World
from .search import ViolationError

READER = BORROWERS[0]


class Reading(NamedTuple):
    """What may happen.

    Attributes:
        loads: how often the reader may load.
        takes: it may load by a take.
        asks: the shard reports only to an owner that has answered. Not so in the old rules.
        parts: so also when it lets go.
    """

    loads: int = 2
    takes: bool = True
    asks: bool = True
    parts: bool = True


class State(NamedTuple):
    """A state.

    Attributes:
        world: what Ray knows.
        loads: how often the reader may load still.
        lease: "live", "parting" (the shard holds the object a little longer) or "over".
        is_unanchored: the shard has handed the object out since it last reported.
        before: what was under way to the owner then.
        has_answered: the owner has answered since.
        round: of the shard: "", "lent", "touched".
    """

    world: World
    loads: int
    lease: str = "live"
    is_unanchored: bool = False
    before: tuple[Message, ...] = ()
    has_answered: bool = True
    round: str = ""


Steps = Iterator[tuple[str, State]]


def first(scope: Reading) -> State:
    """A lease is live, and its registry known; nobody else has the object."""
    world = World(
        entries=((REGISTRY, Entry(1, is_asked=True)),),
        known=frozenset({REGISTRY}),
        leases=frozenset(),
        messages=(),
        borrowers=(Borrower(stage="over"),),
        life=0,
        loans=frozenset(),
        lent=frozenset(),
        kills=0,
        relay_dies=False,
    )
    return State(world, scope.loads)


def steps(scope: Reading, state: State) -> Steps:
    """All that may happen next, each with a label."""
    world = state.world
    for message in world.first_messages():
        arrived = ray.arrives(world.without(message), message)
        assert arrived is not None
        yield f"{message.what}: {message.source} to {message.target}", state._replace(world=arrived)
    yield from _reads(scope, state)
    yield from _anchors(scope, state)
    if state.lease == "live":
        yield "the lease is released", _ended(scope, state)


def _reads(scope: Reading, state: State) -> Steps:
    world = state.world
    if world.entry(READER).held:
        yield "the reader lets go", state._replace(world=ray.lets_go(world, READER))
    elif state.loads and state.lease == "live":
        under_way = tuple(each for each in world.messages if each.target == OWNER)
        loaded = state._replace(
            world=ray.passes(ray.takes(world, READER), REGISTRY, {READER}),
            loads=state.loads - 1,
            is_unanchored=True,
            before=under_way,
            has_answered=False,
        )
        yield "the reader loads", loaded
        if scope.takes:
            yield "the reader takes", _ended(scope, loaded)


def _anchors(scope: Reading, state: State) -> Steps:
    world = state.world
    if not state.has_answered and not any(each in world.messages for each in state.before):
        yield "the owner answers", state._replace(has_answered=True, before=())
    if state.round == "" and state.lease == "live" and state.is_unanchored and (state.has_answered or not scope.asks):
        if world.entry(RELAY) == Entry():  # nothing is away
            lent = ray.passes(ray.takes(world, RELAY), REGISTRY, {RELAY})
            yield "the relay holds it", state._replace(world=lent, round="lent")
    elif state.round == "lent":
        if not scope.asks or not any(each in world.messages for each in state.before):
            touched, _ = ray.touches(world, REGISTRY)
            yield "the shard touches", state._replace(world=touched, round="touched", is_unanchored=False)
    elif state.round == "touched":
        yield "the relay gives back", state._replace(world=_given(world), round="")
    if state.lease == "parting" and state.round == "" and state.has_answered:
        yield "the shard lets go", state._replace(world=ray.lets_go(world, REGISTRY), lease="over")


def _given(world: World) -> World:
    return ray.lets_go(ray.passes(world, RELAY, {REGISTRY}), RELAY)


def _ended(scope: Reading, state: State) -> State:
    if state.round or (scope.parts and state.is_unanchored):
        return state._replace(lease="parting")
    return state._replace(world=ray.lets_go(state.world, REGISTRY), lease="over")


def explore(scope: Reading) -> int:
    """Visit all states; how many there are.

    Raises:
        ViolationError: a live reference is dead, or something is left when all is over.
    """
    begin = first(scope)
    ways: dict[State, tuple[str, ...]] = {begin: ()}
    frontier = [begin]
    while frontier:
        state = frontier.pop(0)
        following = list(steps(scope, state))
        if state.world.is_freed and state.world.entry(READER).held:
            raise ViolationError("freed: the reader has it: " + "; ".join(ways[state]))
        if not following and (left := [name for name, entry in state.world.entries if entry != Entry()]):
            raise ViolationError(f"left: {left}: " + "; ".join(ways[state]))
        for label, successor in following:
            if successor not in ways:
                ways[successor] = (*ways[state], label)
                frontier.append(successor)
    return len(ways)

"""The search through all states of a scope, and the properties that must hold in them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from .clients import Scope
from .model import DOWN, NAMES, Network, World
from .shards import identity_of
from .steps import Steps


class ViolationError(AssertionError):
    """A property does not hold; the message tells the shortest way there."""


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


class Explorer(Steps):
    """Visits every state of a scope, and checks the properties in each of them."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._sound: set[tuple[int, int, int]] = set()
        self._left_over: Counter[str] = Counter()
        self._quiet = 0

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
        ledger = self.ledgers.values[world[6]]
        up = [shard for shard in (0, 1) if world[shard] != DOWN]
        for lease, story in enumerate(ledger.stories):
            if story.stage != "held":
                continue
            name = NAMES[lease]
            kinds = []
            for shard in up:
                shown = self.shards.shown[world[shard]]
                at = shown.leases[lease]
                lost = at == ("lost",) or shown.epoch != identity_of(story.epoch).epoch
                kinds.append(
                    "overdue"
                    if at and at[0] == "ended" and at[-1]
                    else at[0]
                    if at and at[0] != "lost"
                    else "recovering"
                    if shown.recovering
                    else "lost"
                    if lost
                    else "not found"
                )
            if not self._may_have_ended(lease, story):
                if story.loose or (story.gave_back and story.risk):
                    pass  # see `_check_quiet`
                elif "ended" in kinds:
                    self._problem = f"early end: {name} has ended on a shard, and nobody ended it"
                elif kinds and "live" not in kinds and "recovering" not in kinds and not story.risk:
                    self._problem = f"early end: {name} is held, and the shards that are up say {kinds}"
            elif story.ended and "live" in kinds and "ended" not in kinds and not story.risk:
                self._problem = f"resurrection: {name} has ended, and is live again: {kinds}"

    def _check_quiet(self, world: World) -> None:
        self._quiet += 1
        ledger = self.ledgers.values[world[6]]
        both = [self.shards.shown[world[shard]].leases for shard in (0, 1)]
        for lease, story in enumerate(ledger.stories):
            kinds = [leases[lease][0] if leases[lease] else "unknown" for leases in both]
            if story.stage == "abandoned":
                self._left_over[" and ".join(sorted(kinds))] += 1
            elif story.risk:
                continue
            elif "live" in kinds and (story.stage == "undone" or story.ended):
                self._problem = f"leak: all is quiet, {NAMES[lease]} was released, and is live"
            elif kinds[0] != kinds[1] and any(map(self._is_timed, world[:2])):
                continue  # it has expired on a shard, and is about to on the other
            elif kinds[0] != kinds[1]:
                self._problem = f"convergence: all is quiet, and the shards disagree about {NAMES[lease]}: {kinds}"
            elif story.stage == "held" and "live" not in kinds and not self._may_have_ended(lease, story):
                self._problem = f"early end: all is quiet, {NAMES[lease]} is held, and the shards say {kinds}"
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

    def _violation(self, last: World, before: World | None, parents: dict[World, World | None]) -> ViolationError:
        """The error with the trace that leads to a state."""
        problem, self._tells = self._problem, True
        way = [last]
        step = before if before is not None else parents[last]
        while step is not None:
            way.append(step)
            step = parents[step]
        way.reverse()
        labels = []
        for here, there in pairwise(way):
            self._problem = ""
            labels.append(next(label for label, world in self.steps(here) if world == there))
        lines = [f"{number:3}. {label}" for number, label in enumerate(labels, 1)]
        return ViolationError(f"{problem}, after {len(labels)} steps:\n" + "\n".join(lines))


def explore(name: str, scope: Scope, floor: int) -> None:
    """Visit all states of a scope, which are not fewer than the floor, and say how many they are."""
    begun = time.monotonic()
    explored = Explorer(scope).run()
    print(
        f"\n{name}: {explored.states:,} states, {explored.steps:,} steps, {explored.calls:,} calls carried out, "
        f"{explored.quiet} quiet states, at most {explored.depth} steps away, {time.monotonic() - begun:.1f} s"
    )
    assert explored.states >= floor
    assert explored.quiet > 0

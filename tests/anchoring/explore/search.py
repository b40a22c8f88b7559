"""The search through all states of a scope, and the properties that must hold in them."""

from __future__ import annotations

from itertools import pairwise

from . import ray
from .model import BORROWERS, REGISTRY, RELAY, Entry, Scope, World
from .world import CHOSEN, Happens, first


class ViolationError(AssertionError):
    """A property does not hold; the message tells the shortest way there."""


class Explorer:
    """Visits every state of a scope, and checks the properties in each of them."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._happens = Happens(scope)

    def run(self) -> int:
        """Visit all states; how many there are.

        Raises:
            ViolationError: a property does not hold, with a shortest trace.
        """
        start = first(self.scope)
        parents: dict[World, World | None] = {start: None}
        frontier = [start]
        while frontier:
            following: list[World] = []
            for world in frontier:
                problem = self._problem(world)
                moved = goes_on = False
                for label, successor in self._happens.steps(world):
                    moved = moved or successor != world
                    goes_on = goes_on or (successor != world and not label.endswith(CHOSEN))
                    if successor not in parents:
                        parents[successor] = world
                        following.append(successor)
                if not problem and not goes_on:
                    problem = self._problem_when_quiet(world)
                if not problem and not moved:
                    problem = self._problem_at_end(world)
                if problem:
                    raise self._violation(problem, world, parents)
            frontier = following
        return len(parents)

    def _problem(self, world: World) -> str:
        """What does not hold in a state."""
        if not world.is_freed:
            return ""
        depends = [name for name, each in zip(BORROWERS, world.borrowers, strict=False) if each.depends]
        for name, entry in world.entries:
            if entry.held and name != RELAY and not self._is_excused(world, name, depends):
                return f"freed: the object is gone, and {name} has it"
        return ""

    def _is_excused(self, world: World, name: str, depends: list[str]) -> bool:
        """Whether a reference may be dead: a lease that depended on a process that is dead."""
        return (name == REGISTRY and world.leases <= set(depends)) or (
            self.scope.silent and (world.excused or name in depends)
        )

    def _problem_when_quiet(self, world: World) -> str:
        """What does not hold where nothing happens any more by itself."""
        if (
            any(each.in_task or each.stage == "dead" or each.depends for each in world.borrowers)
            or world.is_freed
            or world.excused
        ):
            return ""
        if world.entry(RELAY) != Entry():
            return f"left: the relay has {world.entry(RELAY)}, and all is quiet"
        holders = {name for name, each in zip(BORROWERS, world.borrowers, strict=False) if each.stage == "over"}
        if world.leases:
            holders.add(REGISTRY)
        unknown = sorted(name for name in holders if name not in world.known or not world.entry(name).is_asked)
        return f"unknown: the owner doesn't know {unknown}, and all is quiet" if unknown else ""

    def _problem_at_end(self, world: World) -> str:
        """What does not hold where nothing can happen any more: all leases are released, all references dropped."""
        for name, each in zip(BORROWERS, world.borrowers, strict=False):
            if each.stage not in ("dropped", "dead"):
                return f"a wait for ever: {name}"
        for name, entry in world.entries:
            if (name == RELAY and world.excused) or (world.is_freed and entry.held == 0):
                continue
            if entry != Entry():
                return f"left: {name} has {entry} of an object that nobody holds"
        return ""

    def _violation(self, problem: str, last: World, parents: dict[World, World | None]) -> ViolationError:
        """The error with the trace that leads to a state."""
        way = [last]
        while (step := parents[way[-1]]) is not None:
            way.append(step)
        way.reverse()
        labels = [
            next(label for label, world in self._happens.steps(here) if world == there) for here, there in pairwise(way)
        ]
        lines = [f"{number:3}. {label}" for number, label in enumerate(labels, 1)]
        return ViolationError(f"{problem}, after {len(labels)} steps:\n" + "\n".join(lines))


__all__ = ["Explorer", "ViolationError", "ray"]

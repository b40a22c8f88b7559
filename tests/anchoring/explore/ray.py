"""What Ray does with references to one object, in the model. See the package."""

from __future__ import annotations

from collections.abc import Iterable

from .model import BORROWERS, OWNER, Entry, Message, World

Names = frozenset[str]
NOBODY: Names = frozenset()


def is_alive(world: World, name: str) -> bool:
    """Whether a process lives; registry, owner and (a) relay do."""
    return name not in BORROWERS or world.borrower(name).stage != "dead"


def is_held(world: World) -> bool:
    """Whether the owner keeps the object: somebody has it, as far as it knows, or a task has it as its argument."""
    return bool(world.known) or any(each.in_task and each.stage != "dead" for each in world.borrowers)


def hears(world: World, names: Iterable[str]) -> World:
    """The owner hears that these have the object, and asks those of whom it did not know."""
    new = sorted(set(names) - world.known)
    world = world._replace(known=world.known.union(new))
    return world.sent(*(Message("ask", OWNER, name) for name in new))


def forgets(world: World, name: str) -> World:
    """The owner takes somebody for one who has nothing any more."""
    world = world._replace(known=world.known - {name})
    return world if is_held(world) else world._replace(is_freed=True)


def reports(world: World, name: str, names: Names) -> World:
    """A process that was asked lets go, and says to whom it passed the object."""
    if name in BORROWERS:
        me = world.borrower(name)
        if not me.polled:
            return world.with_borrower(name, me._replace(waiting=(*me.waiting, names)))
        world = world.with_borrower(name, me._replace(polled=False))
    return world.sent(Message("report", name, OWNER, names))


def lets_go(world: World, name: str) -> World:
    """A process drops one of its references."""
    held, passed, is_asked = world.entry(name)
    if held > 1 or not is_asked:
        return world.with_entry(name, Entry(held - 1, passed, is_asked))
    return reports(world.with_entry(name, Entry()), name, passed)


def takes(world: World, name: str) -> World:
    """A process gets one more reference."""
    entry = world.entry(name)
    return world.with_entry(name, entry._replace(held=entry.held + 1))


def passes(world: World, name: str, names: Iterable[str]) -> World:
    """A process knows that these have got the object from it, or by it."""
    entry = world.entry(name)
    return world.with_entry(name, entry._replace(passed=entry.passed.union(names) - {name}))


def answers(world: World, name: str) -> tuple[World, Names]:
    """A process answers a call that brought the object: what it knows goes with the answer, and it forgets it."""
    entry = world.entry(name)
    names = entry.passed | ({name} if entry.held else NOBODY)
    return world.with_entry(name, entry._replace(passed=NOBODY)), names


def arrives(world: World, message: Message) -> World | None:
    """A message of Ray's own arrives; None if it is none."""
    what, source, target, names = message
    if what == "ask":
        if not is_alive(world, target):
            return forgets(world, target)
        entry = world.entry(target)
        if entry.held:
            return world.with_entry(target, entry._replace(is_asked=True))
        return reports(world.with_entry(target, Entry()), target, entry.passed)
    if what == "report":
        world = forgets(hears(world, names), source)
        if source in BORROWERS and is_alive(world, source):
            me = world.borrower(source)
            if me.waiting:
                world = world.with_borrower(source, me._replace(waiting=me.waiting[1:]))
                return world.sent(Message("report", source, OWNER, me.waiting[0]))
            return world.with_borrower(source, me._replace(polled=True))
        return world
    if what == "news":
        return hears(world, names)
    if what == "death":
        return forgets(world, source)
    return None


def touches(world: World, name: str) -> tuple[World, bool]:
    """A process takes its count to zero and up again; whether Ray has forgotten the object in between, as it does when it reports."""
    entry = world.entry(name)
    if entry.is_asked:
        return reports(world.with_entry(name, Entry(entry.held)), name, entry.passed), True
    return world, not entry.passed


def ends_task(world: World, name: str) -> World:
    """The task that brought the object returns: its answer says who has it, to the owner itself."""
    world, names = answers(world.with_borrower(name, world.borrower(name)._replace(in_task=False)), name)
    world = hears(world, names)
    return world if is_held(world) else world._replace(is_freed=True)


def is_gone(world: World, name: str) -> World:
    """A process is dead, and everybody knows: its successor, which has the same name in the model, is another process."""
    without = {name}
    world = world._replace(
        entries=tuple((other, entry._replace(passed=entry.passed - without)) for other, entry in world.entries),
        messages=tuple(each._replace(names=each.names - without) for each in world.messages),
        borrowers=tuple(
            each._replace(waiting=tuple(names - without for names in each.waiting)) for each in world.borrowers
        ),
    )
    for other, entry in world.entries:
        world = world.with_entry(other, entry)  # which Ray may delete by now
    return forgets(world, name) if name in world.known else world

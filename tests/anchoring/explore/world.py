"""What may happen next in a state: the steps of the loans, the registry, the relay, deaths, and the passing of time."""

from __future__ import annotations

from collections.abc import Iterator

from safe_refs._ray.counts import Touch as Touched
from safe_refs.anchoring import lending

from . import ray
from .model import BORROWERS, OBJECT, OWNER, REGISTRY, RELAY, SOURCE, Borrower, Entry, Message, Scope, World

LONG_S = 6.0  # longer than any of a loan's waits
LATE_S = 60.0  # the caller's deadline
LONG_AGO_S = -100.0
LOOKS = 3
CHOSEN = (" drops", " is released", " is killed", " ends")  # what users do, or not

Steps = Iterator[tuple[str, World]]


def first(scope: Scope) -> World:
    """The state in which all begins: each borrower is about to call `dumps`."""
    loaded = frozenset(name for name, begin in zip(BORROWERS, scope.begins, strict=False) if begin == "loaded")
    known = frozenset(name for name, begin in zip(BORROWERS, scope.begins, strict=False) if begin == "known")
    entries: dict[str, Entry] = {
        name: Entry(1, is_asked=name in known) for name, _ in zip(BORROWERS, scope.begins, strict=False)
    }
    if loaded:
        entries[REGISTRY], known = Entry(1, loaded, is_asked=True), known | {REGISTRY}
    return World(
        entries=tuple(sorted(entries.items())),
        known=known,
        leases=frozenset({"source"} if loaded else ()),
        messages=(),
        borrowers=tuple(
            Borrower(is_busy=scope.busy and not place, in_task=begin == "task")
            for place, begin in enumerate(scope.begins)
        ),
        life=0,
        loans=frozenset(),
        lent=frozenset(),
        kills=scope.kills,
        relay_dies=scope.relay_dies,
    )


class Happens:
    """All that may happen, in a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def steps(self, world: World) -> Steps:
        """Each with a label."""
        for message in world.first_messages():
            yield (
                f"{message.what}: {message.source} to {message.target}",
                self._arrives(world.without(message), message),
            )
        for name, borrower in zip(BORROWERS, world.borrowers, strict=False):
            yield from self._borrower(world, name, borrower)
        yield from self._registry(world)
        yield from self._relay(world)

    # Calls, as they arrive.

    def _arrives(self, world: World, message: Message) -> World:
        found = ray.arrives(world, message)
        if found is not None:
            return found
        what, source, target, names = message
        if target in BORROWERS:
            return world if not ray.is_alive(world, target) else self._answered(world, target, what, names)
        if what == "hold":
            world = world._replace(loans=world.loans | {source}, lent=world.lent | {source})
            world, names = ray.answers(ray.takes(world, RELAY), RELAY)
            return world.sent(Message("held", RELAY, source, names))
        if what == "give":
            if source not in world.loans:
                return world.sent(Message("gave nothing", RELAY, source))
            world = ray.passes(world._replace(loans=world.loans - {source}), RELAY, [source])
            return ray.lets_go(world, RELAY).sent(Message("gave", RELAY, source))
        if what == "pin":
            entry = world.entry(REGISTRY)
            if entry.passed and entry.is_asked:  # it reports to the owners first
                world = world.with_entry(REGISTRY, entry._replace(passed=ray.NOBODY))
                world = world.sent(Message("news", REGISTRY, OWNER, entry.passed))
            is_unsure = world.has_let_go and not world.leases and self.scope.makes_sure
            world = world if world.leases else ray.takes(world, REGISTRY)
            world, names = ray.answers(world._replace(leases=world.leases | {source}), REGISTRY)
            return world.sent(Message("pinned, unsure" if is_unsure else "pinned", REGISTRY, source, names))
        if what == "back":
            if not world.leases:
                return world._replace(excused=True)
            return ray.passes(world, REGISTRY, [source]).sent(
                Message("hold and give", REGISTRY, RELAY, frozenset([source]))
            )
        if what == "hold and give":
            world = world._replace(lent=world.lent | names)
            world, names = ray.answers(ray.takes(world, RELAY), RELAY)
            world = ray.lets_go(ray.passes(world, RELAY, [REGISTRY]), RELAY)
            return world.sent(Message("held and gave", RELAY, REGISTRY, names))
        assert what == "held and gave", what
        return ray.passes(world, REGISTRY, names)

    def _answered(self, world: World, name: str, what: str, names: frozenset[str]) -> World:
        me = world.borrower(name)
        if what == "held":
            if me.stage != "lends":
                return ray.passes(world, name, names)
            return ray.passes(world.with_borrower(name, me._replace(stage="lent", life=world.life)), name, names)
        if what.startswith("pinned"):
            me = me._replace(is_pinned=True, is_unsure=me.is_unsure or what == "pinned, unsure")
            return ray.passes(world.with_borrower(name, me), name, names)
        return world.with_borrower(name, me._replace(owes_give=False, is_missed=what != "gave"))

    def _asks_back(self, world: World, name: str) -> World:
        return world.sent(Message("back", name, REGISTRY)) if self.scope.asks_back else world

    # A borrower.

    def _borrower(self, world: World, name: str, me: Borrower) -> Steps:
        if me.stage == "dead":
            return
        if me.is_busy:
            yield f"{name}'s call is answered", world.with_borrower(name, me._replace(is_busy=False))
        if me.stage == "lends" and not me.is_pinned and not me.owes_give and not self._under_way(world, name):
            yield f"{name} lends and pins", world.sent(Message("hold", name, RELAY), Message("pin", name, REGISTRY))
        if me.stage == "lent" and me.is_pinned:
            state, step = lending.begun([OBJECT], frozenset([OBJECT]), LATE_S, me.now, is_unsure=me.is_unsure)
            yield f"{name}'s loan begins", self._now(world, name, me._replace(stage="loan", loan=state, step=step))
        if me.stage == "no relay" and me.is_pinned:
            yield f"{name} finds no relay", world.with_borrower(name, me._replace(stage="over", depends=True))
        if me.stage == "loan":
            yield from self._loan(world, name, me)
        owes = me.owes_give or me.is_missed
        may_look = self._is_quiet(world) or (self.scope.silent and world.entry(RELAY) != Entry())
        if me.looks and me.stage in ("over", "dropped") and not owes and may_look:
            yield f"{name} looks", self._looked(world, name, me)
        is_missed = me.is_missed or (
            me.owes_give and me.life != world.life and not self._under_way(world, name, "give")
        )
        if is_missed and self._is_quiet(world):
            missed = world.with_borrower(name, me._replace(owes_give=False, is_missed=False))
            yield f"{name} misses the relay", self._asks_back(missed, name)
        if me.stage == "over" and me.in_task:
            yield f"{name}'s task ends", ray.ends_task(world, name)
        if me.stage == "over" and not me.in_task and not me.is_busy:
            dropped = world.with_borrower(name, me._replace(stage="dropped"))
            yield f"{name} drops", ray.lets_go(dropped, name)
        if world.kills:
            yield f"{name} is killed", self._killed(world, name, me)

    def _under_way(self, world: World, name: str, *whats: str) -> bool:
        return any(
            name in (each.source, each.target) and (not whats or each.what in whats)
            for each in world.messages
            if each.what not in ("ask", "report", "death", "news")
        )

    def _looked(self, world: World, name: str, me: Borrower) -> World:
        """`loans` looks after what was lent."""
        is_shared = me.looks == LOOKS and len(world.lent) > 1
        is_left = me.life != world.life or world.entry(RELAY) != Entry() or is_shared
        asks = is_left or me.has_asked
        looks = me.looks - 1 if asks else 0
        world = world.with_borrower(name, me._replace(looks=looks, life=world.life, has_asked=is_left))
        world = world._replace(excused=world.excused or (asks and not looks))
        return self._asks_back(world, name) if asks else world

    def _is_quiet(self, world: World) -> bool:
        """Whether so much time may have passed that all that was under way has arrived."""
        entry = world.entry(REGISTRY)
        return not (world.messages or (entry.is_asked and entry.passed))

    def _killed(self, world: World, name: str, me: Borrower) -> World:
        looked = me.stage in ("over", "dropped") and not me.looks
        dead = Borrower(stage="dead", is_pinned=me.is_pinned, depends=me.depends or me.stage not in ("over", "dropped"))
        world = world.with_borrower(name, dead).with_entry(name, Entry())
        world = world._replace(kills=world.kills - 1, excused=world.excused or not looked)
        world = world.sent(Message("death", name, OWNER))
        return world if ray.is_held(world) else world._replace(is_freed=True)

    def _loan(self, world: World, name: str, me: Borrower) -> Steps:
        state, step = me.loan, me.step
        assert state is not None
        assert step is not None
        later = me._replace(now=me.now + LONG_S) if me.now < LATE_S else me
        match step:
            case lending.Touch():
                shown, at, source = Touched.BUSY, LONG_AGO_S, None
                if self._begin(name) == "loaded":
                    at, source = 0.0, SOURCE
                if not me.is_busy:
                    world, is_reported = ray.touches(world, name)
                    me = world.borrower(name)
                    shown = Touched.REPORTED if is_reported else Touched.UNKNOWN
                for matters in (False, True) if source and shown is Touched.UNKNOWN else (False,):
                    seen = {OBJECT: lending.Seen(shown, at, source, matters)}
                    yield (
                        f"{name} touches: {shown.name}",
                        self._on(world, name, me, lending.touched(state, seen, me.now)),
                    )
            case lending.Anchor(sources):
                is_done = "source" not in world.leases or not (
                    world.entry(REGISTRY).passed or any(each.what == "news" for each in world.messages)
                )
                if is_done:
                    yield (
                        f"{name}'s source is anchored",
                        self._on(world, name, me, lending.asked(state, sources, me.now)),
                    )
                yield (
                    f"{name}'s source is not anchored",
                    self._on(world, name, later, lending.asked(state, sources, later.now)),
                )
            case lending.Pause():
                yield f"{name} pauses", self._on(world, name, me, lending.paused(state))
                yield f"{name} pauses for long", self._on(world, name, later, lending.paused(state))
            case lending.Look():
                if world.entry(REGISTRY).is_asked:
                    yield f"{name} sees it", self._on(world, name, me, lending.looked(state, me.now, is_anchored=True))
                unseen = lending.looked(state, me.now, is_anchored=False)
                yield f"{name} looks in vain", self._on(world, name, me, unseen)
            case lending.Return():
                gives = world.sent(Message("give", name, RELAY))
                me = me._replace(owes_give=True)
                if not me.waiting or not self.scope.confirms:
                    yield f"{name} returns", self._on(gives, name, me, lending.returned(state, me.now, is_sent=True))
                if self.scope.confirms:
                    yield (
                        f"{name} returns, to confirm",
                        self._on(gives, name, me, lending.returned(state, me.now, is_sent=False)),
                    )
            case lending.Confirm(ids):
                if me.life == world.life and world.entry(RELAY) == Entry():
                    yield f"{name} confirms", self._on(world, name, me, lending.confirmed(state, ()))
                elif self.scope.silent or self._is_quiet(world):
                    yield f"{name} confirms in vain", self._on(world, name, later, lending.confirmed(state, ids))

    def _begin(self, name: str) -> str:
        return self.scope.begins[BORROWERS.index(name)]

    def _now(self, world: World, name: str, me: Borrower) -> World:
        return world.with_borrower(name, me)

    def _on(self, world: World, name: str, me: Borrower, following: lending.Next) -> World:
        state, step = following
        if not isinstance(step, lending.Over):
            return world.with_borrower(name, me._replace(loan=state, step=step))
        if step.once_more and me.tries:
            again = me._replace(stage="lends", is_pinned=False, tries=me.tries - 1, loan=None, step=None, now=0.0)
            return world.with_borrower(name, again)
        over = me._replace(
            stage="over",
            loan=None,
            step=None,
            now=0.0,
            depends=bool(step.unreported),
            looks=LOOKS if self.scope.looks else 0,
        )
        return world.with_borrower(name, over)

    # The registry, and the relay.

    def _registry(self, world: World) -> Steps:
        entry = world.entry(REGISTRY)
        lends = any(each.what in ("hold and give", "held and gave") for each in world.messages)
        if entry.held and entry.is_asked and entry.passed and not lends:
            reported = world.with_entry(REGISTRY, entry._replace(passed=ray.NOBODY))
            yield "a round of the registry", reported.sent(Message("news", REGISTRY, OWNER, entry.passed))
        ready = all(
            each.stage in ("over", "dropped", "dead") and not (each.owes_give or each.is_missed or each.looks)
            for each in world.borrowers
        )
        ready = ready and not any(REGISTRY in (each.source, each.target) for each in world.messages)
        if self.scope.released or ready:
            for lease in sorted(world.leases):
                left = world.leases - {lease}
                if left or not lends:
                    released = world._replace(leases=left)
                    if not left:
                        released = ray.lets_go(released._replace(has_let_go=True), REGISTRY)
                    yield f"{lease} is released", released

    def _relay(self, world: World) -> Steps:
        for name in sorted(world.loans):
            if (self.scope.slow and self._is_quiet(world)) or not ray.is_alive(world, name):
                dropped = world._replace(loans=world.loans - {name})
                yield f"the relay drops {name}'s loan", ray.lets_go(dropped, RELAY)
        if world.relay_dies:
            calls = ("hold", "give", "hold and give")
            gone = [each for each in world.messages if RELAY in (each.source, each.target)]
            left = world._replace(relay_dies=False, life=world.life + 1, loans=frozenset(), lent=frozenset())
            left = left.with_entry(RELAY, Entry())
            for each in gone:
                left = left.without(each)
            failed = {each.source for each in gone if each.what in calls}
            failed.update(each.target for each in gone if each.what == "held")
            for name in failed.intersection(BORROWERS):
                me = left.borrower(name)
                if me.stage == "lends":
                    left = left.with_borrower(name, me._replace(stage="no relay"))
            yield "the relay is killed", ray.is_gone(left, RELAY)

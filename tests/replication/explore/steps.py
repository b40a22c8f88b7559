"""The steps: everything that can happen next in a state of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from safe_refs.errors import SafeRefsError
from safe_refs.registry.wire import NotNow, Silence
from safe_refs.replication.merging import Ask, Repair

from .clients import begin, given_up, go_on, with_call
from .model import (
    BACKS,
    DOWN,
    EARLY,
    FIRST,
    NAMES,
    READS,
    RENEWALS,
    TAKES,
    USES,
    Client,
    Ledger,
    Network,
    Op,
    Story,
    World,
    with_story,
)
from .shard_steps import ShardSteps
from .shards import EXPIRED, LOST, NOT_FOUND, OWN

_REFUSED = ("use", "take", *RENEWALS)


class Steps(ShardSteps):
    """The states that follow one another."""

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that can happen next."""
        ledger = self.ledgers.values[world[6]]
        network = self.networks.values[world[5]]
        for number in (0, 1, 2):
            yield from self._client_steps(world, number, ledger, network)
        for shard in (0, 1):
            if world[shard] == DOWN:
                yield self._restart(world, shard, ledger)
            else:
                yield from self._shard_steps(world, shard, ledger, network)
        for index, (shard, call) in enumerate(network.orphans):
            if index == 0 or network.orphans[index - 1] != (shard, call):
                state, _ = self.shards.do(world[shard], call)
                rest = network.orphans[:index] + network.orphans[index + 1 :]
                yield (
                    f"shard {shard} gets a call that nobody waits for: {self._name(call)}",
                    self._moved(world, {shard: state}, network=network._replace(orphans=rest)),
                )
        if self.scope.borrowed and ledger.deaths:
            yield from self._maker_dies(world, ledger, network)

    def _client_steps(self, world: World, number: int, ledger: Ledger, network: Network) -> Iterator[tuple[str, World]]:
        client = self.clients.values[world[2 + number]]
        op = client.op
        if op is None:
            for kind, lease in client.program[0] if client.program else ():
                story = ledger.stories[lease]
                if kind in BACKS and client.got != BACKS[kind]:
                    continue  # it has nothing to give back
                if story.stage == ("" if kind == "pin" else "held") or (kind in EARLY and story.stage == "pinning"):
                    yield self._begin(world, number, kind, lease, ledger, network)
            return
        what = f"client {number}'s {op.kind} of {NAMES[op.lease]}"
        if op.machine is None:
            yield from self._wait_for_it(world, number, op, ledger, what)
            return
        for shard in (0, 1):
            call = op.calls[shard]
            if call[0] == "sent":
                if world[shard] == DOWN or call[1]:
                    failed = with_call(op, shard, ("here", Silence.DEAD))
                    yield f"{what} fails at shard {shard}", self._go_on(world, number, failed, ledger, network)
                if world[shard] != DOWN:
                    yield from self._deliver(world, number, op, shard, ledger, network, what)
            elif call[0] == "done":
                there = with_call(op, shard, ("here", call[1]))
                yield (
                    f"{what} is answered by shard {shard}: {self._said(call[1])}",
                    self._go_on(world, number, there, ledger, network),
                )
        if ledger.lates or (ledger.deaths and op.kind == "pin"):
            yield self._give_up_waiting(world, number, op, ledger, network, what)
        if ledger.deaths and not op.only_looks:
            yield from self._die(world, number, op, ledger, network)

    def _begin(
        self, world: World, number: int, kind: str, lease: int, ledger: Ledger, network: Network
    ) -> tuple[str, World]:
        story = ledger.stories[lease]
        settled = not self.scope.is_shaky or self._settled_of(world, lease, network)
        flag = kind == "resolve" and story.ended and (settled or not story.crashed)
        flag = flag or (kind in EARLY and story.stage == "held")
        flag = flag or (kind in _REFUSED and self._may_have_ended(lease, story))
        others = self._that_may_be_refused(world, number, lease) if kind in BACKS else {}
        if story.loose and self._settled_of(world, lease, network):
            story = story._replace(loose=False)
        program = self.clients.values[world[2 + number]].program
        in_time = story.renewed or not self.scope.ttl
        begun = begin(Op(kind, lease, flag, len(program), in_time), self.scope)
        if kind == "pin":
            # The epoch is that of a payload that is out before the answers are here.
            risk = not self.scope.strict and self._both_out(world)
            story = story._replace(stage="pinning", epoch=ledger.epoch, risk=risk)
        elif kind in ("release", *TAKES):
            story = story._replace(enders=min(3, story.enders + 1))
        elif kind in BACKS:
            is_calm = ledger.crashes == self.scope.crashes or self._settled_of(world, lease, network)
            loose = story.loose or not is_calm
            takes = story.takes - (kind == "back take")
            story = story._replace(wins=story.wins - 1, takes=takes, gave_back=True, loose=loose)
        elif kind == "shorten":
            story = story._replace(shortened=True)
        elif kind == "use" and self.scope.uses[lease] is not None:
            story = story._replace(users=story.users + 1)
        if self.scope.is_shaky:
            out = sum(1 << shard for shard in (0, 1) if self._is_out(world, shard, lease))
            story = story._replace(crashed=(0 if settled else story.crashed) | out)
        moved = {**others, 2 + number: self.clients(Client(program[1:], begun))}
        after = self._moved(world, moved, ledger=with_story(ledger, lease, story))
        return f"client {number} begins to {kind} {NAMES[lease]}", after

    def _that_may_be_refused(self, world: World, number: int, lease: int) -> dict[int, int]:
        """The clients, other than that one, that are asking for something that the lease may refuse, flagged."""
        found = {}
        for index in {2, 3, 4} - {2 + number}:
            client = self.clients.values[world[index]]
            if client.op is not None and client.op.lease == lease and client.op.kind in _REFUSED:
                found[index] = self.clients(client._replace(op=client.op._replace(flag=True)))
        return found

    def _call_of(self, number: int, op: Op, shard: int, ledger: Ledger) -> int:
        """The call that an op makes to a shard."""
        ask = op.ask
        if isinstance(ask, Repair):
            return self.shards.calls(("missed", op.lease, ask.missing[0]))
        if op.kind == "pin":
            return self.shards.calls(("pin", op.lease, b"maker" if self.scope.borrowed else b""))
        if op.kind == "release":
            return self.shards.calls(("release", op.lease))
        assert isinstance(ask, Ask)
        epoch = ledger.stories[op.lease].epoch
        if op.kind in BACKS:
            return self.shards.calls(("back", op.lease, op.kind == "back take", bytes([number, op.turn + 1])))
        if op.kind in RENEWALS:
            ttl = FIRST if op.kind == "shorten" else 10.0 * (number + 1)
            return self.shards.calls(("renew", op.lease, epoch, ttl, op.kind == "lengthen", ask.decided))
        use = bytes([number, op.turn]) if ask.counts else b""
        return self.shards.calls(("resolve", op.lease, epoch, op.kind in TAKES, use))

    def _deliver(
        self, world: World, number: int, op: Op, shard: int, ledger: Ledger, network: Network, what: str
    ) -> Iterator[tuple[str, World]]:
        call = self._call_of(number, op, shard, ledger)
        state, answer = self.shards.do(world[shard], call)
        if answer in (NOT_FOUND, LOST) and self.shards.shown[world[shard]].recovering:
            self._problem = f"not found while recovering: shard {shard} says {self._said(answer)} of {NAMES[op.lease]}"
        world = self._moved(world, {shard: state})
        if answer in (NotNow.DOUBTFUL, NOT_FOUND, LOST) and not op.only_looks:
            ledger = self._forgetful(ledger, op.lease, 1 << shard)  # it does not know of this use, at first
        for doubled in (False, True)[: 1 + (ledger.doubles > 0 and not op.only_looks)]:
            if doubled:
                network = _with_orphans(network, [(shard, call)])
                ledger = ledger._replace(doubles=ledger.doubles - 1)
            label = f"{what} reaches shard {shard}{', and is doubled' * doubled}: {self._said(answer)}"
            if ledger.crashes and not op.only_looks:
                # The answer is under way, and a crash may come before it.
                waiting = with_call(op, shard, ("done", answer))
                yield (
                    label + " (the answer is under way)",
                    self._moved(
                        world, {2 + number: self._with_op(world, number, waiting)}, network=network, ledger=ledger
                    ),
                )
            else:
                yield label, self._go_on(world, number, with_call(op, shard, ("here", answer)), ledger, network)

    def _go_on(self, world: World, number: int, op: Op, ledger: Ledger, network: Network) -> World:
        """A client has learned something, and acts on it."""
        op, verdict = go_on(op, self.scope)
        if verdict is None:
            return self._moved(world, {2 + number: self._with_op(world, number, op)}, network=network, ledger=ledger)
        if op.kind == "pin" and isinstance(verdict, (SafeRefsError, Silence)):
            return self._undo(world, number, op.lease, ledger, network)
        story = self._judged(op, verdict, ledger)
        is_won = not isinstance(verdict, (SafeRefsError, Silence))
        return self._moved(
            world,
            {2 + number: self._with_op(world, number, None, op.kind if is_won and op.kind in BACKS.values() else "")},
            network=network,
            ledger=with_story(ledger, op.lease, story),
        )

    def _wait_for_it(self, world: World, number: int, op: Op, ledger: Ledger, what: str) -> Iterator[tuple[str, World]]:
        """Who has the payload before its pin was acknowledged asks again, until its patience ends, which outlasts any pin."""
        story = ledger.stories[op.lease]
        again = begin(op._replace(flag=story.stage == "held"), self.scope)
        yield f"{what} is made again", self._moved(world, {2 + number: self._with_op(world, number, again)})
        if story.stage != "pinning":
            after = self._moved(world, {2 + number: self._with_op(world, number, None)})
            if story.stage == "held" and op.flag:
                self._problem = self._early_end(op, "not found", story)
            yield f"{what} is given up", after

    def _give_up_waiting(
        self, world: World, number: int, op: Op, ledger: Ledger, network: Network, what: str
    ) -> tuple[str, World]:
        """A client's time is over. What is under way may arrive all the same."""
        left = self._under_way(world, number, op, ledger)
        if op.kind != "pin":  # one that is not answered in time promises nothing
            late = sum(1 << shard for shard in (0, 1) if op.calls[shard][0] in ("sent", "done"))
            ledger = self._forgetful(ledger, op.lease, late)
            if op.kind in BACKS:
                ledger = with_story(ledger, op.lease, ledger.stories[op.lease]._replace(loose=True))
        ledger = ledger._replace(lates=ledger.lates - 1) if ledger.lates else ledger._replace(deaths=ledger.deaths - 1)
        after = self._go_on(world, number, given_up(op), ledger, _with_orphans(network, left))
        return f"{what} is not answered in time", after

    def _under_way(self, world: World, number: int, op: Op, ledger: Ledger) -> list[tuple[int, int]]:
        return [
            (shard, self._call_of(number, op, shard, ledger))
            for shard in (0, 1)
            if op.calls[shard][0] == "sent" and world[shard] != DOWN and not op.only_looks
        ]

    def _judged(self, op: Op, verdict: Any, ledger: Ledger) -> Story:
        """What a call has promised, or whether it breaks what was."""
        story, name = ledger.stories[op.lease], NAMES[op.lease]
        if verdict is Silence.LATE:
            return story
        if verdict in (NOT_FOUND, LOST):
            self._problem = self._early_end(op, self._said(verdict), story)
        elif verdict is OWN:
            if ledger.crashes == self.scope.crashes:
                self._problem = (
                    f"early end: a {op.kind} of {name} is refused for its own sake, and no shard has crashed"
                )
        elif isinstance(verdict, SafeRefsError):
            others = story._replace(
                enders=story.enders - (op.kind in TAKES), users=max(0, story.users - (op.kind == "use"))
            )
            may_be = (story.gave_back and story.risk) or (op.kind in _REFUSED and (op.flag or story.loose))
            may_be = may_be or not op.in_time or (verdict is EXPIRED and story.risk)
            if not self._may_have_ended(op.lease, others) and story.stage == "held" and not may_be:
                self._problem = f"early end: nobody else ended {name}, and a {op.kind} says {self._said(verdict)}"
        elif op.kind in READS:
            if op.kind == "resolve" and op.flag and story.ended and not story.risk:
                self._problem = f"resurrection: {name} had ended, and a resolve that began afterwards gives items"
        elif op.kind == "pin":
            return story._replace(stage="held", epoch=verdict.generation)
        elif op.kind in RENEWALS:
            return story._replace(renewed=self.scope.ttl)
        elif op.kind == "release":
            return story._replace(released=True)
        elif op.kind in BACKS:
            return story._replace(
                enders=story.enders - (op.kind == "back take"), users=story.users - (op.kind == "back")
            )
        elif op.kind in USES:
            most, wins = self.scope.uses[op.lease] or 1, story.wins + 1
            if wins > most and not story.risk:
                self._problem = f"at most once: {name} was given out {wins} times, and may be {most}"
            return story._replace(wins=wins, takes=story.takes + (op.kind in TAKES))
        return story

    def _early_end(self, op: Op, said: str, story: Story) -> str:
        """What is broken if a lease is not there, for who asks; empty if that may be."""
        if self._may_have_ended(op.lease, story) or story.risk or not op.in_time:
            return ""
        if op.kind in EARLY and story.stage == "pinning":
            return (
                f"early end: {NAMES[op.lease]} may be under way, and an {op.kind} that says {said} does not wait for it"
            )
        if story.stage != "held" or (op.kind in EARLY and not op.flag):
            return ""
        return f"early end: {NAMES[op.lease]} is held, and a {op.kind} says {said}"

    def _may_have_ended(self, lease: int, story: Story) -> bool:
        """Whether enough calls were begun that a lease may have ended; or its first ttl may have passed."""
        most = self.scope.uses[lease]
        has_passed = self.scope.ttl and (story.shortened or not story.renewed)
        return story.enders > 0 or (most is not None and story.users >= most) or has_passed

    def _undo(self, world: World, number: int, lease: int, ledger: Ledger, network: Network) -> World:
        """A pin has not come to a good end, and its maker lives: it releases the lease."""
        call = self.shards.calls(("release", lease))
        network = _with_orphans(network, [(shard, call) for shard in (0, 1) if world[shard] != DOWN])
        ledger = with_story(ledger, lease, ledger.stories[lease]._replace(stage="undone"))
        return self._moved(world, {2 + number: self._with_op(world, number, None)}, network=network, ledger=ledger)

    def _die(self, world: World, number: int, op: Op, ledger: Ledger, network: Network) -> Iterator[tuple[str, World]]:
        """A client dies, and each of its calls that are under way may be lost."""
        ledger = ledger._replace(deaths=ledger.deaths - 1)
        sent = self._under_way(world, number, op, ledger)
        if op.kind == "pin":
            ledger = with_story(ledger, op.lease, ledger.stories[op.lease]._replace(stage="abandoned"))
        for keep in product((False, True), repeat=len(sent)):
            kept = [message for message, is_kept in zip(sent, keep, strict=True) if is_kept]
            yield (
                f"client {number} dies; {len(sent) - len(kept)} of its calls are lost, {len(kept)} go on",
                self._moved(
                    world, {2 + number: self.clients(Client(()))}, network=_with_orphans(network, kept), ledger=ledger
                ),
            )


def _with_orphans(network: Network, calls: list[tuple[int, int]]) -> Network:
    return network._replace(orphans=tuple(sorted((*network.orphans, *calls))))

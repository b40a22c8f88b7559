"""The steps: everything that can happen next in a state of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from .clients import SENT, begin, with_call
from .model import DOWN, LOOK_UPS, NAMES, Book, Client, Network, Op, Story, World, replaced, told
from .whole import Whole


class Steps(Whole):
    """The states that follow one another."""

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
                    begun = begin(Op(kind, lease, strict, (SENT, SENT), len(client.program)), self._holders[lease])
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
                            book=told(book, lease, story),
                        ),
                    )
            return
        what = f"{who}'s {op.kind} of {NAMES[op.lease]}"
        for shard in (0, 1):
            call = op.calls[shard]
            if call[0] == "sent":
                if world[shard] == DOWN or call[1]:
                    failed = with_call(op, shard, ("no",))
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
                waiting = with_call(op, shard, ("done", answer))
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
        return self._go_on(world, number, with_call(op, shard, status), book, network)

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
            book=told(book, op.lease, story),
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
        book = told(book, lease, book.stories[lease]._replace(stage="undone"))
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
            dead = told(book, op.lease, story._replace(stage="abandoned"))
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
                        world, {shard: state}, network=network._replace(news=replaced(network.news, shard, message))
                    ),
                )
        else:
            call, leases = under_way
            arrived = network._replace(news=replaced(network.news, shard, None))
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
                    network=network._replace(told=replaced(network.told, shard, answer)),
                ),
            )
        else:
            state, lossy = self.shards.do(world[shard], self._give_up)
            yield self._settled(world, shard, state, lossy, book, network, f"shard {shard} gives up waiting")

    def _settled(
        self, world: World, shard: int, state: int, lossy: bool | None, book: Book, network: Network, label: str
    ) -> tuple[str, World]:
        network = network._replace(told=replaced(network.told, shard, None))
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
                moved[index] = self.clients(client._replace(op=with_call(client.op, shard, ("sent", True))))
        orphans = tuple(orphan for orphan in network.orphans if orphan[0] != shard)
        news, told = network.news[shard], network.told[other]
        for keep_news, keep_told in product(
            (False, True)[: 1 + (news is not None)], (False, True)[: 1 + (told is not None)]
        ):
            kept = tuple(sorted((*orphans, (other, news[0])))) if keep_news and news is not None else orphans
            left = Network(told=replaced((None, None), other, told if keep_told else None), orphans=kept)
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

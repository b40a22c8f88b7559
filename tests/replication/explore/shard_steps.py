"""The steps of the shards: restarts, news, recovery, crashes, and what becomes of leases whose maker is dead."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from .clients import with_call
from .model import BACKS, DOWN, FIRST, NAMES, Ledger, Network, Story, World, replaced, with_story
from .whole import Whole


class ShardSteps(Whole):
    """What shards do by themselves, and what happens to them."""

    def _restart(self, world: World, shard: int, ledger: Ledger) -> tuple[str, World]:
        state = self.shards.start(shard, ledger.epoch, True)
        return f"shard {shard} restarts", self._moved(world, {shard: state})

    def _shard_steps(self, world: World, shard: int, ledger: Ledger, network: Network) -> Iterator[tuple[str, World]]:
        other = 1 - shard
        up = world[other] != DOWN
        shown = self.shards.shown[world[shard]]
        if ledger.crashes and (self.scope.both or (up and not self.shards.shown[world[other]].recovering)):
            yield from self._crash(world, shard, ledger, network)
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
                if ledger.doubles:
                    fewer = ledger._replace(doubles=ledger.doubles - 1)
                    late = arrived._replace(orphans=tuple(sorted((*network.orphans, (other, call)))))
                    yield label + ", and are doubled", self._moved(world, {other: got}, network=late, ledger=fewer)
                    yield (
                        label + ", and the answer is lost",
                        self._moved(world, {other: got, shard: back}, network=arrived, ledger=fewer),
                    )
        if self._is_timed(world[shard]):
            state, _ = self.shards.do(world[shard], self._time_passes)
            yield f"the first ttl passes at shard {shard}", self._moved(world, {shard: state})
        if self.scope.borrowed:
            yield from self._anchor(world, shard, network)
        # Recovery.
        if not shown.recovering:
            return
        answer = network.shared[shard]
        if answer is not None:
            state, lossy = self.shards.do(world[shard], answer)
            label = f"shard {shard} takes what it held: {self._name(answer)}"
            yield self._settled(world, shard, state, lossy, ledger, network, label)
        elif up:
            state, answer = self.shards.do(world[other], self._share)
            yield (
                f"shard {other} shares what it knows with shard {shard}",
                self._moved(
                    world,
                    {other: state},
                    network=network._replace(shared=replaced(network.shared, shard, answer)),
                ),
            )
        else:
            state, lossy = self.shards.do(world[shard], self._give_up)
            yield self._settled(world, shard, state, lossy, ledger, network, f"shard {shard} gives up waiting")

    def _is_timed(self, state: int) -> bool:
        """Whether a shard holds a lease that ends when its first ttl passes."""
        return any(at is not None and at[0] == "live" and at[-1] == FIRST for at in self.shards.shown[state].leases)

    def _anchor(self, world: World, shard: int, network: Network) -> Iterator[tuple[str, World]]:
        """The owner of what was borrowed answers a shard; what that shard finds to be lost, it asks the other for."""
        for lease in (0, 1):
            depends = self.shards.shown[world[shard]].depends[lease]
            if depends:
                state, asked = self.shards.do(world[shard], self.shards.calls(("owner answers", lease)))
                call = self.shards.calls(("missed", lease, shard))
                calls = [(other, call) for other in asked if depends == "gone" and world[other] != DOWN]
                orphans = tuple(sorted((*network.orphans, *calls)))
                yield (
                    f"the owner answers shard {shard} about {NAMES[lease]}, which is {depends}",
                    self._moved(world, {shard: state}, network=network._replace(orphans=orphans)),
                )

    def _maker_dies(self, world: World, ledger: Ledger, network: Network) -> Iterator[tuple[str, World]]:
        """The maker of a lease dies, on which shards still depend: what they hold may be gone from each; from all is not promised."""
        for lease, story in enumerate(ledger.stories):
            dependent = [shard for shard in (0, 1) if self.shards.shown[world[shard]].depends[lease] == "maker"]
            if story.stage != "held" or not dependent:
                continue
            for fates in product(("safe", "gone"), repeat=len(dependent)):
                moved = {
                    shard: self.shards.do(world[shard], self.shards.calls(("maker dies", lease, fate)))[0]
                    for shard, fate in zip(dependent, fates, strict=True)
                }
                others = [self.shards.shown[world[shard]].leases[lease] for shard in (0, 1) if shard not in dependent]
                has_other = any(at and (at[0] != "ended" or not at[-1]) for at in others)
                risk = story.risk or ("safe" not in fates and not has_other)
                after = with_story(ledger._replace(deaths=ledger.deaths - 1), lease, story._replace(risk=risk))
                if self.scope.ttl and not self._settled_of(world, lease, network):
                    gone = sum(1 << shard for shard, fate in zip(dependent, fates, strict=True) if fate == "gone")
                    after = self._forgetful(after, lease, gone)  # with what it held goes what it knows of its time
                yield f"the maker of {NAMES[lease]} dies, {', '.join(fates)}", self._moved(world, moved, ledger=after)

    def _settled(
        self, world: World, shard: int, state: int, lossy: bool | None, ledger: Ledger, network: Network, label: str
    ) -> tuple[str, World]:
        network = network._replace(shared=replaced(network.shared, shard, None))
        if lossy:
            ledger = ledger._replace(epoch=ledger.epoch + 1)
            state, _ = self.shards.do(state, self.shards.calls(("new epoch", ledger.epoch)))
            label += "; a new epoch begins"
        return label, self._moved(world, {shard: state}, network=network, ledger=ledger)

    def _crash(self, world: World, shard: int, ledger: Ledger, network: Network) -> Iterator[tuple[str, World]]:
        """A shard is gone, and what was under way to it; what it sent may still arrive."""
        other = 1 - shard
        ledger = ledger._replace(crashes=ledger.crashes - 1)
        moved = {shard: DOWN}
        undelivered = network.news[other]
        if undelivered is not None:
            moved[other], _ = self.shards.do(world[other], self.shards.calls(("give back", undelivered[1])))
        for index in (2, 3, 4):
            client = self.clients.values[world[index]]
            if client.op is not None and client.op.kind in BACKS:
                story = ledger.stories[client.op.lease]._replace(loose=True)
                ledger = with_story(ledger, client.op.lease, story)
            if client.op is not None and client.op.calls[shard][0] in ("sent", "done"):
                moved[index] = self.clients(client._replace(op=with_call(client.op, shard, ("sent", True))))
        orphans = tuple(orphan for orphan in network.orphans if orphan[0] != shard)
        news, shared = network.news[shard], network.shared[other]
        for keep_news, keep_shared in product(
            (False, True)[: 1 + (news is not None)], (False, True)[: 1 + (shared is not None)]
        ):
            kept = tuple(sorted((*orphans, (other, news[0])))) if keep_news and news is not None else orphans
            left = Network(shared=replaced((None, None), other, shared if keep_shared else None), orphans=kept)
            after = self._moved(world, moved, network=left, ledger=ledger)
            if self.scope.is_shaky:
                stories = [self._shaken(world, after, shard, lease, network) for lease in (0, 1)]
                after = self._moved(after, {}, ledger=ledger._replace(stories=(stories[0], stories[1])))
            yield f"shard {shard} crashes", after

    def _shaken(self, before: World, after: World, shard: int, lease: int, network: Network) -> Story:
        """What is promised about a lease when a shard crashes."""
        story = self.ledgers.values[after[6]].stories[lease]
        if not story.stage:
            return story
        if not self._settled_of(before, lease, network):
            story = self._forgetful(self.ledgers.values[after[6]], lease, 1 << shard).stories[lease]
        return story._replace(risk=not self.scope.strict and (story.risk or self._both_out(after)))

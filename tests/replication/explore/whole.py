"""The whole: both shards, the clients, the network and the ledger, as seven small numbers."""

from __future__ import annotations

from typing import Any

from .clients import Scope
from .model import LEASES, READS, Client, Interned, Ledger, Network, Op, Story, World, with_story
from .shards import ENDED, EXPIRED, LOST, NOT_FOUND, OWN, Shards

_WORDS = {
    id(NOT_FOUND): "not found",
    id(LOST): "lost",
    id(ENDED): "ended",
    id(EXPIRED): "expired",
    id(OWN): "ended by its own use",
}


class Whole:
    """The parts of all states of a scope, numbered. What breaks a property is kept as the problem."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.shards = Shards(scope.table, scope.rules, scope.uses, scope.limits, scope.ttl)
        self.clients: Interned[Client] = Interned()
        self.networks: Interned[Network] = Interned()
        self.ledgers: Interned[Ledger] = Interned()
        self._problem = ""
        self._tells = False  # the labels of steps are wanted whole: for a trace
        call = self.shards.calls
        self._send_news, self._share, self._give_up = call(("send news",)), call(("share",)), call(("give up",))
        self._time_passes = call(("time passes",))

    def first(self) -> World:
        """Two empty shards, and clients that have done nothing yet."""
        x, y = (Story(most=most) for most in self.scope.uses)
        ledger = Ledger(self.scope.crashes, self.scope.deaths, self.scope.doubles, self.scope.lates, stories=(x, y))
        a, b, c = (self.clients(Client(program)) for program in self.scope.programs)
        shards = (self.shards.start(0, 1, False), self.shards.start(1, 1, False))
        return (*shards, a, b, c, self.networks(Network()), self.ledgers(ledger))

    def _settled_of(self, world: World, lease: int, network: Network) -> bool:
        """Whether both shards know the same of a lease, and nothing that concerns it is under way."""
        shown = [self.shards.shown[world[shard]] for shard in (0, 1)]
        return (
            network == Network()
            and not any(self._is_out(world, shard, lease) or LEASES[lease] in shown[shard].news for shard in (0, 1))
            and not any(
                (op := self.clients.values[client].op) is not None and op.lease == lease and op.kind not in READS
                for client in world[2:5]
            )
        )

    def _is_out(self, world: World, shard: int, lease: int) -> bool:
        """Whether a shard can't speak for a lease: it is down or recovering, or doubts what it holds."""
        shown = self.shards.shown[world[shard]]
        return shown.recovering or shown.depends[lease] in ("safe", "gone")

    def _forgetful(self, ledger: Ledger, lease: int, shards: int) -> Ledger:
        """Those shards (a bit each) may not know what they should of a lease: if that is both, nothing is promised about it."""
        if not self.scope.is_shaky:
            return ledger
        story = ledger.stories[lease]
        crashed = story.crashed | shards
        return with_story(
            ledger, lease, story._replace(crashed=crashed, risk=not self.scope.strict and (story.risk or crashed == 3))
        )

    def _both_out(self, world: World) -> bool:
        """Whether both shards are down or recovering."""
        shown = self.shards.shown
        return shown[world[0]].recovering and shown[world[1]].recovering

    def _with_op(self, world: World, number: int, op: Op | None, got: str = "") -> int:
        return self.clients(Client(self.clients.values[world[2 + number]].program, op, got))

    def _moved(
        self, world: World, parts: dict[int, int], *, network: Network | None = None, ledger: Ledger | None = None
    ) -> World:
        parts_of = list(world)
        for index, part in parts.items():
            parts_of[index] = part
        if network is not None:
            parts_of[5] = self.networks(network)
        if ledger is not None:
            parts_of[6] = self.ledgers(ledger)
        return tuple(parts_of)  # type: ignore[return-value] # of the same length

    def _said(self, answer: Any) -> str:
        """An answer, in words."""
        if isinstance(answer, bytes):
            return "held"
        return _WORDS.get(id(answer)) or str(answer)

    def _name(self, call: int) -> str:
        return " ".join(str(part) for part in self.shards.calls.values[call]) if self._tells else ""

"""The shadow ledger: what was made, by whom, when, and what has been done to it. Pure; times are passed in, seconds of one clock.

It asks safe_refs nothing. What always holds: a failure is written down before it is brought about, and an order before it is given,
so that whatever an answer can be due to is known when it is judged (`rules`). Spans, not moments: what somebody did between `begun`
and `ended` may have happened at any time in it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .history import History
from .values import Stamp

NEVER = math.inf
DURABLE_TIMEOUT_S = 40.0  # how long copies are waited for


@dataclass
class Process:
    """A process that owns objects or has borrowed some.

    Attributes:
        token: its name.
        player: the player that it is, or was.
        job: its job.
        node: its node.
        kind: `actor`, a plain one, whose borrowed references are anchored; `async`, an actor with an event loop; `driver`, with a
            thread of its own; `client`, the server of a Ray Client.
        dying_at: since when it may be dead.
        dead_at: when it was surely dead, or as good as that.
        left: it ends in order, and so takes nothing along that it has only borrowed.
        doomed: its death is no surprise, although the ledger is not told of it: a planted fault.
        keeps: live references to objects that it was told to keep, and not yet told to drop.
        held_until: when it last had a reference to an object that it has borrowed, as far as that is over.
    """

    token: str
    player: str
    job: str
    node: str
    kind: str = "actor"
    dying_at: float = NEVER
    dead_at: float = NEVER
    left: bool = False
    doomed: bool = False
    keeps: Counter[Stamp] = field(default_factory=Counter)
    held_until: dict[Stamp, float] = field(default_factory=dict)


@dataclass
class Object:
    """An object of the storm's.

    Attributes:
        stamp: what its value says.
        owner: the process that it dies with.
        node: where its only sure copy is; empty where Ray chose, and where it can make it again.
        made_at: when it was ordered.
        is_actor: it is an actor, which its owner has created there.
    """

    stamp: Stamp
    owner: Process
    node: str
    made_at: float
    is_actor: bool = False


@dataclass
class Span:
    """Something that was done at some time in it; `ended` is `NEVER` while that isn't known, or if it was broken off."""

    begun: float
    ended: float = NEVER


@dataclass
class Payload:
    """A payload, and all that has been done to it.

    Attributes:
        number: its number, which is in its label.
        objects: what it leads to.
        maker: the process that made it.
        made: from the order to the answer; an end of `NEVER` is an order that was broken off.
        ttl: seconds, or None.
        uses: loads allowed, or None.
        durable: its objects are copies, which the registry owns.
        waited: its maker waited until the registry held it.
        flushed_at: when its maker, which had not waited, knew that the registry held it.
        sources: payloads that its maker loaded to make it; with any, its maker has borrowed the objects.
        expires_from: when it may run out first.
        expires_by: when it must have run out.
        releases: releases and takes.
        loads: those that counted, or may have.
        data: its bytes.
    """

    number: int
    objects: tuple[Object, ...]
    maker: Process
    made: Span
    ttl: float | None = None
    uses: int | None = None
    durable: bool = False
    waited: bool = True
    flushed_at: float = NEVER
    sources: tuple[Payload, ...] = ()
    expires_from: float = NEVER
    expires_by: float = NEVER
    releases: list[Span] = field(default_factory=list)
    loads: list[Span] = field(default_factory=list)
    data: bytes = b""

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """What its values say."""
        return tuple(each.stamp for each in self.objects)

    @property
    def since(self) -> float:
        """When the first of the payloads that it comes from was ordered."""
        return min([self.made.begun, *(source.since for source in self.sources)])

    @property
    def family(self) -> set[int]:
        """The numbers of this payload and of those that it comes from."""
        return {self.number}.union(*(source.family for source in self.sources))

    def __str__(self) -> str:
        """For a trace: which it is, and what is special about it."""
        text = f"payload {self.number} {'forwarded' if self.sources else f'of {self.maker.player}'}"
        text += ", durable" * self.durable + ", not waited for" * (not self.waited)
        return text + ", with actors" * any(each.is_actor for each in self.objects)

    @property
    def _is_loose(self) -> bool:
        """Whether owners may not know the registry before its maker has let go: what is made of such a one is no better."""
        if not self.sources or self.durable:
            return False
        late = not self.waited or self.maker.kind in ("async", "driver", "client")
        return late or any(each.is_actor for each in self.objects) or any(each._is_loose for each in self.sources)

    def depending(self) -> Iterable[Payload]:
        """Of this payload and those that it comes from, those whose leases depend on their maker for a while; see docs/deaths.md."""
        if self._is_loose and self.maker.kind != "client":
            yield self
        for source in () if self.durable else self.sources:
            yield from source.depending()

    def borrowed(self) -> Iterable[Payload]:
        """Of this payload and those that it comes from, those whose makers had borrowed the objects."""
        if self.sources:
            yield self
            for source in self.sources:
                yield from source.borrowed()


class Ledger:
    """All payloads, processes and failures of a storm. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.payloads: dict[int, Payload] = {}
        self.processes: dict[str, Process] = {}
        self.shard_failures: list[Span] = []  # from the kill until the registry had recovered
        self.shard_pauses: list[Span] = []
        self.troubles: list[Span] = []  # what slows calls, and loses nothing: paused players, a silent service, …
        self.copy_owner = Process("the registry", "the registry", "", "")  # survives what the registry survives
        self.lost_nodes: dict[str, Span] = {}  # from when processes there may die until all are dead
        self.lost_jobs: dict[str, float] = {}
        self.history = History()
        self._number = 0

    def born(self, token: str, player: str, job: str, node: str, kind: str = "actor") -> Process:
        """A process has said hello."""
        with self.lock:
            if token not in self.processes:
                self.history.tell(time.monotonic(), f"{player}, {kind}, is {token} on {node}")
            found = self.processes.setdefault(token, Process(token, player, job, node, kind))
            # It may have said so with its last breath.
            lost, job_died = self.lost_nodes.get(node, Span(NEVER)), self.lost_jobs.get(job, NEVER)
            found.dying_at = min(found.dying_at, lost.begun, job_died)
            found.dead_at = min(found.dead_at, lost.ended, job_died)
            return found

    def dying(self, at: float, *, token: str = "", job: str = "", node: str = "") -> None:
        """A process, all of a job, or all of a node and the objects there, are about to die."""
        with self.lock:
            if node:
                self.lost_nodes.setdefault(node, Span(at)).ended = at
            if job:
                self.lost_jobs[job] = at
            self.history.tell(at, f"dies: {token} {job} {node}")
            for each in self.processes.values():
                if (token and each.token == token) or (job and each.job == job) or (node and each.node == node):
                    each.dying_at = min(each.dying_at, at)
                    each.dead_at = min(each.dead_at, at)

    def squeezing(self, at: float, node: str) -> None:
        """From now on any process of a node may die; all that are left do when the node does."""
        with self.lock:
            self.lost_nodes[node] = Span(at)
            self.history.tell(at, f"memory is short: {node}")
            for each in self.processes.values():
                if each.node == node:
                    each.dying_at = min(each.dying_at, at)

    def leaving(self, token: str, at: float) -> None:
        """A process is about to leave the cluster, in order."""
        with self.lock:
            process = self.processes[token]
            self.history.tell(at, f"leaves: {token}")
            process.left = process.dying_at == NEVER
            process.dying_at = min(process.dying_at, at)
            process.dead_at = min(process.dead_at, at)

    def had(self, process: Process, payload: Payload, until: float) -> None:
        """A process has had references of a payload for a moment."""
        with self.lock:
            process.held_until |= dict.fromkeys(payload.stamps, until)

    def keeps(self, process: Process, payload: Payload) -> None:
        """A process keeps references of a payload from now on."""
        with self.lock:
            process.keeps.update(payload.stamps)

    def dropped(self, process: Process, payload: Payload, at: float) -> None:
        """A process has dropped references of a payload that it kept."""
        with self.lock:
            process.keeps.subtract(payload.stamps)
            self.had(process, payload, at)

    def trouble(self, at: float, until: float = NEVER) -> Span:
        """Calls may take longer for a while."""
        with self.lock:
            self.troubles.append(Span(at, until))
            return self.troubles[-1]

    def shard_dying(self, at: float) -> Span:
        """A shard is about to die; whoever sees that the registry has recovered ends the span."""
        with self.lock:
            self.shard_failures.append(Span(at))
            return self.shard_failures[-1]

    def shard_pausing(self, at: float, until: float) -> None:
        """A shard is about to be stopped for a while."""
        with self.lock:
            self.shard_pauses.append(Span(at, until))

    def order(
        self,
        at: float,
        maker: Process,
        sizes: int = 0,
        *,
        actors: int = 0,
        by_task: bool = False,
        ttl: float | None = None,
        uses: int | None = None,
        durable: bool = False,
        waited: bool = True,
        sources: Sequence[Payload] = (),
    ) -> Payload:
        """A payload is about to be made: of `sizes` new objects and `actors` of the maker's, or of those of `sources`."""
        with self.lock:
            self._number += 1
            number = self._number
            objects = tuple(
                Object(Stamp(number, slot), maker, "" if by_task else maker.node, at) for slot in range(sizes)
            )
            objects += tuple(
                Object(Stamp(number, sizes + slot), maker, maker.node, at, is_actor=True) for slot in range(actors)
            )
            objects += tuple(each for source in sources for each in source.objects)
            if durable:
                objects = tuple(Object(each.stamp, self.copy_owner, "", at) for each in objects)
            payload = Payload(number, objects, maker, Span(at), ttl, uses, durable, waited, sources=tuple(sources))
            if ttl is not None:
                payload.expires_from = at + ttl
            self.payloads[number] = payload
            return payload

    def handed_to(self, payload: Payload, maker: Process) -> None:
        """It was not made by the process that the order was given to: that had died, and the next one under its name got it."""
        with self.lock:
            old, payload.maker = payload.maker, maker
            for each in payload.objects:
                if each.stamp.payload == payload.number and each.owner is old:
                    each.owner = maker
                    each.node = each.node and maker.node

    def made(self, payload: Payload, at: float, data: bytes) -> None:
        """It has been made."""
        with self.lock:
            payload.made.ended = at
            payload.data = data
            if payload.ttl is not None:
                payload.expires_by = at + payload.ttl

    def flushed(self, payload: Payload, at: float) -> None:
        """Its maker knows that the registry holds it."""
        with self.lock:
            payload.flushed_at = at
            if payload.ttl is not None:
                payload.expires_by = max(payload.expires_by, at + payload.ttl)

    def broken_off(self, payload: Payload, at: float) -> None:
        """Its maker died, or failed, while it was making it: there may be a lease all the same, which nobody knows of."""
        with self.lock:
            if payload.ttl is not None:
                payload.expires_by = at + max(payload.ttl, DURABLE_TIMEOUT_S if payload.durable else 0.0)

    def renewing(self, payload: Payload, at: float, ttl: float) -> None:
        """A renewal is about to begin, that may have any outcome."""
        with self.lock:
            payload.expires_from = min(payload.expires_from, at + ttl)
            payload.expires_by = NEVER

    def renewed(self, payload: Payload, begun: float, at: float, ttl: float, *, surely: bool) -> None:
        """A renewal is over; `surely` done, or with unknown outcome."""
        with self.lock:
            payload.expires_by = at + ttl
            if surely:
                payload.expires_from = begun + ttl
                payload.flushed_at = min(payload.flushed_at, at)

    def releasing(self, payload: Payload, at: float) -> Span:
        """A release, or a take, is about to begin."""
        with self.lock:
            payload.releases.append(Span(at))
            return payload.releases[-1]

    def loading(self, payload: Payload, at: float) -> Span:
        """A load is about to begin."""
        with self.lock:
            payload.loads.append(Span(at))
            return payload.loads[-1]

    def forget(self, payload: Payload, span: Span) -> None:
        """A load that was refused has used nothing up."""
        with self.lock:
            payload.loads.remove(span)

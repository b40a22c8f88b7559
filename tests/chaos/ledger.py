"""The shadow ledger: what was made, by whom, when, and what has been done to it. Pure; times are passed in, seconds of one clock.

It asks safe_refs nothing. What always holds: a failure is written down before it is brought about, and an order before it is given,
so that whatever an answer can be due to is known when it is judged (`rules`). Spans, not moments: what somebody did between `begun`
and `ended` may have happened at any time in it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from .values import Stamp

NEVER = math.inf


@dataclass
class Process:
    """A process that owns objects or has borrowed some.

    Attributes:
        token: its name.
        player: the player that it is, or was.
        job: its job.
        node: its node.
        dying_at: since when it may be dead.
        doomed: its death is no surprise, although the ledger is not told of it: a planted fault.
    """

    token: str
    player: str
    job: str
    node: str
    dying_at: float = NEVER
    doomed: bool = False


@dataclass
class Object:
    """An object of the storm's.

    Attributes:
        stamp: what its value says.
        owner: the process that it dies with.
        node: where its only sure copy is; empty where Ray chose, and where it can make it again.
        made_at: when it was ordered.
    """

    stamp: Stamp
    owner: Process
    node: str
    made_at: float


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

    def makers(self) -> list[tuple[Process, float]]:
        """The borrowers that it went through, each with the time when it had done its part."""
        if not self.sources:
            return []
        return [(self.maker, self.made.ended), *(each for source in self.sources for each in source.makers())]


class Ledger:
    """All payloads, processes and failures of a storm. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.payloads: dict[int, Payload] = {}
        self.processes: dict[str, Process] = {}
        self.shard_failures: list[Span] = []  # from the kill until the registry had recovered
        self.shard_pauses: list[Span] = []
        self.lost_nodes: dict[str, float] = {}
        self.lost_jobs: dict[str, float] = {}
        self._number = 0

    def born(self, token: str, player: str, job: str, node: str) -> Process:
        """A process has said hello."""
        with self.lock:
            found = self.processes.setdefault(token, Process(token, player, job, node))
            # It may have said so with its last breath.
            lost = (self.lost_nodes.get(node, NEVER), self.lost_jobs.get(job, NEVER))
            found.dying_at = min(found.dying_at, *lost)
            return found

    def dying(self, at: float, *, token: str = "", job: str = "", node: str = "") -> None:
        """A process, all of a job, or all of a node and the objects there, are about to die."""
        with self.lock:
            if node:
                self.lost_nodes[node] = at
            if job:
                self.lost_jobs[job] = at
            for each in self.processes.values():
                if (token and each.token == token) or (job and each.job == job) or (node and each.node == node):
                    each.dying_at = min(each.dying_at, at)

    def shard_dying(self, at: float) -> Span:
        """A shard is about to die; whoever sees that the registry has recovered ends the span."""
        with self.lock:
            self.shard_failures.append(Span(at))
            return self.shard_failures[-1]

    def shard_pausing(self, at: float, until: float) -> None:
        """A shard is about to be stopped for a while."""
        with self.lock:
            self.shard_pauses.append(Span(at, until))

    def lately(self, at: float) -> str:
        """For whoever looks into a finding: which failures there were in the minute before a time."""
        with self.lock:
            shards = [f"a shard's {at - each.begun:.1f} s" for each in self.shard_failures if 0 <= at - each.begun < 60]
            nodes = [f"a node's {at - each:.1f} s" for each in self.lost_nodes.values() if 0 <= at - each < 60]
        return f" (failures before it was made: {', '.join([*shards, *nodes]) or 'none'})"

    def order(
        self,
        at: float,
        maker: Process,
        sizes: int = 0,
        *,
        by_task: bool = False,
        ttl: float | None = None,
        uses: int | None = None,
        sources: Sequence[Payload] = (),
    ) -> Payload:
        """A payload is about to be made: of `sizes` new objects of the maker's, or of those of `sources`."""
        with self.lock:
            self._number += 1
            number = self._number
            objects = tuple(
                Object(Stamp(number, slot), maker, "" if by_task else maker.node, at) for slot in range(sizes)
            )
            objects += tuple(each for source in sources for each in source.objects)
            payload = Payload(number, objects, maker, Span(at), ttl, uses, tuple(sources))
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

    def broken_off(self, payload: Payload, at: float) -> None:
        """Its maker died, or failed, while it was making it: there may be a lease all the same, which nobody knows of."""
        with self.lock:
            if payload.ttl is not None:
                payload.expires_by = at + payload.ttl

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

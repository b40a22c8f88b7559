"""The stories that go on all the time, several at once: the life of a payload each, in one of the ways that payloads are used.

Which story comes next, with what sizes, terms and players, is drawn from the seed; how they fall together with the killer's deeds is
not, so that a storm that is run again is the same storm, not the same film.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial

from . import cluster, special
from .figures import Report
from .ledger import NEVER, Payload
from .stage import Kept, Stage
from .troupe import Seat

_SIZES = (2_000, 150_000, 400_000, 1_200_000)
BOUND_S = 25.0  # a ttl of payloads that shall end otherwise, as people are advised to give one
FILL_SIZE = 4_000_000


class Stories(threading.Thread):
    """One thread of stories.

    Args:
        number: of the thread.
        stage: where they are played.
        report: where they are counted.
        over: set when no more is to begin.
    """

    def __init__(self, number: int, stage: Stage, report: Report, over: threading.Event) -> None:
        super().__init__(name=f"stories {number}", daemon=True)
        self.stage = stage
        self.report = report
        self._over = over
        self.source = random.Random(f"stories {report.parameters.seed} {number}")
        self.error: BaseException | None = None

    def run(self) -> None:
        plain = ("handed on", "ran out", "counted", "taken", "forwarded", "forwarded", "prolonged", "long held")
        kinds = (*plain, *special.STORIES)
        tell: dict[str, Callable[[], None]] = {
            "handed on": self._handed_on,
            "ran out": self._ran_out,
            "counted": self._counted,
            "taken": self._taken,
            "forwarded": self._forwarded,
            "prolonged": self._prolonged,
            "long held": self._long_held,
            **{name: partial(story, self) for name, story in special.STORIES.items()},
        }
        try:
            while not self._over.is_set():
                kind = self.source.choice(kinds)
                tell[kind]()
                self.report.count(self.report.stories, kind)
        except Exception as error:  # the storm's own fault: whoever waits for this thread raises it
            self.error = error

    def make(self, ttl: float | None = BOUND_S, uses: int | None = None) -> Payload | None:
        """A payload of any player's, of a few objects, now and then with an actor among them."""
        sizes = [self.source.choice(_SIZES) for _ in range(self.source.choice((1, 1, 2, 3)))]
        by_task = self.source.random() < 0.3
        actors = int(self.source.random() < 0.06)
        wait = self.source.random() >= 0.1 or ttl is None  # what never was in the registry must end by itself
        with self.stage.seat(self.source) as seat:
            return self.stage.make(seat, sizes, actors=actors, by_task=by_task, ttl=ttl, uses=uses, wait=wait)

    def read(self, payload: Payload, *, keep: bool = False, get: bool = True, take: bool = False) -> Kept | None:
        """By somebody else, of another job if possible."""
        job = payload.maker.job
        with self.stage.seat(self.source, lambda seat: seat.job != job) as seat:
            if self.source.random() < 0.05 and seat.process is not None and seat.process.kind != "client":
                self.stage.fork(seat, payload)  # a child of a client's is Ray's own matter
            return self.stage.read(seat, payload, keep=keep, get=get, take=take)[1]

    def release(self, payload: Payload) -> None:
        """By anybody, and once more if that wasn't answered."""
        for _ in range(20):
            with self.stage.seat(self.source) as seat:
                reply = self.stage.release(seat, payload)
            if reply is not None and not reply.error:
                return

    def sleep(self, least: float, most: float) -> None:
        """For some time."""
        time.sleep(self.source.uniform(least, most))

    def _handed_on(self) -> None:
        """Made, read by several, released; a live reference outlives the lease; who comes late is told so."""
        payload = self.make(self.source.choice((None, BOUND_S)))
        if payload is None:
            return
        self.sleep(0, 2)
        kept = self.read(payload, keep=True, get=self.source.random() < 0.5)
        self.sleep(0, 1)
        self.read(payload)
        self.release(payload)
        self.read(payload)
        self.sleep(0, 4)
        if kept is not None:
            self.stage.look(kept)
            self.stage.drop(kept)

    def _long_held(self) -> None:
        """A lease that goes through a good deal, and then a live reference that does."""
        payload = self.make(None)
        if payload is None:
            return
        for _ in range(3):
            self.sleep(1, 4)
            self.read(payload)
        kept = self.read(payload, keep=True, get=False)
        self.release(payload)
        for _ in range(2):
            self.sleep(1, 4)
            if kept is not None:
                self.stage.look(kept)
        if kept is not None:
            self.stage.drop(kept)

    def _ran_out(self) -> None:
        """Lives for its ttl, and no longer."""
        ttl = self.source.uniform(2, 5)
        payload = self.make(ttl)
        if payload is None:
            return
        self.read(payload)
        self.sleep(0, ttl)
        self.read(payload)
        time.sleep(max(0.0, payload.expires_by + 4.0 - time.monotonic()))
        self.read(payload)

    def _prolonged(self) -> None:
        """Lives as long as it is renewed."""
        payload = self.make(5.0)
        if payload is None:
            return
        for _ in range(2):
            self.sleep(1, 2.5)
            with self.stage.seat(self.source) as seat:
                self.stage.renew(seat, payload, 5.0)
            self.read(payload)
        self.sleep(2, 3)
        self.read(payload)
        self.release(payload)

    def _counted(self) -> None:
        """As many loads as it allows."""
        payload = self.make(BOUND_S, uses=self.source.randint(1, 3))
        if payload is None:
            return
        for _ in range((payload.uses or 0) + 1):
            self.read(payload)
            self.sleep(0, 1)

    def _taken(self) -> None:
        """Read once, by whoever takes it."""
        payload = self.make()
        if payload is None:
            return
        self.sleep(0, 2)
        self.read(payload, take=True)
        self.read(payload)

    def _forwarded(self) -> None:
        """Loaded by a process that makes a payload of its own of it, and perhaps dies at once."""
        first, second = self.make(), self.make() if self.source.random() < 0.3 else None
        payloads = [each for each in (first, second) if each is not None]
        if not payloads:
            return
        last: Payload | None = None
        for _ in range(self.source.randint(1, 2)):
            with self.stage.seat(self.source, _of_other_job(payloads[0])) as seat:
                how = self.source.random()
                has_actors = any(read.is_actor for each in payloads for read in each.objects)  # those can't be copied
                durable = how < 0.1 and not has_actors
                last = self.stage.forward(seat, payloads, BOUND_S, durable=durable, wait=how < 0.9)
                if last is not None and self.report.parameters.anchored and self.source.random() < 0.2:
                    self.kill(seat)
            for each in payloads:
                self.release(each)
            if last is None:
                return
            payloads = [last]
        kept = self.read(payloads[0], keep=True)
        self.sleep(0, 4)
        self.read(payloads[0])
        self.release(payloads[0])
        self.sleep(0, 2)
        if kept is not None:
            self.stage.look(kept)
            self.stage.drop(kept)

    def kill(self, seat: Seat) -> None:
        """A maker dies, as soon as its payload is out."""
        if seat.process is not None and seat.process.dying_at == NEVER:
            self.stage.ledger.dying(time.monotonic(), token=seat.process.token)
            cluster.kill(seat.pid)
            self.report.count(self.report.actions, "maker")


def fill(stage: Stage, source: random.Random, objects: int) -> None:
    """More objects at once than a store holds, so that it spills; then all are read elsewhere, and released."""
    payloads = []
    with stage.seat(source) as seat:
        for _ in range(objects):
            made = stage.make(seat, [FILL_SIZE], ttl=None)
            if made is None:
                break
            payloads.append(made)
    for payload in payloads:
        with stage.seat(source) as seat:
            stage.read(seat, payload)
    for payload in payloads:
        for _ in range(20):
            with stage.seat(source) as seat:
                reply = stage.release(seat, payload)
            if reply is not None and not reply.error:
                break


def _of_other_job(payload: Payload) -> Callable[[Seat], bool]:
    return lambda seat: seat.job != payload.maker.job

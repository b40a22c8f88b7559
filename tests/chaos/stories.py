"""The stories that go on all the time, several at once: the life of a payload each, in one of the ways that payloads are used.

Which story comes next, with what sizes, terms and players, is drawn from the seed; how they fall together with the killer's deeds is
not, so that a storm that is run again is the same storm, not the same film.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from . import cluster
from .figures import Report
from .ledger import NEVER, Payload
from .stage import Kept, Stage
from .troupe import Seat

_SIZES = (2_000, 150_000, 400_000, 1_200_000)
_BOUND_S = 25.0  # a ttl of payloads that shall end otherwise, as people are advised to give one
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
        self._stage = stage
        self._report = report
        self._over = over
        self._source = random.Random(f"stories {report.parameters.seed} {number}")
        self.error: BaseException | None = None

    def run(self) -> None:
        kinds = ("handed on", "ran out", "counted", "taken", "forwarded", "forwarded", "prolonged", "long held")
        tell: dict[str, Callable[[], None]] = {
            "handed on": self._handed_on,
            "ran out": self._ran_out,
            "counted": self._counted,
            "taken": self._taken,
            "forwarded": self._forwarded,
            "prolonged": self._prolonged,
            "long held": self._long_held,
        }
        try:
            while not self._over.is_set():
                kind = self._source.choice(kinds)
                tell[kind]()
                self._report.count(self._report.stories, kind)
        except Exception as error:  # the storm's own fault: whoever waits for this thread raises it
            self.error = error

    def _make(self, ttl: float | None = _BOUND_S, uses: int | None = None) -> Payload | None:
        sizes = [self._source.choice(_SIZES) for _ in range(self._source.choice((1, 1, 2, 3)))]
        by_task = self._source.random() < 0.3
        with self._stage.seat(self._source) as seat:
            return self._stage.make(seat, sizes, by_task=by_task, ttl=ttl, uses=uses)

    def _read(self, payload: Payload, *, keep: bool = False, get: bool = True, take: bool = False) -> Kept | None:
        """By somebody else, of another job if possible."""
        job = payload.maker.job
        with self._stage.seat(self._source, lambda seat: seat.job != job) as seat:
            return self._stage.read(seat, payload, keep=keep, get=get, take=take)[1]

    def _release(self, payload: Payload) -> None:
        """By anybody, and once more if that wasn't answered."""
        for _ in range(20):
            with self._stage.seat(self._source) as seat:
                reply = self._stage.release(seat, payload)
            if reply is not None and not reply.error:
                return

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self._source.uniform(least, most))

    def _handed_on(self) -> None:
        """Made, read by several, released; a live reference outlives the lease; who comes late is told so."""
        payload = self._make(self._source.choice((None, _BOUND_S)))
        if payload is None:
            return
        self._sleep(0, 2)
        kept = self._read(payload, keep=True, get=self._source.random() < 0.5)
        self._sleep(0, 1)
        self._read(payload)
        self._release(payload)
        self._read(payload)
        self._sleep(0, 4)
        if kept is not None:
            self._stage.look(kept)
            self._stage.drop(kept)

    def _long_held(self) -> None:
        """A lease that goes through a good deal, and then a live reference that does."""
        payload = self._make(None)
        if payload is None:
            return
        for _ in range(3):
            self._sleep(1, 4)
            self._read(payload)
        kept = self._read(payload, keep=True, get=False)
        self._release(payload)
        for _ in range(2):
            self._sleep(1, 4)
            if kept is not None:
                self._stage.look(kept)
        if kept is not None:
            self._stage.drop(kept)

    def _ran_out(self) -> None:
        """Lives for its ttl, and no longer."""
        ttl = self._source.uniform(2, 5)
        payload = self._make(ttl)
        if payload is None:
            return
        self._read(payload)
        self._sleep(0, ttl)
        self._read(payload)
        time.sleep(max(0.0, payload.expires_by + 4.0 - time.monotonic()))
        self._read(payload)

    def _prolonged(self) -> None:
        """Lives as long as it is renewed."""
        payload = self._make(5.0)
        if payload is None:
            return
        for _ in range(2):
            self._sleep(1, 2.5)
            with self._stage.seat(self._source) as seat:
                self._stage.renew(seat, payload, 5.0)
            self._read(payload)
        self._sleep(2, 3)
        self._read(payload)
        self._release(payload)

    def _counted(self) -> None:
        """As many loads as it allows."""
        payload = self._make(_BOUND_S, uses=self._source.randint(1, 3))
        if payload is None:
            return
        for _ in range((payload.uses or 0) + 1):
            self._read(payload)
            self._sleep(0, 1)

    def _taken(self) -> None:
        """Read once, by whoever takes it."""
        payload = self._make()
        if payload is None:
            return
        self._sleep(0, 2)
        self._read(payload, take=True)
        self._read(payload)

    def _forwarded(self) -> None:
        """Loaded by a process that makes a payload of its own of it, and perhaps dies at once."""
        first, second = self._make(), self._make() if self._source.random() < 0.3 else None
        payloads = [each for each in (first, second) if each is not None]
        if not payloads:
            return
        last: Payload | None = None
        for _ in range(self._source.randint(1, 2)):
            with self._stage.seat(self._source, _of_other_job(payloads[0])) as seat:
                last = self._stage.forward(seat, payloads, _BOUND_S)
                if last is not None and self._report.parameters.anchored and self._source.random() < 0.2:
                    self._kill(seat)
            for each in payloads:
                self._release(each)
            if last is None:
                return
            payloads = [last]
        kept = self._read(payloads[0], keep=True)
        self._sleep(0, 4)
        self._read(payloads[0])
        self._release(payloads[0])
        self._sleep(0, 2)
        if kept is not None:
            self._stage.look(kept)
            self._stage.drop(kept)

    def _kill(self, seat: Seat) -> None:
        """The borrower dies, as soon as its payload is out."""
        if seat.process is not None and seat.process.dying_at == NEVER:
            self._stage.ledger.dying(time.monotonic(), token=seat.process.token)
            cluster.kill(seat.pid)
            self._report.count(self._report.actions, "forwarder")


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

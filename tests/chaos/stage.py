"""Orders to players, written into the ledger before they are given, and their answers judged.

What always holds: each answer is judged once, by the rules, and counted; an order that its player did not live to answer may have
been carried out or not, and the ledger takes both for possible from then on.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence

from .figures import Report
from .ledger import Ledger, Payload, Process, Span
from .orders import Make, Read, Reply
from .rules import Answer, Rules, Verdict
from .troupe import HungError, Seat, Troupe

_NO_SEAT_S = 30.0


class Kept:
    """Live references that a player keeps.

    Args:
        payload: that they were resolved from.
        seat: who keeps them.
        token: of its process; they are gone with it.
        name: under which it keeps them.
        span: when they were resolved.
    """

    def __init__(self, payload: Payload, seat: Seat, token: str, name: str, span: Span) -> None:
        self.payload = payload
        self.seat = seat
        self.token = token
        self.name = name
        self.span = span


class Stage:
    """Where the stories are played.

    Args:
        troupe: the players.
        ledger: to write to.
        rules: to judge by.
        report: to count in.
    """

    def __init__(self, troupe: Troupe, ledger: Ledger, rules: Rules, report: Report) -> None:
        self.troupe = troupe
        self.ledger = ledger
        self.rules = rules
        self.report = report
        self._kept = 0

    @contextlib.contextmanager
    def seat(self, source: random.Random, wanted: Callable[[Seat], bool] = lambda _: True) -> Iterator[Seat]:
        """A player for a while; waited for. Takes whoever there is where nobody is wanted for long."""
        deadline = time.monotonic() + _NO_SEAT_S
        while (seat := self.troupe.take_seat(source, wanted)) is None:
            if time.monotonic() > deadline:
                doing = {seat.name: f"{seat.busy.locked()} {seat.pid} {seat.doing}" for seat in self.troupe.seats()}
                raise RuntimeError(f"no player to be had for {_NO_SEAT_S:g} s at {time.monotonic():.1f}: {doing}")
            if time.monotonic() > deadline - _NO_SEAT_S / 2:
                wanted = _anybody
            time.sleep(0.05)
        try:
            yield seat
        finally:
            seat.busy.release()

    def make(
        self, seat: Seat, sizes: Sequence[int], *, actors: int = 0, by_task: bool = False, ttl: float | None = None,
        uses: int | None = None, durable: bool = False, wait: bool = True, swap: bool = False,
    ) -> Payload | None:  # fmt: skip
        """Have a payload made; None if it wasn't."""
        begun = time.monotonic()
        payload = self.ledger.order(
            begun, _process(seat), len(sizes),
            actors=actors, by_task=by_task, ttl=ttl, uses=uses, durable=durable, waited=wait,
        )  # fmt: skip
        order = Make(payload.number, tuple(sizes), by_task, ttl, uses, actors, durable, wait, swap)
        return self._made(payload, begun, seat, "make", order)

    def forward(
        self, seat: Seat, sources: Sequence[Payload], ttl: float | None, *, durable: bool = False, wait: bool = True
    ) -> Payload | None:
        """Have a payload made of the references of others; None if it wasn't."""
        begun = time.monotonic()
        payload = self.ledger.order(begun, _process(seat), ttl=ttl, durable=durable, waited=wait, sources=sources)
        spans = [self.ledger.loading(source, begun) for source in sources]
        orders = [Read(source.data, source.number, source.stamps) for source in sources]
        made = self._made(payload, begun, seat, "forward", orders, payload.number, ttl, durable, wait)
        for span in spans:
            span.ended = time.monotonic()
        self.ledger.had(payload.maker, payload, time.monotonic())
        return made

    def flush(self, seat: Seat, payload: Payload) -> None:
        """Have the maker of a payload wait until the registry holds it, if it is still there."""
        token = payload.maker.token
        if _process(seat).token != token:
            return
        reply = self._ask(payload, time.monotonic(), seat, "flush")
        if reply is not None and not reply.error and reply.token == token:
            self.ledger.flushed(payload, time.monotonic())

    def fork(self, seat: Seat, payload: Payload) -> None:
        """Have a player fork, and the child do what it can."""
        self._ask(payload, time.monotonic(), seat, "fork", payload.data)

    def read(
        self,
        seat: Seat,
        payload: Payload,
        *,
        take: bool = False,
        get: bool = True,
        keep: bool = False,
        stall_s: float = 0.0,
    ) -> tuple[Reply | None, Kept | None]:
        """Have a payload loaded; the answer, and the live references if they are kept."""
        begun = time.monotonic()
        taking = self.ledger.releasing(payload, begun) if take else None
        loading = self.ledger.loading(payload, begun)
        name = ""
        if keep:
            self._kept += 1
            name = f"{payload.number}-{self._kept}-{begun}"
        order = Read(payload.data, payload.number, payload.stamps, take, get, name, stall_s)
        reply = self._ask(payload, begun, seat, "read", order)
        if reply is None:
            return None, None
        if reply.step == "get" or not reply.error:
            loading.ended = time.monotonic()
            if taking is not None:
                taking.ended = time.monotonic()
        elif reply.error != "RegistryUnavailableError":
            self.ledger.forget(payload, loading)
        reader = self.ledger.processes[reply.token]
        if reply.error or not keep:
            self.ledger.had(reader, payload, time.monotonic())
            return reply, None
        self.ledger.keeps(reader, payload)
        return reply, Kept(payload, seat, reply.token, name, Span(begun, time.monotonic()))

    def look(self, kept: Kept) -> None:
        """Read live references again, if they are still there."""
        with kept.seat.busy:
            if self._there(kept):
                begun = time.monotonic()
                reply = self._answer(kept.payload, kept.seat, "look", kept.name, kept.payload.stamps)
                # The next process under that name may have answered, which never had them.
                if reply is not None and reply.token == kept.token:
                    self._judge(kept.payload, begun, kept.seat, reply, kept.span)

    def drop(self, kept: Kept) -> None:
        """Let go of live references."""
        with kept.seat.busy:
            if self._there(kept):
                reply = self._answer(kept.payload, kept.seat, "drop", kept.name)
                if reply is not None and reply.token == kept.token:
                    self.ledger.dropped(self.ledger.processes[kept.token], kept.payload, time.monotonic())

    def release(self, seat: Seat, payload: Payload) -> Reply | None:
        """End a payload."""
        begun = time.monotonic()
        span = self.ledger.releasing(payload, begun)
        reply = self._ask(payload, begun, seat, "release", payload.data)
        if reply is not None and not reply.error:
            span.ended = time.monotonic()
        return reply

    def renew(self, seat: Seat, payload: Payload, ttl: float) -> Reply | None:
        """Prolong a payload."""
        begun = time.monotonic()
        self.ledger.renewing(payload, begun, ttl)
        reply = self._ask(payload, begun, seat, "renew", payload.data, ttl)
        done = reply is not None and not reply.error
        self.ledger.renewed(payload, begun, time.monotonic(), ttl, surely=done)
        return reply

    def _made(self, payload: Payload, begun: float, seat: Seat, method: str, *args: object) -> Payload | None:
        reply = self._answer(payload, seat, method, *args)
        ended = time.monotonic()
        if reply is not None and reply.token != payload.maker.token and seat.process is not None:
            self.ledger.handed_to(payload, seat.process)
        if reply is None or reply.error:
            self.ledger.broken_off(payload, ended)
        else:
            self.ledger.made(payload, ended, reply.payload)
        if reply is not None:
            # A forwarder fails by one of the payloads that it loads.
            about = payload.sources[reply.slot] if reply.error and reply.step == "loads" else payload
            self._judge(about, begun, seat, reply, None)
        return payload if payload.data else None

    def _ask(self, payload: Payload, begun: float, seat: Seat, method: str, *args: object) -> Reply | None:
        reply = self._answer(payload, seat, method, *args)
        if reply is not None:
            self._judge(payload, begun, seat, reply, None)
        return reply

    def _answer(self, about: Payload, seat: Seat, method: str, *args: object) -> Reply | None:
        process = _process(seat)
        self.ledger.history.tell(time.monotonic(), f"{method} by {seat.name} ({process.token})", about.number)
        try:
            reply = seat.ask(method, *args)
        except HungError as error:
            self.report.note(Verdict("hung", str(error)), method)
            return None
        if reply is not None and reply.token != process.token:
            seat.arrive(5.0)  # the order has reached the next process under that name
        if reply is None:
            self.report.count(self.report.calls, "not answered, the player having died")
        said = "nothing, it has died" if reply is None else f"{reply.step} {reply.error} in {reply.call_s:.2f} s"
        self.ledger.history.tell(time.monotonic(), f"{method} by {seat.name} ({process.token}): {said}", about.number)
        return reply

    def _judge(self, payload: Payload, begun: float, seat: Seat, reply: Reply, held: Span | None) -> None:
        ended = time.monotonic()
        player = self.ledger.processes.get(reply.token)
        leaving = player is not None and player.left and player.dying_at <= ended
        answer = Answer(
            Span(begun, ended), reply.step, reply.error, reply.message, reply.slot, reply.call_s, reply.count, leaving
        )
        verdict = self.rules.judge(payload, answer, held)
        self.report.count(self.report.calls, f"{reply.step} {reply.error}".strip())
        if player is not None:
            self.report.count(self.report.players, f"{player.kind}{', leaving' * (leaving and bool(reply.error))}")
        about = f"{payload}, {ended - payload.made.begun:.1f} s old, at {ended:.2f} by {seat.name}"
        if verdict.figure:
            self.report.histories[about] = self.ledger.history.of(payload.family, payload.since - 1)
        self.report.note(verdict, about)

    def _there(self, kept: Kept) -> bool:
        return _process(kept.seat).token == kept.token and bool(kept.seat.pid)


def _process(seat: Seat) -> Process:
    assert seat.process is not None, "a seat is taken only once somebody has said hello from it"
    return seat.process


def _anybody(_: Seat) -> bool:
    return True

"""For the tests of the ledger's rules: payloads, answers, and what the rules say of them."""

from __future__ import annotations

from typing import Any

from .ledger import Ledger, Payload, Process, Span
from .rules import Answer, Rules


def made(ledger: Ledger, owner: Process, **how: Any) -> Payload:
    """A payload of two objects, made from 10 to 11."""
    payload = ledger.order(10.0, owner, 2, **how)
    ledger.made(payload, 11.0, b"payload")
    return payload


def answer(step: str, error: str = "", at: float = 20.0, **more: Any) -> Answer:
    """An answer, which took a second."""
    return Answer(Span(at, at + 1), step, error, **more)


def figure(ledger: Ledger, payload: Payload, given: Answer, *, live_since: float | None = None, **mode: Any) -> str:
    """The figure for which it counts, or the name of what excuses it; empty if it is in order."""
    held = None if live_since is None else Span(live_since, live_since + 0.5)
    verdict = Rules(ledger, **mode).judge(payload, given, held)
    return verdict.excused or verdict.figure or ""

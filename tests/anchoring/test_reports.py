"""What a process remembers of its reports: bounded, by threads at once, and of its own cluster only."""

from __future__ import annotations

import sys
import threading

from safe_refs.anchoring.reports import MOST_ACQUAINTED, MOST_RECENT, RECENT_S, Life, Reports


def test_many_threads_may_note_at_once() -> None:
    """More than it keeps, so that each of them drops the oldest: none meets one that another has just dropped."""
    reports = Reports(lambda: 0.0)
    errors: list[BaseException] = []

    def note(thread: int) -> None:
        try:
            for number in range(30):
                first = (thread * 30 + number) * 400
                reports.note_recent([each.to_bytes(4, "big") for each in range(first, first + 400)], None)
                reports.lately()
        except BaseException as error:  # whatever it is, the test shows it
            errors.append(error)

    pause = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=note, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(pause)
    assert errors == []
    assert len(reports._recent) == MOST_RECENT


def test_a_signals_handler_may_note_in_the_middle() -> None:
    """The lock is the thread's own already then."""
    seen: list[float] = []

    def clock() -> float:
        if not seen:
            seen.append(1.0)
            reports.note_recent([b"by the handler"], None)
        return 1.0

    reports = Reports(clock)
    reports.note_recent([b"by the call"], None)
    assert {reports.recent(id_).at for id_ in (b"by the handler", b"by the call")} == {1.0}


def test_what_was_long_ago_is_not_recent() -> None:
    """Owners know this process by then."""
    now = [10.0]
    reports = Reports(lambda: now[0])
    reports.note_recent([b"a"], None)
    reports.note_said([b"a"], Life(2, b"life"))
    assert reports.lately() == {b"a"}
    now[0] += RECENT_S + 0.1
    assert reports.lately() == set()
    assert reports.take_said() == {}
    assert reports.recent(b"unknown").at < 0


def test_what_was_said_is_taken_once() -> None:
    """Whoever takes it sees to it."""
    reports = Reports(lambda: 0.0)
    reports.note_said([b"a", b"b"], Life(2, b"life"))
    assert reports.take_said() == {Life(2, b"life"): [b"a", b"b"]}
    assert reports.take_said() == {}


def test_owners_are_remembered_up_to_a_number() -> None:
    """The oldest are asked anew."""
    reports = Reports(lambda: 0.0)
    for number in range(MOST_ACQUAINTED + 1):
        reports.acquaint([number.to_bytes(4, "big")])
    assert not reports.is_acquainted((0).to_bytes(4, "big"))
    assert reports.is_acquainted(MOST_ACQUAINTED.to_bytes(4, "big"))
    assert len(reports._acquainted) == MOST_ACQUAINTED

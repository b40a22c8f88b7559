"""An exception, and calls of safe_refs, at every line of ours that a call executes: nothing hangs, and nothing is left behind."""

from __future__ import annotations

import pytest

from .programs import run

CALLED = ("dumps", "borrowed", "loads", "release", "take", "posted")
OTHERS = ("pin", "scope", "pipeline", "many", "pickler", "first", "loop", "table", "control")
# Python itself prints, and drops, what a callback of the collector raises.
DROPPED = "_ray/counts.py"


def check(cluster: str, mode: str, every: int, ways: tuple[str, ...]) -> None:
    """Inject at each so manieth line; print and check the figures."""
    found = run("injector", cluster, mode, str(every), *ways, timeout=880)
    swallowed = [each for each in found["swallowed"] if DROPPED not in each]
    print(
        f"{mode}: {sum(found['lines'].values())} lines {found['lines']}, {found['injections']} injections, "
        f"{len(found['hung'])} hung, {len(found['held'])} left held, {len(found['leases'])} left leases, "
        f"the slowest call took {found['slowest_s']:.2f} s"
    )
    assert found["injections"] >= sum(found["lines"].values()) // every > 0
    assert set(found["lines"]) == set(ways)
    assert (found["hung"], found["held"], found["leases"], swallowed, found["failed"]) == ([], [], [], [], [])


@pytest.mark.parametrize("mode", ["raise", "call"])
def test_at_some_lines(cluster: str, mode: str) -> None:
    """An exception there ends that call alone; a call there works. The thread, and others, go on; leases end; state is put back."""
    check(cluster, mode, 61, CALLED)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["raise", "call"])
@pytest.mark.parametrize("ways", [CALLED, OTHERS], ids=["called", "others"])
@pytest.mark.parametrize("every", [pytest.param(7, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.slow)])
def test_at_every_line(cluster: str, every: int, mode: str, ways: tuple[str, ...]) -> None:
    """The same at every seventh line, or exhaustively."""
    check(cluster, mode, every, ways)

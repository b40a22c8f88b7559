"""A consumer that fails, or is killed, at each line between receiving a message and acknowledging it: nothing is lost, or left."""

from __future__ import annotations

import pytest

from .programs import run


def check(cluster: str, mode: str, every: int, *ways: str, timeout: float = 880) -> None:
    """Deliver a message for each so manieth line; print and check the figures."""
    found = run("consumers", cluster, mode, str(every), *ways, timeout=timeout)
    print(f"{mode}: {found['lines']} lines, {found['counts']}, {len(found['lost'])} lost, {len(found['left'])} left")
    for way, counts in found["counts"].items():
        assert counts["messages"] == -(-found["lines"][way] // every) > 0
        assert counts.get("killed" if mode == "kill" else "failed", 0) > 0.8 * counts["messages"]
    assert (found["lost"], found["left"], found["failed"]) == ([], [], [])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["with", "uses", "async", "many"])
@pytest.mark.parametrize("every", [pytest.param(3, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_fails_at_every_line(cluster: str, every: int, way: str) -> None:
    """The exception keeps the lease; whoever gets the message next has it, or hears that it was consumed. Or exhaustively."""
    check(cluster, "raise", every, way)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_one_that_is_killed_at_every_twentieth_line(cluster: str) -> None:
    """Nothing has happened, but that a use is spent, where they count. A new process for each takes a second."""
    check(cluster, "kill", 20, "uses")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["with", "uses"])
def test_one_that_is_killed_at_every_line(cluster: str, way: str) -> None:
    """The same, exhaustively."""
    check(cluster, "kill", 1, way, timeout=3500)

"""Leaving a cluster in the middle of everything: `ray.shutdown()` at any moment, in any thread. The storm is in `leaving`."""

from __future__ import annotations

import pytest

from .programs import run

_ROUND_S = 12.0  # at most, on average; usually it takes less than two


@pytest.mark.parametrize(
    "rounds",
    [
        6,
        pytest.param(60, marks=pytest.mark.long),
        pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_random_moments(cluster: str, rounds: int) -> None:
    """Calls of every kind, in threads and tasks, while the driver leaves: no Ray starts, each call ends in time, no thread stays.

    And the next connection works, `flush` too.
    """
    found = run("leaving", cluster, str(rounds), "1", timeout=rounds * _ROUND_S + 120)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert (found["rounds"], found["is_worth"]) == (rounds, True)


@pytest.mark.long
def test_a_cluster_that_ends_with_its_driver(cluster: str) -> None:
    """The driver has started it, as many scripts do: with the connection goes the registry, and all that could answer."""
    found = run("leaving", "local", "3", "1", timeout=160)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert found["is_worth"]

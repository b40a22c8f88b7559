"""A Ray Client that leaves in the middle of everything."""

from __future__ import annotations

import pytest

from tests.interrupts.programs import run


@pytest.mark.long
def test_a_client_that_leaves_at_random_moments(cluster: str, port: int) -> None:
    """Calls of every kind are under way: no Ray starts, each call ends in time, no thread stays, and the next connection works."""
    found = run("leaving", f"ray://127.0.0.1:{port}", "6", "1", timeout=160)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert found["is_worth"]

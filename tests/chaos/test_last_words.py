"""That a player of the storm who dies by itself is found with its last words."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from .cluster import last_words
from .ledger import Ledger
from .solo import SoloSeat


@pytest.mark.parametrize(
    ("signal_", "said"),
    [
        (signal.SIGABRT, ["exit status -6", "Fatal Python error: Aborted", "soloist.py"]),
        (signal.SIGKILL, ["exit status -9"]),
    ],
    ids=["a fault", "without a word of its own"],
)
def test_a_driver_that_dies_by_itself(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_: signal.Signals, said: list[str]
) -> None:
    """The ledger knows of no kill: it is a surprise, with what the process and Ray have said of it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    found: list[str] = []
    seat = SoloSeat(
        "alone", "job", "driver", cluster, Ledger(), lambda who, pid: found.append(f"{who}{last_words(tmp_path, pid)}")
    )
    try:
        until = time.monotonic() + 60
        while not seat.arrive(5.0):
            assert time.monotonic() < until
        os.kill(seat.pid, signal_)
        seat.line.process.wait(20)
        while not seat.arrive(5.0):
            assert time.monotonic() < until
    finally:
        seat.line.close()
        seat.line.process.wait(20)
    assert len(found) == 1
    assert [each for each in said if each not in found[0]] == [], found[0]

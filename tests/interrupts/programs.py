"""Runs the programs of this folder, each as a process of its own, and reads what they have found."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.environment import ROOT


def run(program: str, *args: str, timeout: float) -> dict[str, Any]:
    """What a program of this folder prints last."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.interrupts.{program}", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray prints others, if it can
    found: dict[str, Any] = json.loads(lines[-1])
    if found["failed"] or found["hung"]:
        print(done.stderr[-8000:], file=sys.stderr)
    return found

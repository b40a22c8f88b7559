"""Memory is short: Ray kills processes, first those that it may restart, the newest first. The registry is to be the last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


def under_pressure(*args: str) -> Any:
    """What the program has seen."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pressure", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("hog", ["actor", "task", "task without retries"])
def test_the_registry_outlives_a_hog(hog: str, tmp_path: Path) -> None:
    """Be the hog an actor that is not restarted, or a task: it is killed, and the registry and its relays go on with all leases."""
    seen = under_pressure("one", hog, "1", str(tmp_path / "hog"))
    assert seen["hog died"]
    assert {"registry:default", "relay:0", "relay:1"} <= set(seen["living"])
    assert seen["leases"] == seen["of"]


def test_with_replicas_on_other_nodes_nothing_is_lost(tmp_path: Path) -> None:
    """Ray restarts replicas, and so kills the one on that node before the hog; the others have all leases, and it gets them back."""
    seen = under_pressure("two", str(tmp_path / "hog"))
    assert seen["hog died"]
    assert seen["living"] == ["registry:default"]
    assert seen["leases"] == seen["of"]
    assert seen["whole again"]

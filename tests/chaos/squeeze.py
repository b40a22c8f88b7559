"""Memory is short on a node that has come for it: Ray kills processes there until a hog is among them.

All nodes are on one machine, and each node's monitor sees the machine's memory. So a node whose memory can be short is one with a
monitor of its own threshold, a little above what the machine uses just then; the others have Ray's usual one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import pressure
from tests.support.processes import lives

RESOURCE = "short"
_DIES_S = 60.0
_ROOM = 2.0  # times what the hog takes, that must be free


def is_possible() -> bool:
    """Whether this machine has enough memory to waste."""
    total, free = pressure.memory("MemTotal"), pressure.memory("MemAvailable")
    return free - _ROOM * (pressure.threshold() * total - (total - free)) > 0


def environment() -> dict[str, str]:
    """For a node whose memory is about to be short."""
    return {"RAY_memory_monitor_refresh_ms": "250", "RAY_memory_usage_threshold": str(pressure.threshold())}


def hog() -> bool:
    """A task there takes memory until Ray kills it; False if Ray doesn't. Ray kills whatever it may start again before that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hog"
        hogging: Any = pressure.begin_hog("task without retries", str(path), resources={RESOURCE: 1})
        until = time.monotonic() + _DIES_S
        while not (path.exists() and path.read_text()):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        pid = int(path.read_text())
        while lives(pid):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
    return _was_killed(hogging)


def _was_killed(hogging: Any) -> bool:
    """Whether a hog, which has ended, was killed for memory; else there was too much of it for the hog."""
    import ray

    try:
        ray.get(hogging, timeout=_DIES_S)
    except ray.exceptions.OutOfMemoryError:
        return True
    except ray.exceptions.RayError:
        return False
    return False

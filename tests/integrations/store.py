"""What is pinned in the store, for the tests and for the jobs that they start.

Not all that lies there, as in the other tests: the libraries put functions into it, of which Ray may keep a copy, as cache, when a
job ends.
"""

from __future__ import annotations

import time

from safe_refs import _ray
from tests.conftest import SETTLE_S


def pinned() -> int:
    """Bytes that Ray may not drop."""
    return _ray.store_usage().primary_bytes


def pinned_once(limit_bytes: int, timeout_s: float = SETTLE_S) -> int:
    """Bytes that are pinned, once they are no more than this, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while (now := pinned()) > limit_bytes and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def pinned_from(least_bytes: int, timeout_s: float = SETTLE_S) -> int:
    """Bytes that are pinned, once they are as many as this, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while (now := pinned()) < least_bytes and time.monotonic() < deadline:
        time.sleep(0.05)
    return now

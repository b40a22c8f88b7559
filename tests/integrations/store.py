"""What is pinned in the store, for the tests and for the jobs that they start.

Not all that lies there, as in the other tests: the libraries put functions into it, of which Ray may keep a copy, as cache, when a
job ends.
"""

from __future__ import annotations

from safe_refs._ray import store
from tests.support.store import SETTLE_S
from tests.support.waiting import comes


def pinned() -> int:
    """Bytes that Ray may not drop."""
    return store.store_usage().primary_bytes


def pinned_once(limit_bytes: int, timeout_s: float = SETTLE_S) -> int:
    """Bytes that are pinned, once they are no more than this, or the time is over."""
    comes(lambda: pinned() <= limit_bytes, timeout_s)
    return pinned()


def pinned_from(least_bytes: int, timeout_s: float = SETTLE_S) -> int:
    """Bytes that are pinned, once they are as many as this, or the time is over."""
    comes(lambda: pinned() >= least_bytes, timeout_s)
    return pinned()


def counted() -> str:
    """What processes count, as `ray memory` prints it; nothing if none counts anything."""
    table = store.who_holds_what()
    return table if "Object references for node" in table else ""
